"""Validation shows what steps say of held-out frames and changes nothing else."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import normalize

from lidarssl.batching import collate
from lidarssl.distributed import all_reduce_sum
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, Pairs, StepOutput
from lidarssl.training.draws import step_generator
from lidarssl.training.fit import fit
from lidarssl.training.loading import FrameSource, held_out_batches
from lidarssl.training.validation import Validation
from toys import MemoryDataset, ToyModule
from training.runs import SETTINGS, rows, same_weights, settings, train


class WithStatistics(ToyModule):
    """Batch norm tells whether it was validated in eval mode; it notes every mode it ran in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.insert(1, torch.nn.BatchNorm1d(16))
        self.modes: list[tuple[bool, bool]] = []

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return super().training_step(batch, generator)


def test_training_is_not_disturbed(tmp_path: Path) -> None:
    for name, every in (("with", 3), ("without", 0)):
        torch.manual_seed(0)
        train(tmp_path / name, settings(validate_every=every), module=WithStatistics())
    assert same_weights(tmp_path / "with", tmp_path / "without")
    logged = {name: rows(tmp_path / name) for name in ("with", "without")}
    losses = {name: [r["loss"] for r in found if "loss" in r] for name, found in logged.items()}
    assert losses["with"] == losses["without"]
    assert [r["step"] for r in logged["with"] if "val_loss" in r] == list(range(2, 24, 3))
    assert not any("val_loss" in row for row in logged["without"])


def test_runs_in_eval_mode_without_gradients(tmp_path: Path) -> None:
    module = WithStatistics()
    train(tmp_path, settings(steps=4, validate_every=2), module=module)
    step, held_out = (True, True), (False, False)
    assert module.modes == [step, step, *[held_out] * 3, step, step, *[held_out] * 3]


def test_is_the_mean_loss_of_the_held_out_batches(tmp_path: Path) -> None:
    module, dataset = WithStatistics(), MemoryDataset(frames=10)
    train(tmp_path, settings(steps=6, validate_every=6), module=module, dataset=dataset)
    module.eval()
    expected = []
    for number in range(2):  # two batches of 4; the 2 frames left over do not fill another
        ids = dataset.frames("val")[4 * number : 4 * number + 4]
        batch = collate([dataset.load(frame, Field.NONE) for frame in ids])
        expected.append(module.training_step(batch, step_generator(0, number)).loss)
    assert rows(tmp_path)[-1]["val_loss"] == pytest.approx(torch.stack(expected).mean().item())


def test_there_must_be_a_frame(tmp_path: Path) -> None:
    dataset = MemoryDataset()
    with pytest.raises(ConfigError, match="no held-out frame") as caught:
        fit(
            ToyModule(), dataset, dataset.frames("train"), Field.NONE, [],
            settings(validate_every=1), tmp_path, "toy", progress=False,
        )  # fmt: skip
    assert caught.value.field == "training.validate_every"
    assert SETTINGS.validate_every == 0


@pytest.mark.parametrize(("frames", "size"), [(10, 4), (3, 4), (8, 4)])
def test_ranks_share_every_batch(frames: int, size: int) -> None:
    dataset = MemoryDataset(frames)
    source = FrameSource(dataset, dataset.frames("val"), Field.NONE, [], seed=0)
    parts = [list(held_out_batches(source, size, 0, None, rank, 2)) for rank in range(2)]
    seen = [left.ids + right.ids for left, right in zip(*parts, strict=True)]
    whole = min(size, frames - frames % 2)
    ids = tuple(dataset.frames("val"))
    expected = [ids[first : first + whole] for first in range(0, frames - whole + 1, whole)]
    assert seen == expected
    if frames % 2 == 0 or frames > size:
        alone = [batch.ids for batch in held_out_batches(source, size, 0, None)]
        assert seen == alone


def test_fewer_frames_than_processes() -> None:
    dataset = MemoryDataset(1)
    source = FrameSource(dataset, dataset.frames("val"), Field.NONE, [], seed=0)
    with pytest.raises(ConfigError, match="shared by 2 processes"):
        held_out_batches(source, 4, 0, None, 0, 2)


def test_does_not_advance_the_global_generator() -> None:
    dataset, before = MemoryDataset(4), torch.random.get_rng_state()
    source = FrameSource(dataset, dataset.frames("val"), Field.NONE, [], seed=0)
    assert len(list(held_out_batches(source, 2, 0, None))) == 2
    assert torch.equal(torch.random.get_rng_state(), before)


class WithPairs(ToyModule):
    """Embeds each frame twice: by where its points are, and by their intensities too."""

    def __init__(self, diverged: bool = False) -> None:
        super().__init__()
        self.image, self.lidar = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)
        self.diverged = diverged

    def embed(self, batch: Batch) -> Pairs:
        points, frames = batch.points, range(batch.points.batch_size)
        columns = torch.cat([points.points, points.intensity[:, None]], 1)
        means = torch.stack([columns[points.batch == frame].mean(0) for frame in frames])
        image, lidar = self.image(means[:, :3]), self.lidar(means)
        if self.diverged:
            image = image * torch.nan
        return Pairs(normalize(image.detach(), dim=1), normalize(lidar.detach(), dim=1))

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        output = super().training_step(batch, generator)
        even = {"even": torch.tensor(0.5)} if int(batch.ids[0].token) % 8 == 0 else {}
        unused = sum(p.sum() for part in (self.image, self.lidar) for p in part.parameters())
        return StepOutput(output.loss + 0 * unused, output.terms | even, self.embed(batch))


