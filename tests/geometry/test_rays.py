"""Cells along rays against a loop that clips every ray to every cell."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError
from lidarssl.geometry.rays import Cell, Grid, ground_height, seen_cells

SMALL = Grid((-3.0, -2.0, -1.1), (1.0, 0.7, 0.8), (6, 6, 3))
SLICE = Grid((-4.0, -4.0, 0.3), (0.5, 0.5, 0.4), (16, 16, 1))


def length_inside(end: np.ndarray, low: np.ndarray, high: np.ndarray, until: float) -> float:
    """How much of the segment origin..until * end lies in a box, m; at most 0 = beside it."""
    first, last = 0.0, until
    for axis in range(3):
        if end[axis] == 0:
            if not low[axis] <= 0 < high[axis]:
                return -1.0
            continue
        a, b = sorted((low[axis] / end[axis], high[axis] / end[axis]))
        first, last = max(first, a), min(last, b)
    return (last - first) * float(np.linalg.norm(end))


def brute_force(points: np.ndarray, grid: Grid, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """State of each cell, and whether no ray comes within rounding of passing it or not."""
    states = np.full(grid.shape, int(Cell.UNKNOWN))
    clear = np.full(grid.shape, True)
    size = np.array(grid.size)
    for cell in itertools.product(*map(range, grid.shape)):
        low = np.array(grid.low) + np.array(cell) * size
        for end in points:
            if (low <= end).all() and (end < low + size).all():
                states[cell] = Cell.SURFACE
            until = 1 - margin / max(np.linalg.norm(end), 1e-12)
            inside = length_inside(end, low, low + size, until)
            clear[cell] &= abs(inside) > 1e-9
            if inside > 0 and states[cell] != Cell.SURFACE:
                states[cell] = Cell.FREE
    return states, clear


def scan(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        4
        * torch.randn((count, 3), generator=generator, dtype=torch.float64)
        * torch.tensor([1.0, 1.0, 0.3])
    )


@pytest.mark.parametrize("grid", [SMALL, SLICE], ids=["volume", "slice"])
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), count=st.integers(0, 12), margin=st.sampled_from([0.0, 0.1, 2.0])
)
def test_cells_are_those_of_a_loop_over_rays_and_cells(
    grid: Grid, seed: int, count: int, margin: float
) -> None:
    points = scan(seed, count)
    expected, clear = brute_force(points.numpy(), grid, margin)
    found = seen_cells(points, grid, margin).numpy()
    assert np.array_equal(found[clear], expected[clear])
    assert clear.mean() > 0.9


def test_a_ray_along_an_axis_frees_what_lies_before_its_return() -> None:
    grid = Grid((-0.5, -0.5, -0.5), (1.0, 1.0, 1.0), (6, 1, 1))
    states = seen_cells(torch.tensor([[4.2, 0.0, 0.0]]), grid)
    free, surface, unknown = int(Cell.FREE), int(Cell.SURFACE), int(Cell.UNKNOWN)
    assert states.flatten().tolist() == [free] * 4 + [surface, unknown]
    assert seen_cells(torch.tensor([[-4.2, 0.0, 0.0]]), grid).flatten().tolist() == (
        [free] + [unknown] * 5
    )


def test_the_end_of_a_ray_proves_nothing() -> None:
    grid = Grid((0.0, -0.5, -0.5), (1.0, 1.0, 1.0), (4, 1, 1))
    states = seen_cells(torch.tensor([[3.05, 0.0, 0.0]]), grid, margin=0.1).flatten()
    assert states.tolist() == [Cell.FREE, Cell.FREE, Cell.FREE, Cell.SURFACE]
    states = seen_cells(torch.tensor([[3.05, 0.0, 0.0]]), grid, margin=1.1).flatten()
    assert states.tolist() == [Cell.FREE, Cell.FREE, Cell.UNKNOWN, Cell.SURFACE]


def test_a_slice_sees_a_steep_ray_only_where_it_crosses() -> None:
    # Down at 45 degrees: at depths 0.85..1.15 m the ray is 0.85..1.15 m ahead.
    grid = Grid((0.0, -0.1, -1.15), (0.2, 0.2, 0.3), (15, 1, 1))
    states = seen_cells(torch.tensor([[2.0, 0.001, -2.0]]), grid).flatten()
    assert (states == Cell.FREE).nonzero()[:, 0].tolist() == [4, 5]
    assert not bool((states == Cell.SURFACE).any())


def test_a_return_wins_over_rays_that_pass() -> None:
    grid = Grid((0.0, -0.5, -0.5), (1.0, 1.0, 1.0), (4, 1, 1))
    points = torch.tensor([[1.5, 0.0, 0.0], [3.5, 0.1, 0.0]])
    assert int(seen_cells(points, grid)[1, 0, 0]) == Cell.SURFACE


def test_returns_that_are_not_finite_or_at_the_sensor_are_harmless() -> None:
    points = torch.tensor([[math.nan, 0.0, 0.0], [0.0, 0.0, 0.0], [math.inf, 1.0, 1.0]])
    states = seen_cells(points, SMALL)
    assert (states == Cell.SURFACE).sum() == 1
    assert not bool((states == Cell.FREE).any())


def test_centers_are_in_the_middle_of_their_cells() -> None:
    centers = SMALL.centers()
    assert centers.shape == (*SMALL.shape, 3)
    assert torch.allclose(centers[2, 1, 0], torch.tensor([-0.5, -0.95, -0.7]))
    cells = SMALL.cells(centers.view(-1, 3)) - 0.5
    expected = torch.tensor(list(itertools.product(*map(range, SMALL.shape))))
    assert torch.allclose(cells, expected.double(), atol=1e-5)


def test_a_grid_without_cells_is_refused() -> None:
    with pytest.raises(ConfigError):
        Grid((0, 0, 0), (1, 1, 0), (1, 1, 1))
    with pytest.raises(ConfigError):
        Grid((0, 0, 0), (1, 1, 1), (1, 0, 1))


@pytest.mark.parametrize("ground", [-1.73, 0.4])
def test_ground_is_found_under_walls_and_cars(ground: float) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.rand(4000, 3, generator=generator) * 40 - 20
    flat[:, 2] = ground + 0.03 * torch.randn(4000, generator=generator)
    wall = torch.rand(4000, 3, generator=generator) * torch.tensor([20, 0.2, 4.0]) + torch.tensor(
        [-10, 6.0, ground]
    )
    below = torch.tensor([[5.0, 5.0, ground - 9.0]]).repeat(20, 1)
    roof = torch.tensor([[0.5, 0.5, ground + 1.5]]).repeat(3000, 1)
    found = ground_height(torch.cat([flat, wall, below, roof]))
    assert found == pytest.approx(ground, abs=0.1)


def test_ground_of_a_scan_without_near_returns_is_that_of_all() -> None:
    assert ground_height(torch.tensor([[50.0, 0.0, -2.0]])) == -2.0
