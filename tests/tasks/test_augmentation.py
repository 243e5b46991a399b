"""Augmentations of labelled scans: what is left, where it lies, and what a network reads of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.batching import collate
from lidarssl.errors import ConfigError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.tasks.augmentation import PointAugmentation, WaffleIronAugmentation
from lidarssl.tasks.semantic import SemanticSegmentation
from toys import MemoryDataset


def augmented(frame: Frame, augmentation: PointAugmentation, seed: int = 0) -> Frame:
    rng = np.random.default_rng(seed)
    for transform in augmentation.transforms(training=True):
        frame = transform(frame, rng)
    return frame


@pytest.fixture
def frame() -> Frame:
    """A scan around its sensor whose class 0 has points too."""
    loaded = MemoryDataset(points=2000).load(FrameId("memory", "train", "0000"), Field.SEMANTIC)
    points = loaded.points - torch.tensor([6.0, 0.0, 0.0])
    assert loaded.semantic is not None
    semantic = torch.where(points[:, 0] > 3, 0, loaded.semantic)
    return replace(loaded, points=points, semantic=semantic)


def test_nothing_is_changed_in_an_evaluation() -> None:
    everything = PointAugmentation(voxel_size=0.1, max_points=10, drop_unlabeled=True)
    assert everything.transforms(training=False) == []
    assert len(everything.transforms(training=True)) == 5
    assert WaffleIronAugmentation(drop_unlabeled=True).transforms(training=False) == []
    assert PointAugmentation(rotate=False, flip="none").transforms(training=True) == []
    assert PointAugmentation().thinning() == []


@pytest.mark.parametrize("rounding", ["floor", "trunc"])
def test_thinning_keeps_one_point_of_each_cell(frame: Frame, rounding: str) -> None:
    still: dict[str, Any] = {
        "rotate": False,
        "flip": "none",
        "voxel_size": 0.5,
        "rounding": rounding,
    }
    thin = augmented(frame, PointAugmentation(**still))
    to_cells = {"floor": np.floor, "trunc": np.trunc}[rounding]
    cells, first = np.unique(
        to_cells(frame.points.numpy() / np.float32(0.5)), axis=0, return_index=True
    )
    assert len(thin) == len(cells) < len(frame)
    assert torch.equal(thin.points, frame.points[np.sort(first)])
    assert len(augmented(frame, PointAugmentation(**still, max_points=100))) == 100


def test_unlabelled_points_are_dropped_on_request_only(frame: Frame) -> None:
    assert frame.semantic is not None
    labelled = int((frame.semantic > 0).sum())
    assert 0 < labelled < len(frame) == len(augmented(frame, PointAugmentation()))
    dropped = augmented(frame, PointAugmentation(drop_unlabeled=True))
    assert len(dropped) == labelled
    assert dropped.semantic is not None
    assert int(dropped.semantic.min()) == 1


@pytest.mark.parametrize(
    ("flip", "expected"),
    [
        ("none", {(1, 1)}),
        ("x", {(1, 1), (-1, 1)}),
        ("xy", {(1, 1), (-1, 1), (1, -1), (-1, -1)}),
        ("one", {(1, 1), (-1, 1), (1, -1)}),
    ],
)
def test_flips(frame: Frame, flip: str, expected: set[tuple[int, int]]) -> None:
    still = PointAugmentation(rotate=False, flip=flip)  # type: ignore[arg-type]
    found = set()
    for seed in range(40):
        moved = augmented(frame, still, seed).points / frame.points
        found.add((round(float(moved[0, 0])), round(float(moved[0, 1]))))
        assert float(moved.std(0).max()) < 1e-6
    assert found == expected


def test_scale_stays_in_its_range(frame: Frame) -> None:
    scaled = PointAugmentation(rotate=False, flip="none", scale=(0.9, 1.1))
    found = []
    for seed in range(100):
        factor = augmented(frame, scaled, seed).points / frame.points
        assert float(factor.max() - factor.min()) < 1e-5
        found.append(float(factor.mean()))
    assert 0.9 <= min(found) < 0.91
    assert 1.09 < max(found) <= 1.1


def test_waffleiron_thins_then_keeps_a_neighbourhood(frame: Frame) -> None:
    """One point of each voxel, counted by hand, then the 300 nearest to one of them."""
    still: dict[str, Any] = {"rotate": False, "flip": "none", "scale": None, "voxel_size": 0.5}
    thin = augmented(frame, WaffleIronAugmentation(**still))
    low = frame.points.min(0).values
    cells = torch.unique(((frame.points - low) / 0.5).floor(), dim=0)
    assert len(thin) == len(cells)
    assert len(torch.unique(((thin.points - low) / 0.5).floor(), dim=0)) == len(cells)
    assert thin.thinned_to == 0.5
    few = augmented(frame, WaffleIronAugmentation(**still, max_points=300))
    assert len(few) == 300
    distances = torch.cdist(few.points.double(), thin.points.double())
    kept = {tuple(point) for point in few.points.tolist()}
    around = [
        {tuple(thin.points[row].tolist()) for row in row_distances.argsort()[:300]}
        for row_distances in distances
    ]
    assert kept in around


def test_kept_points_are_drawn(frame: Frame) -> None:
    still = WaffleIronAugmentation(False, "none", None, voxel_size=0.5)
    draws = [augmented(frame, still, seed).points for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_crop_is_of_moved_points(frame: Frame) -> None:
    low, high = (-3.0, -2.0, -0.5), (3.0, 2.0, 0.5)
    options: dict[str, Any] = {"voxel_size": None, "max_points": None}
    whole = augmented(frame, WaffleIronAugmentation(**options), 4)
    cropped = augmented(frame, WaffleIronAugmentation(**options, crop=(low, high)), 4)
    inside = np.ones(len(whole), bool)
    for axis in range(3):
        values = whole.points[:, axis].double().numpy()
        inside &= (values > low[axis] + 1e-4) & (values < high[axis] - 1e-4)
    assert 0 < inside.sum() < len(frame)
    assert torch.equal(cropped.points, whole.points[torch.from_numpy(inside)])


def test_consistent_inputs_are_the_points(frame: Frame) -> None:
    assert augmented(frame, WaffleIronAugmentation()).input_points is None


@pytest.mark.parametrize("seed", range(8))
def test_independent_inputs(frame: Frame, seed: int) -> None:
    """Points keep their distances; inputs keep their handedness and shrink or grow alone."""
    options: dict[str, Any] = {"voxel_size": None, "max_points": None, "independent_inputs": True}
    moved = augmented(frame, WaffleIronAugmentation(**options), seed)
    before = frame.points.double().numpy()
    assert moved.input_points is not None
    maps = [
        np.linalg.lstsq(before, after.double().numpy(), rcond=None)[0].T
        for after in (moved.points, moved.input_points)
    ]
    np.testing.assert_allclose(maps[0] @ maps[0].T, np.eye(3), atol=1e-6)
    factor = maps[1][2, 2]
    assert 0.9 <= factor <= 1.1
    np.testing.assert_allclose(maps[1] @ maps[1].T, factor**2 * np.eye(3), atol=1e-6)
    assert np.linalg.det(maps[1]) > 0
    angles = [np.arctan2(matrix[1, 0], matrix[0, 0]) for matrix in maps]
    assert abs(angles[0] - angles[1]) > 1e-3


def test_independent_inputs_are_neither_mirrored_nor_lost(frame: Frame) -> None:
    options: dict[str, Any] = {"rotate": False, "scale": None, "voxel_size": 0.3, "max_points": 200}
    crop = ((-3.0, -3.0, -1.0), (3.0, 3.0, 1.0))
    mirrored = set()
    for seed in range(12):
        augmentation = WaffleIronAugmentation(**options, independent_inputs=True, crop=crop)
        moved = augmented(frame, augmentation, seed)
        assert moved.input_points is not None
        signs = (moved.points / moved.input_points).round()
        assert torch.equal(moved.input_points * signs, moved.points)
        assert len(torch.unique(signs, dim=0)) == 1
        mirrored.add(tuple(signs[0].tolist()))
    assert mirrored == {(1, 1, 1), (-1, 1, 1), (1, -1, 1)}


def test_scale_of_zero_is_refused() -> None:
    augmentation = WaffleIronAugmentation(scale=(0.0, 1.0), independent_inputs=True)
    with pytest.raises(ConfigError, match="not positive"):
        augmentation.transforms(training=True)


def test_a_waffleiron_reads_the_inputs_and_keeps_every_thinned_point(frame: Frame) -> None:
    """Its tokens are the points that are left, although they have been scaled into one voxel."""
    network = WaffleIron(
        channels=4, depth=1, fov=((-8.0, -8.0, -2.0), (8.0, 8.0, 2.0)), planes=(2,),
        grids=((8, 8),), neighbours=4, voxel_size=0.3,
        inputs=PointInputs(("x", "y", "z", "radius")),
    )  # fmt: skip
    crop = ((-8.0, -8.0, -2.0), (8.0, 8.0, 2.0))
    for independent in (False, True):
        augmentation = WaffleIronAugmentation(
            scale=(0.8, 0.81), voxel_size=0.3, max_points=500, crop=crop,
            independent_inputs=independent,
        )  # fmt: skip
        batch = collate([augmented(frame, augmentation, seed) for seed in range(2)])
        task = SemanticSegmentation(network, 3, augmentation=augmentation)
        tokens = network.prepare(batch.points).prepared
        inputs = batch.points.input_points if independent else batch.points.points
        assert inputs is not None
        assert len(tokens.features) == len(batch.points.points)
        expected = torch.cat([inputs, inputs.norm(dim=1, keepdim=True)], 1)
        torch.testing.assert_close(tokens.features[tokens.token_of_point], expected)
        loss = task.training_step(batch, torch.Generator()).loss
        loss.backward()
        assert float(loss.detach()) > 0
