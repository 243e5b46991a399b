"""Tokens of WaffleIron against plain loops: voxels, neighbours, cells, owners, padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.backbones.plane_tokens import PlaneGrids, PlaneTokens, TokenRule
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.frame import PointBatch

FOV = ((-3.0, -2.0, -1.0), (4.0, 5.0, 1.5))
GRIDS = PlaneGrids(FOV, (2, 1, 0), ((5, 4), (6, 3), (2, 7)))
INPUTS = PointInputs(("intensity", "x", "z"), scale=(2.0, 1.0, 1.0))
AXES = {2: (0, 1), 1: (0, 2), 0: (1, 2)}


def rule(**changes: Any) -> TokenRule:
    arguments: dict[str, Any] = {
        "grids": GRIDS,
        "neighbours": 4,
        "voxel_size": 0.5,
        "inputs": INPUTS,
    }
    return TokenRule(**arguments | changes)


def cloud(seed: int, sizes: tuple[int, ...] = (60, 45), spread: float = 6.0) -> PointBatch:
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    points = (torch.rand(count, 3, generator=generator) - 0.5) * spread
    return PointBatch(
        points=points,
        intensity=torch.rand(count, generator=generator),
        batch=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        batch_size=len(sizes),
    )


def kept_by_loops(points: PointBatch, voxel_size: float | None) -> list[int]:
    """First point of every voxel that lies inside the field of view, voxel after voxel."""
    kept: list[int] = []
    for frame in range(points.batch_size):
        rows = (points.batch == frame).nonzero()[:, 0].tolist()
        first: dict[tuple[int, ...], int] = {}
        if rows:
            low = points.points[rows].amin(0)
        for row in rows:
            offset = points.points[row] - low
            key: tuple[int, ...] = (row,)
            if voxel_size is not None:
                key = tuple(int(value) for value in (offset / voxel_size).tolist())
            first.setdefault(key, row)
        order = [first[key] for key in sorted(first)]
        inside = [row for row in order if is_inside(points.points[row])]
        kept += inside or order
    return kept


def is_inside(point: Tensor) -> bool:
    return all(a + 1e-4 < x < b - 1e-4 for x, a, b in zip(point.tolist(), *FOV, strict=True))


def cell_by_loops(point: list[float], axis: int, grid: tuple[int, int]) -> int:
    place = []
    for a, cells in zip(AXES[axis], grid, strict=True):
        low, high = FOV[0][a], FOV[1][a]
        place.append(min(max(math.trunc((point[a] - low) / ((high - low) / cells)), 0), cells - 1))
    return place[0] * grid[1] + place[1]


def rows_of(tokens: PlaneTokens, points: PointBatch) -> list[int]:
    """The point that each token is, by its position: positions of a test are unique."""
    place = {tuple(point): row for row, point in enumerate(points.points.tolist())}
    return [place[tuple(position)] for position in tokens.positions[: tokens.real].tolist()]


def check(tokens: PlaneTokens, points: PointBatch, some: TokenRule) -> None:
    """Everything but which points were kept."""
    rows = rows_of(tokens, points)
    positions = points.points[rows].double()
    assert tokens.batch[: tokens.real].tolist() == points.batch[rows].tolist()
    expected = torch.stack(
        [2 * points.intensity[rows], points.points[rows, 0], points.points[rows, 2]], 1
    )
    assert torch.equal(tokens.features[: tokens.real], expected)
    check_cells(tokens, positions)
    check_neighbours(tokens, positions, some.neighbours)
    owners = tokens.token_of_point
    assert owners.shape == points.batch.shape
    for row, point in enumerate(points.points.double()):
        mine = (tokens.batch[: tokens.real] == points.batch[row]).nonzero()[:, 0]
        distance = (positions[mine] - point).norm(dim=1)
        assert int(owners[row]) in mine.tolist()
        assert float((positions[owners[row]] - point).norm()) <= float(distance.min()) + 1e-6


def check_cells(tokens: PlaneTokens, positions: Tensor) -> None:
    for plane, (axis, grid) in enumerate(zip(GRIDS.planes, GRIDS.grids, strict=True)):
        expected = [
            frame * grid[0] * grid[1] + cell_by_loops(point, axis, grid)
            for frame, point in zip(tokens.batch.tolist(), positions.tolist(), strict=False)
        ]
        cells = tokens.cells[plane, : tokens.real].tolist()
        assert cells == expected
        weights = [1 / (expected.count(cell) + 1e-6) for cell in expected]
        assert tokens.weights[plane, : tokens.real].tolist() == pytest.approx(weights, rel=1e-6)


def check_neighbours(tokens: PlaneTokens, positions: Tensor, k: int) -> None:
    distance = torch.cdist(positions, positions)
    for token, found in enumerate(tokens.neighbours[: tokens.real].tolist()):
        others = (tokens.batch[: tokens.real] == tokens.batch[token]).nonzero()[:, 0]
        others = others[others != token]
        nearest = distance[token, others].sort().values[:k].tolist()
        assert len(found) == k
        assert found[len(nearest) :] == [token] * (k - len(nearest))
        assert len({*found[: len(nearest)]} & {*others.tolist()}) == len(nearest)
        actual = distance[token, found[: len(nearest)]].tolist()
        assert actual == pytest.approx(nearest, abs=1e-6)


@pytest.mark.parametrize("voxel_size", [None, 0.5, 2.0])
@pytest.mark.parametrize("spread", [2.0, 6.0, 12.0])
def test_against_loops(voxel_size: float | None, spread: float) -> None:
    points, some = cloud(1, spread=spread), rule(voxel_size=voxel_size)
    tokens = some(points)
    assert rows_of(tokens, points) == kept_by_loops(points, voxel_size)
    check(tokens, points, some)


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4).filter(any),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.5, 6.0, 100.0]),
    neighbours=st.integers(1, 6),
    padded=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_frames_of_any_size(
    sizes: list[int], seed: int, spread: float, neighbours: int, padded: bool
) -> None:
    """Also without a point, with one, with fewer than there should be neighbours, far away."""
    points = cloud(seed, tuple(sizes), spread)
    some = rule(neighbours=neighbours, padded=padded)
    tokens = some(points)
    assert tokens.batch_size == len(sizes)
    assert rows_of(tokens, points) == kept_by_loops(points, 0.5)
    check(tokens, points, some)


def test_no_point_at_all() -> None:
    for padded in (False, True):
        tokens = rule(padded=padded)(cloud(0, (0, 0)))
        assert tokens.real == len(tokens.features) == len(tokens.token_of_point) == 0
        assert tokens.cells.shape == tokens.weights.shape == (3, 0)
        assert tokens.neighbours.shape == (0, 4)


def test_points_outside_make_no_token_but_have_one() -> None:
    points = cloud(2)
    points.points[::7] += torch.tensor([100.0, 0.0, 0.0])
    tokens = rule(voxel_size=None)(points)
    assert tokens.positions[:, 0].max() < 4
    check(tokens, points, rule(voxel_size=None))


def test_the_border_is_outside() -> None:
    inner = torch.tensor([[-2.0, -1.0, -0.5]])
    for axis in range(3):
        for corner, sign in zip(FOV, (1.0, -1.0), strict=True):
            edge = inner.clone()
            edge[0, axis] = corner[axis]
            near, inside = edge.clone(), edge.clone()
            near[0, axis] += sign * 5e-5
            inside[0, axis] += sign * 1e-3
            points = torch.cat([inner, edge, near, inside])
            batch = PointBatch(points, torch.zeros(4), torch.zeros(4, dtype=torch.int64), 1)
            tokens = rule(voxel_size=None)(batch)
            assert torch.equal(tokens.positions, torch.cat([inner, inside]))


def test_a_frame_whose_points_are_all_outside_keeps_them_in_the_nearest_cells() -> None:
    points = cloud(3, (20, 30))
    points.points[:20] += torch.tensor([50.0, -50.0, 9.0])
    tokens = rule(voxel_size=None)(points)
    assert int((tokens.batch == 0).sum()) == 20
    assert set(tokens.cells[0, :20].tolist()) == {4 * 4 + 0}
    check(tokens, points, rule(voxel_size=None))


def test_a_thinned_scan_is_not_thinned_again() -> None:
    """A random point of each voxel need not be the first, and its voxels start elsewhere."""
    points, some = cloud(4), rule(voxel_size=1.5)
    points.thinned_to = 1.5
    tokens = some(points)
    assert rows_of(tokens, points) == kept_by_loops(points, None)
    points.thinned_to = 0.5
    assert rows_of(some(points), points) == kept_by_loops(points, 1.5)
    assert len(some(points).features) < len(tokens.features)


def test_cells_are_those_of_float64() -> None:
    """On a grid of 0.6024 m, division in float32 puts points on the borders into wrong cells."""
    grids = PlaneGrids(((-50.0, -50.0, -5.0), (50.0, 50.0, 5.0)), (2,), ((166, 166),))
    edges = torch.arange(1, 166, dtype=torch.float64) * (100 / 166) - 50
    points = torch.zeros(len(edges), 3)
    points[:, 0], points[:, 1] = edges.float(), 0.1
    expected = ((points[:, 0].double() + 50) / (100 / 166)).long() * 166 + 83
    assert torch.equal(grids.cells(points)[0], expected)
    assert ((points[:, 0] + 50) / (100 / 166)).long().mul(166).add(83).ne(expected).any()


def test_padding_fills_every_frame_up_to_the_longest() -> None:
    points = cloud(5, (9, 4, 7))
    plain, filled = rule(voxel_size=None)(points), rule(voxel_size=None, padded=True)(points)
    real = plain.real
    assert filled.real == real
    assert torch.bincount(filled.batch).unique().numel() == 1
    for name in ("features", "neighbours", "positions", "batch"):
        assert torch.equal(getattr(filled, name)[:real], getattr(plain, name)), name
    assert torch.equal(filled.cells[:, :real], plain.cells)
    assert torch.equal(filled.weights[:, :real], plain.weights)
    assert not filled.features[real:].any()
    assert not filled.weights[:, real:].any()
    rest = torch.arange(real, len(filled.features))
    assert torch.equal(filled.neighbours[real:], rest[:, None].expand(-1, 4))
    for plane, (height, width) in enumerate(GRIDS.grids):
        assert torch.equal(filled.cells[plane, real:], filled.batch[real:] * height * width)
    assert torch.equal(filled.token_of_point, plain.token_of_point)


def test_input_points_are_values_and_not_places() -> None:
    points = cloud(6)
    before = rule()(points)
    points.input_points = points.points.flip(1)
    after = rule()(points)
    assert torch.equal(before.positions, after.positions)
    assert torch.equal(before.cells, after.cells)
    assert torch.equal(before.neighbours, after.neighbours)
    assert torch.equal(after.features[:, 1], after.positions[:, 2])
    assert torch.equal(after.features[:, 2], after.positions[:, 0])
