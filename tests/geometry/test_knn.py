"""Tables of nearest points against brute force, by both ways of computing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.geometry import knn
from lidarssl.geometry.knn import nearest_table, neighbour_table


@pytest.fixture(params=["tree", "brute force"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "brute force":
        monkeypatch.setattr(knn, "_by_tree", knn._by_brute_force)
        monkeypatch.setattr(knn, "_CHUNK", 300)
    return str(request.param)


def cloud(count: int, seed: int, coarse: bool) -> Tensor:
    """Points, on a coarse grid many of them at the same place or equally far."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=generator) * 10 - 5
    return points.round() if coarse else points


def distances(queries: Tensor, sources: Tensor) -> Tensor:
    return (queries.double()[:, None] - sources.double()).norm(dim=2)


def check_nearest(queries: Tensor, sources: Tensor, k: int) -> None:
    table = nearest_table(queries, sources, k)
    assert (table.shape, table.dtype) == ((len(queries), k), torch.int64)
    found = min(k, len(sources))
    assert (table[:, found:] == -1).all()
    if found:
        exact = distances(queries, sources)
        expected = exact.sort(dim=1).values[:, :found]
        torch.testing.assert_close(
            exact.gather(1, table[:, :found]), expected, rtol=1e-6, atol=1e-6
        )
    for row in table[:, :found].tolist():
        assert len({*row}) == found, "a source counts once"


def check_neighbours(points: Tensor, k: int) -> None:
    table = neighbour_table(points, k)
    assert (table.shape, table.dtype) == ((len(points), k), torch.int64)
    exact = distances(points, points)
    for point, row in enumerate(table.tolist()):
        others = [other for other in range(len(points)) if other != point]
        expected = exact[point, others].sort().values[:k]
        near = row[: len(expected)]
        assert point not in near
        assert len({*near}) == len(near)
        torch.testing.assert_close(exact[point, near], expected, rtol=1e-6, atol=1e-6)
        assert row[len(expected) :] == [point] * (k - len(expected))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_nearest_against_brute_force(way: str, k: int, coarse: bool) -> None:
    check_nearest(cloud(40, 0, coarse), cloud(50, 1, coarse), k)


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_neighbours_against_brute_force(way: str, k: int, coarse: bool) -> None:
    check_neighbours(cloud(50, 2, coarse), k)


@given(
    count=st.integers(0, 20), sources=st.integers(0, 20), k=st.integers(1, 9),
    seed=st.integers(0, 999), coarse=st.booleans(), shift=st.sampled_from([0.0, 1000.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_sizes(count: int, sources: int, k: int, seed: int, coarse: bool, shift: float) -> None:
    for place in ("tree", "brute force"):
        with pytest.MonkeyPatch.context() as patch:
            if place == "brute force":
                patch.setattr(knn, "_by_tree", knn._by_brute_force)
            queries, others = cloud(count, seed, coarse), cloud(sources, seed + 1, coarse)
            check_nearest(queries + shift, others + shift, k)
            check_neighbours(others + shift, k)


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_points_at_one_place(way: str, count: int) -> None:
    check_neighbours(torch.full((count, 3), 2.5), 4)


def test_few_points_some_at_one_place(way: str) -> None:
    points = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [3, 0, 0]])
    check_neighbours(points, 7)
    assert neighbour_table(points, 7)[4].tolist()[:1] == [2]


def test_far_from_the_origin_near_points_are_told_apart(way: str) -> None:
    """By expanded squares in float32 they are not."""
    points = torch.arange(12.0)[:, None] * torch.tensor([0.01, 0.0, 0.0]) + 4000
    table = neighbour_table(points, 2)
    assert all({*table[i].tolist()} == {i - 1, i + 1} for i in range(1, 11))
