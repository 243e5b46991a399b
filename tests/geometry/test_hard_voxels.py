"""Voxels with limits, against a dictionary that visits points one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError, DataError
from lidarssl.geometry.hard_voxels import BoundedGrid, hard_voxelize

GRID = BoundedGrid((-2.0, -1.0, -0.5, 2.0, 2.0, 1.0), (0.5, 0.5, 0.3))
limits = st.one_of(st.none(), st.integers(1, 6))


def by_dictionary(
    points: np.ndarray, grid: BoundedGrid, max_points: int | None, max_voxels: int | None
) -> tuple[list[tuple[int, ...]], list[int], list[bool]]:
    low = np.array(grid.bounds[:3], np.float32)
    size = np.array(grid.voxel_size, np.float32)
    number: dict[tuple[int, ...], int] = {}
    count: list[int] = []
    voxel_of_point, stored = [], []
    for point in points.astype(np.float32):
        cell = tuple(int(value) for value in np.floor((point - low) / size))
        inside = all(0 <= one < end for one, end in zip(cell, grid.shape, strict=True))
        full = max_voxels is not None and len(number) >= max_voxels
        if not inside or (cell not in number and full):
            voxel_of_point.append(-1)
            stored.append(False)
            continue
        voxel = number.setdefault(cell, len(number))
        if voxel == len(count):
            count.append(0)
        voxel_of_point.append(voxel)
        stored.append(max_points is None or count[voxel] < max_points)
        count[voxel] += stored[-1]
    return list(number), voxel_of_point, stored


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 200), limits, st.one_of(st.none(), st.just(40)))
def test_equals_a_dictionary(
    seed: int, count: int, max_points: int | None, max_voxels: int | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=generator) * 5 - 2.5
    points[::4] = (points[::4] * 2).round() / 2  # on the borders of cells
    voxels = hard_voxelize(points, GRID, max_points, max_voxels)
    cells, voxel_of_point, stored = by_dictionary(points.numpy(), GRID, max_points, max_voxels)
    assert [tuple(cell) for cell in voxels.coordinates.tolist()] == cells
    assert voxels.voxel_of_point.tolist() == voxel_of_point
    assert voxels.stored.tolist() == stored
    values = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    mean = voxels.mean(values)
    assert mean.shape == (len(cells), 2)
    for voxel in range(len(cells)):
        mine = (voxels.voxel_of_point == voxel) & voxels.stored
        assert torch.allclose(mean[voxel], values[mine].mean(0))


def test_order_of_points_does_not_matter_without_limits() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(300, 3, generator=generator) * 4 - 2
    order = torch.randperm(300, generator=generator)
    one, other = hard_voxelize(points, GRID), hard_voxelize(points[order], GRID)
    first = {
        tuple(cell): row
        for cell, row in zip(one.coordinates.tolist(), one.mean(points), strict=True)
    }
    for cell, row in zip(other.coordinates.tolist(), other.mean(points[order]), strict=True):
        assert torch.allclose(row, first.pop(tuple(cell)))
    assert not first


def test_points_that_do_not_count() -> None:
    points = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.2, 0.1], [1.0, 1.0, 0.0]])
    voxels = hard_voxelize(points, GRID, within=torch.tensor([False, True, False]))
    assert voxels.voxel_of_point.tolist() == [-1, 0, -1]
    assert torch.equal(voxels.mean(points), points[1:2])


def test_shape_is_rounded() -> None:
    assert BoundedGrid((0, -40, -3, 70.4, 40, 1), (0.05, 0.05, 0.1)).shape == (1408, 1600, 40)
    assert BoundedGrid((-51.2, -51.2, -5, 51.2, 51.2, 3), (0.1, 0.1, 0.2)).shape == (1024, 1024, 40)


@pytest.mark.parametrize(
    ("bounds", "size"),
    [
        ((0, 0, 0, 1, 1, 1), (0.1, 0.1, 0.0)),
        ((0, 0, 0, 1, 1, -1), (0.1, 0.1, 0.1)),
        ((0, 0, 0, 1, 1, math.nan), (0.1, 0.1, 0.1)),
        ((0, 0, 0, 1, 1), (0.1, 0.1, 0.1)),
        ((0, 0, 0, 1, 1, 0.01), (0.1, 0.1, 0.1)),
    ],
)
def test_bad_grids_are_refused(bounds: tuple, size: tuple) -> None:
    with pytest.raises(ConfigError, match="point_range"):
        BoundedGrid(bounds, size)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_points"):
        hard_voxelize(torch.zeros(1, 3), GRID, max_points=0)
    with pytest.raises(DataError, match="not finite"):
        hard_voxelize(torch.tensor([[0.0, math.nan, 0.0]]), GRID)
