from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.backbones.voxelize import PointInputs, VoxelGrid, voxelize_batch
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch
from lidarssl.geometry.voxels import cell_coordinates
from lidarssl.sparse.maps import KernelMaps

POINTS = torch.tensor(
    [
        [0.1, 0.2, 0.3],  # frame 0, voxel (0, 0, 0)
        [-0.5, 0.2, 0.3],  # voxel (-1, 0, 0)
        [0.3, 0.4, 0.5],  # voxel (0, 0, 0)
        [0.1, 0.2, 0.3],  # frame 2, voxel (0, 0, 0)
    ]
)
BATCH = PointBatch(POINTS, torch.tensor([1.0, 2.0, 5.0, 7.0]), torch.tensor([0, 0, 0, 2]), 3)


def test_voxels_are_sorted_and_own_their_points() -> None:
    voxels = voxelize_batch(BATCH, VoxelGrid("slidr_cartesian", 1.0, PointInputs()))
    sites = voxels.maps.levels[0].coordinates
    assert sites.tolist() == [[0, -1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]]
    assert voxels.maps.levels[0].order is None
    assert voxels.batch.tolist() == [0, 0, 2]
    assert voxels.token_of_point.tolist() == [1, 0, 1, 2]
    assert voxels.features.tolist() == [[2.0], [1.0], [7.0]]
    expected = torch.stack([POINTS[1], (POINTS[0] + POINTS[2]) / 2, POINTS[3]])
    assert torch.allclose(voxels.positions, expected)


def test_mean_of_scaled_columns() -> None:
    inputs = PointInputs(
        ("intensity", "range", "z", "x", "y", "one"),
        scale=(3, 1, 2, 1, 1, 1),
        shift=(1, 0, 0, 0, 0, -0.5),
        reduce="mean",
    )
    voxels = voxelize_batch(BATCH, VoxelGrid("slidr_cartesian", 1.0, inputs))
    ranges = (math.hypot(0.1, 0.2) + math.hypot(0.3, 0.4)) / 2
    expected = torch.tensor([3 * 3 + 1, ranges, 0.8, 0.2, 0.3, 0.5])
    assert torch.allclose(voxels.features[1], expected)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    rule=st.sampled_from(["slidr_cylindrical", "slidr_cartesian", "also", "waffleiron"]),
    reduce=st.sampled_from(["first", "mean"]),
)
def test_equals_frame_by_frame_and_voxel_by_voxel(
    sizes: list[int], seed: int, rule: str, reduce: Literal["first", "mean"]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn((sum(sizes), 3), generator=generator) * 2
    intensity = torch.rand(sum(sizes), generator=generator)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    grid = VoxelGrid(rule, 0.7, PointInputs(("intensity", "x"), reduce=reduce))
    voxels = voxelize_batch(PointBatch(points, intensity, owner, len(sizes)), grid)
    sites = voxels.maps.levels[0].coordinates
    clouds = [cell_coordinates(cloud, rule, 0.7) for cloud in points.split(sizes)]
    cells = torch.cat([owner[:, None], torch.cat(clouds)], 1)
    expected = cells.unique(dim=0)
    assert torch.equal(sites, expected)
    assert torch.equal(sites[voxels.token_of_point], cells)
    assert torch.equal(KernelMaps.of(sites).levels[0].coordinates, sites)
    values = torch.stack([intensity, points[:, 0]], 1)
    for row in range(len(sites)):
        mine = (voxels.token_of_point == row).nonzero()[:, 0]
        read = values[mine[0]] if reduce == "first" else values[mine].mean(0)
        torch.testing.assert_close(voxels.features[row], read)
        torch.testing.assert_close(voxels.positions[row], points[mine].mean(0))


def test_no_points() -> None:
    empty = PointBatch(torch.empty(0, 3), torch.empty(0), torch.empty(0, dtype=torch.int64), 2)
    voxels = voxelize_batch(empty, VoxelGrid("also", 1.0, PointInputs(reduce="mean")))
    assert voxels.features.shape == (0, 1)
    assert voxels.positions.shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"columns": ("intensity", "colour")}, "colour"),
        ({"columns": ()}, "no column"),
        ({"scale": (1.0, 2.0)}, "2 values for 1 column"),
        ({"shift": ()}, "0 values for 1 column"),
        ({"reduce": "max"}, "neither"),
    ],
)
def test_bad_inputs_are_refused(arguments, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        PointInputs(**arguments)
