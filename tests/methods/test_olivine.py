"""What is particular to OLIVINE: weak labels, its three terms, the warm-up, two heads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lidarssl.backbones.voxelnet import VoxelNet, slidr_voxelnet
from lidarssl.errors import ConfigError
from lidarssl.experiments.pretrain import train_student
from lidarssl.frame import Batch, Frame
from lidarssl.methods.image_to_lidar import PairAugmentation
from lidarssl.methods.olivine import BalancedSampling, Distributions, Olivine, TermWeights
from lidarssl.recipes.kinds import PretrainRecipe
from lidarssl.training.requirements import check_prepared
from lidarssl.transforms.base import Compose, sample_generator
from lidarssl.transforms.paired import MatchPixels
from lidarssl.transforms.weak_labels import WeakLabels, read_weak_labels
from methods.small import augmentation, backbone, batch_of, encoder, frames, weak_labels
from toys import MemoryDataset

SIZE = (32, 48)


def small(**changes: Any) -> Olivine:
    arguments: dict[str, Any] = {
        "backbone": backbone(), "image_encoder": encoder(), "embedding": 8, "num_matches": 64,
        "weak_labels": WeakLabels(weak_labels()), "augmentation": augmentation(SIZE),
        "distributions": Distributions(decay=0.2, warmup=2),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Olivine(**arguments | changes).train()


def step(method: Olivine, batch: Batch, seed: int = 0) -> dict[str, float]:
    output = method.training_step(batch, torch.Generator().manual_seed(seed))
    return {"loss": output.loss.item()} | {k: v.item() for k, v in output.terms.items()}


def relabelled(some: list[Frame], label: int) -> list[Frame]:
    for frame in some:
        assert frame.matches is not None
        frame.matches.label = torch.full_like(frame.matches.point, label)
    return some


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    method = small(weights=TermWeights(0.25, 2.0, 0.5), distributions=Distributions(0.2, 1))
    batch = batch_of(method, frames(method))
    first, second = step(method, batch), step(method, batch)
    assert first["distribution"] == 0
    assert second["distribution"] != 0
    for found in (first, second):
        expected = 0.25 * found["points"] + 2 * found["semantic"] + 0.5 * found["distribution"]
        assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_warm_up_estimates_and_then_the_means_stand_still() -> None:
    method = small(distributions=Distributions(decay=0.2, warmup=2))
    batch, means = batch_of(method, frames(method)), []
    for _ in range(4):
        step(method, batch)
        means.append(method.prototypes.mean.clone())
    assert means[0].norm() > 0
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[2])
    assert torch.equal(means[1], means[3])


def test_means_can_keep_moving() -> None:
    method = small(distributions=Distributions(decay=0.2, warmup=0, frozen=False))
    batch = batch_of(method, frames(method))
    assert step(method, batch)["distribution"] != 0
    before = method.prototypes.mean.clone()
    step(method, batch)
    assert not torch.equal(before, method.prototypes.mean)


def test_evaluation_moves_nothing_and_leaves_the_likelihood_out() -> None:
    method = small(distributions=Distributions(decay=0.2, warmup=1))
    batch = batch_of(method, frames(method))
    step(method, batch)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    found = step(method.eval(), batch)
    assert found["loss"] == pytest.approx(0.5 * (found["points"] + found["semantic"]), rel=1e-5)
    assert "distribution" not in found
    for key, value in method.state_dict().items():
        assert torch.equal(state[key], value), key


def test_where_the_warm_up_stands_is_part_of_the_state() -> None:
    first, batch = small(), None
    batch = batch_of(first, frames(first))
    for _ in range(2):
        step(first, batch)
    other = small()
    other.load_state_dict(first.state_dict())
    assert step(first, batch) == step(other, batch)
    assert int(other.steps) == 3


def test_matches_without_a_label_meet_only_the_contrast_of_points() -> None:
    method = small(distributions=Distributions(decay=0.2, warmup=1))
    step(method, batch_of(method, frames(method)))
    batch = batch_of(method, relabelled(frames(method), 0))
    found = step(method, batch)
    assert (found["semantic"], found["distribution"], found["labelled"]) == (0, 0, 0)
    assert found["loss"] == pytest.approx(0.5 * found["points"], rel=1e-5)
    assert found["points"] > 0


def test_one_class_alone_has_nothing_to_contrast() -> None:
    method = small()
    found = step(method, batch_of(method, relabelled(frames(method), 1)))
    assert found["semantic"] == pytest.approx(0, abs=1e-5)


def test_a_class_that_the_warm_up_has_not_seen_costs_nothing() -> None:
    method = small(distributions=Distributions(decay=0.2, warmup=1))
    step(method, batch_of(method, relabelled(frames(method), 1)))
    assert method.prototypes.seen().tolist() == [True, False]
    found = step(method, batch_of(method, relabelled(frames(method), 2)))
    assert found["distribution"] == 0


def test_classes_beyond_a_number_have_no_distribution() -> None:
    method = small(distributions=Distributions(decay=0.2, warmup=1, classes=1))
    step(method, batch_of(method, frames(method)))
    assert method.prototypes.mean.shape == (1, 8)
    found = step(method, batch_of(method, relabelled(frames(method), 2)))
    assert found["distribution"] == 0


@pytest.mark.parametrize("left", ["points", "semantic", "distribution"])
def test_a_term_of_no_weight_is_not_computed_and_gradients_stay_whole(left: str) -> None:
    weights = {"points": 0.0, "semantic": 0.0, "distribution": 0.0, left: 1.0}
    method = small(weights=TermWeights(**weights), distributions=Distributions(0.2, 0, False))
    batch = batch_of(method, frames(method))
    output = method.training_step(batch, torch.Generator().manual_seed(0))
    assert set(output.terms) == {left, "labelled"}
    output.loss.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_a_mean_that_no_step_estimates_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Distributions(warmup=0)
    assert caught.value.field == "method.distributions.warmup"


def test_sampling_draws_rare_classes_and_far_points_more_often() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(2000) >= 1900).long()
    points = torch.rand((2000, 3), generator=generator) * 5
    points[::50, 0] += 60
    shares = {}
    for balanced in (False, True):
        sampling = BalancedSampling(by_range=balanced, by_class=balanced)
        rows = sampling.draw(points, labels, 150, torch.Generator().manual_seed(1))
        assert len(rows.unique()) == 150
        shares[balanced] = (labels[rows].float().mean(), (points[rows, 0] > 50).float().mean())
    assert shares[True][0] > 3 * shares[False][0]
    assert shares[True][1] > 2 * shares[False][1]


def test_labels_are_those_of_the_pixels_before_any_crop() -> None:
    method, dataset = small(), MemoryDataset(1, cameras=2)
    frame = dataset.load(dataset.frames("train")[0])
    augmented = Compose(
        PairAugmentation(SIZE, min_pairs=4, drop_cuboids=False).transforms(
            True, on_images=[method.weak_labels]
        )
    )(frame, sample_generator(0, 0, 0))
    plain = MatchPixels()(frame, sample_generator(0, 0, 0)).matches
    assert plain is not None
    expected = {}
    for number, camera in enumerate(frame.cameras):
        labels = read_weak_labels(
            method.weak_labels.folder / f"{camera.token}.png", (48, 64), method.weak_labels.settings
        )
        rows = (plain.image == number).nonzero()[:, 0].tolist()
        for row in rows:
            pixel = labels[plain.row[row], plain.col[row]]
            expected[number, int(plain.point[row])] = int(pixel)
    matches = augmented.matches
    assert matches is not None
    assert matches.label is not None
    assert 0 < len(matches) <= len(expected)
    pairs = zip(matches.image.tolist(), matches.point.tolist(), strict=True)
    assert matches.label.tolist() == [expected[pair] for pair in pairs]
    assert set(expected.values()) == {0, 1, 2}


def test_labels_of_a_pass_that_did_not_finish_stop_the_run_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    shutil.copytree(weak_labels(), folder)
    method, dataset = small(weak_labels=WeakLabels(folder)), MemoryDataset(8, cameras=2)
    recipe = PretrainRecipe(dataset, method)
    frames_of_both = [*dataset.frames("train"), *dataset.frames("val")]
    check_prepared(method.prepared, dataset, frames_of_both)
    next(folder.glob("*.png")).unlink()
    with pytest.raises(ConfigError, match="holds 31 files for 32 images of 16 frames") as caught:
        check_prepared(method.prepared, dataset, frames_of_both)
    assert "prepare weak-labels" in (caught.value.remedy or "")
    for file in list(folder.glob("*.png"))[:16]:
        file.unlink()
    with pytest.raises(ConfigError, match="15 files"):
        train_student(recipe, "", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_distributions_than_classes_and_no_term_at_all_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        small(distributions=Distributions(classes=3))
    assert caught.value.field == "method.distributions.classes"
    with pytest.raises(ConfigError, match="nothing would train"):
        TermWeights(0, 0, 0)


def voxelnet(heads: Any = 2) -> VoxelNet:
    return VoxelNet(
        (-1.6, -6.4, -2.5, 11.2, 6.4, 2.5), (0.1, 0.1, 0.2), channels=(4, 8, 8, 8),
        trunk_channels=8, head_channels=8, heads=heads, normalize=True, reading="corners",
    )  # fmt: skip


def test_both_heads_may_be_those_of_the_backbone() -> None:
    method = small(backbone=voxelnet(), heads="backbone")
    batch = batch_of(method, frames(method))
    tokens = method.backbone(batch.points)
    points, semantic = method.embed(tokens.features)
    assert torch.equal(torch.cat([points, semantic], 1), tokens.features)
    output = method.training_step(batch, torch.Generator().manual_seed(0))
    output.loss.backward()
    for head in (method.backbone.final, method.backbone.final_class_level):
        assert head is not None
        assert head.weight.grad.abs().max() > 0
    assert not [key for key in method.state_dict() if key.startswith(("point_head", "semantic_"))]


def test_one_head_is_not_two() -> None:
    with pytest.raises(ConfigError, match="two heads") as caught:
        small(backbone=voxelnet(heads=1), heads="backbone")
    assert caught.value.field == "method.heads"


def test_each_head_of_the_backbone_is_of_unit_length_where_it_is_not_empty() -> None:
    torch.manual_seed(0)
    model = voxelnet().eval()
    method = small(backbone=model, heads="backbone")
    batch = batch_of(method, frames(method))
    sites = model.forward_sparse(model.voxels(batch.points).tensor()).features
    lengths = torch.stack([half.norm(dim=1) for half in sites.chunk(2, 1)])
    assert torch.allclose(lengths[lengths > 0], torch.ones(()), atol=1e-5)
    assert (lengths > 0).float().mean() > 0.9


def test_the_published_network_has_one_head_more_than_slidr() -> None:
    one, two = (sum(p.numel() for p in slidr_voxelnet(heads=n).parameters()) for n in (1, 2))
    assert two - one == 128 * 64
