"""Neighbour search against plain loops, by both ways of computing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.geometry import neighbours
from lidarssl.geometry.neighbours import Neighbours, nearest, within_radius


@pytest.fixture(params=["tree", "brute force"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "brute force":
        monkeypatch.setattr(neighbours, "_by_tree", neighbours._by_brute_force)
        monkeypatch.setattr(neighbours, "_CHUNK", 500)
    return request.param


def grid_cloud(count: int, seed: int) -> Tensor:
    """Points on a coarse grid: many exactly equal distances."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, (count, 3), generator=generator) * 0.5


def by_loops(
    queries: Tensor, sources: Tensor, query_batch: Tensor, source_batch: Tensor
) -> list[list[tuple[float, int]]]:
    """Per query, all sources of its frame by (distance, index)."""
    return [
        sorted(
            (math.dist(query, source), number)
            for number, source in enumerate(sources.tolist())
            if source_batch[number] == query_batch[row]
        )
        for row, query in enumerate(queries.tolist())
    ]


def rows_of(found: Neighbours) -> list[tuple[int, int]]:
    return list(zip(found.query.tolist(), found.source.tolist(), strict=True))


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_nearest(way: str, k: int) -> None:
    queries, sources = grid_cloud(40, 0), grid_cloud(150, 1)
    query_batch, source_batch = torch.arange(40) % 3, torch.arange(150) // 50
    found = nearest(queries, sources, k, query_batch, source_batch)
    expected = by_loops(queries, sources, query_batch, source_batch)
    assert rows_of(found) == [(q, s) for q, row in enumerate(expected) for _, s in row[:k]]
    flat = [distance for row in expected for distance, _ in row[:k]]
    assert found.distance.tolist() == pytest.approx(flat)


def test_radius_includes_its_border(way: str) -> None:
    queries, sources = grid_cloud(40, 2), grid_cloud(150, 3)
    zeros = torch.zeros(150, dtype=torch.int64)
    found = within_radius(queries, sources, 1.0)
    expected = by_loops(queries, sources, zeros[:40], zeros)
    assert rows_of(found) == [(q, s) for q, row in enumerate(expected) for d, s in row if d <= 1.0]


def test_far_from_the_origin(way: str) -> None:
    sources = grid_cloud(60, 4).double() + 1e4
    found = nearest(sources, sources, 1)
    assert (found.distance == 0).all()


def test_nothing_to_find(way: str) -> None:
    nobody, someone = torch.zeros((0, 3)), torch.zeros((2, 3))
    assert len(nearest(nobody, someone, 3).query) == 0
    assert len(nearest(someone, nobody, 3).query) == 0
    batch = torch.tensor([0, 1])
    assert rows_of(nearest(someone, someone[:1], 3, batch, batch[:1])) == [(0, 0)]
    assert len(within_radius(nobody, nobody, 1.0, batch[:0], batch[:0]).query) == 0


def test_bad_arguments() -> None:
    points = torch.zeros((2, 3))
    with pytest.raises(ConfigError, match="neighbours"):
        nearest(points, points, 0)
    with pytest.raises(ConfigError, match="radius"):
        within_radius(points, points, math.nan)
    with pytest.raises(ConfigError, match="batch"):
        nearest(points, points, 1, query_batch=torch.zeros(2))
    with pytest.raises(DataError, match="finite"):
        nearest(points, points * math.nan, 1)