WAYS = ("image_to_lidar", "lidar_to_image", "chance")
RETRIEVAL = [
    *(f"val_recall@{k}_{way}" for k in (1, 5, 10) for way in WAYS),
    "val_median_rank_image_to_lidar", "val_median_rank_lidar_to_image", "val_alignment",
    "val_uniformity_image", "val_uniformity_lidar", "val_modality_gap",
]  # fmt: skip


def test_terms_are_means_over_the_batches_that_have_them(tmp_path: Path) -> None:
    module, dataset = WithPairs(), MemoryDataset(frames=24)
    train(tmp_path, settings(steps=6, validate_every=6), module=module, dataset=dataset)
    module.eval()
    outputs = [
        module.training_step(batch, step_generator(0, number))
        for number, batch in enumerate(batches_of(dataset, 4))
    ]
    logged = rows(tmp_path)[-1]
    mean = torch.stack([output.terms["error"] for output in outputs]).mean()
    assert logged["val_error"] == pytest.approx(mean.item())
    assert logged["val_even"] == pytest.approx(0.5)
    assert sum("even" in output.terms for output in outputs) == 3


def batches_of(dataset: MemoryDataset, size: int) -> list[Batch]:
    ids = dataset.frames("val")
    return [
        collate([dataset.load(frame, Field.NONE) for frame in ids[first : first + size]])
        for first in range(0, len(ids), size)
    ]


def test_retrieval_is_among_all_held_out_frames(tmp_path: Path) -> None:
    module, dataset = WithPairs(), MemoryDataset(frames=24)
    train(tmp_path, settings(steps=6, validate_every=6), module=module, dataset=dataset)
    module.eval()
    pairs = module.embed(batches_of(dataset, 24)[0])
    cosines, logged = pairs.image @ pairs.lidar.T, rows(tmp_path)[-1]
    for way, table in (("image_to_lidar", cosines), ("lidar_to_image", cosines.T)):
        ranks = 1 + (table > table.diagonal()[:, None]).sum(1)
        for k in (1, 5, 10):
            found = logged[f"val_recall@{k}_{way}"]
            assert found == pytest.approx((ranks <= k).double().mean().item())
        assert logged[f"val_median_rank_{way}"] == ranks.double().quantile(0.5).item()
    assert logged["val_recall@5_chance"] == pytest.approx(5 / 24)
    distance = (pairs.image - pairs.lidar).square().sum(1)
    assert logged["val_alignment"] == pytest.approx(distance.mean().item(), rel=1e-5)
    assert [name for name in logged if name in RETRIEVAL] == RETRIEVAL


def test_pairs_change_neither_weights_nor_losses(tmp_path: Path) -> None:
    for name, every in (("with", 3), ("without", 0)):
        train(tmp_path / name, settings(validate_every=every), module=seeded(WithPairs))
    assert same_weights(tmp_path / "with", tmp_path / "without")
    losses = [
        [row["loss"] for row in rows(tmp_path / name) if "loss" in row]
        for name in ("with", "without")
    ]
    assert losses[0] == losses[1]


def seeded(made: type[WithPairs], *arguments: bool) -> WithPairs:
    torch.manual_seed(0)
    return made(*arguments)


def test_embeddings_that_are_no_numbers_do_not_end_the_run(tmp_path: Path) -> None:
    train(tmp_path, settings(steps=4, validate_every=2), module=seeded(WithPairs, True))
    held_out = [row for row in rows(tmp_path) if "val_loss" in row]
    assert [row["step"] for row in held_out] == [1, 3]
    assert all(row[name] is None for row in held_out for name in RETRIEVAL)
    assert held_out[-1]["val_loss"] > 0


def test_without_pairs_there_is_no_retrieval(tmp_path: Path) -> None:
    train(tmp_path, settings(steps=2, validate_every=2))
    assert {name for name in rows(tmp_path)[-1] if "val" in name} == {"val_loss", "val_error"}


FRAMES = 16


def validated(rank: int, world: int) -> dict[str, float]:
    """What one of ``world`` processes logs of a module that the same seed made."""
    dataset, module = MemoryDataset(FRAMES), seeded(WithPairs)
    source = FrameSource(dataset, dataset.frames("val"), Field.NONE, [], seed=0)
    validation = Validation(partial(held_out_batches, source, 4, 0, None), seed=0, every=1)
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(
            root_device=torch.device("cpu"),
            reduce=lambda value, reduce_op: all_reduce_sum(value) / world,
        ),
        precision_plugin=SimpleNamespace(val_step_context=nullcontext),
        global_rank=rank,
        world_size=world,
    )
    return validation.values(trainer, module)


def validate_one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    torch.save(validated(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    """Each has a part of the frames, and a term that the other lacks."""
    mp.spawn(validate_one_of_two, (str(tmp_path),), nprocs=2)
    alone = validated(0, 1)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found == pytest.approx(alone, rel=1e-5)
    assert set(RETRIEVAL) < set(alone)
    assert alone["val_recall@1_chance"] == 1 / FRAMES
