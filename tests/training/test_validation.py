"""Validation shows the loss of held-out frames and changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lidarssl.batching import collate
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, StepOutput
from lidarssl.training.fit import fit
from lidarssl.training.learner import step_generator
from lidarssl.training.loading import FrameSource, held_out_batches
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
