from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.batching import collate
from lidarssl.errors import ConfigError
from lidarssl.frame import Frame, FrameId
from lidarssl.geometry.balls import ball_pairs
from lidarssl.transforms.base import Compose
from lidarssl.transforms.occupancy import (
    Choice,
    FindSupports,
    MakeQueries,
    SupportSearch,
    draw_queries,
    occupancy_queries,
)
from lidarssl.transforms.points import FlipAxes, LimitPoints, RotateZ


def scan(points: int = 400, seed: int = 0) -> Frame:
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand((points, 3), generator=generator) * 10 - 5
    intensity = torch.rand(points, generator=generator)
    return Frame(FrameId("made", "0", str(seed)), places, intensity)


def made(frame: Frame, *transforms: object, seed: int = 0) -> Frame:
    return Compose(transforms)(frame, np.random.default_rng(seed))  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(points=st.integers(0, 50), count=st.integers(3, 100), seed=st.integers(0, 2**31))
def test_queries_lie_on_the_rays(points: int, count: int, seed: int) -> None:
    frame = scan(points, seed)
    draws = draw_queries(points, count, np.random.default_rng(seed))
    third = count // 3
    sizes = [min(number, points) for number in (count - 2 * third, third, third)]
    assert [len(draws.behind), len(draws.front), len(draws.far)] == sizes
    for rows in (draws.behind, draws.front, draws.far):
        assert len(set(rows.tolist())) == len(rows)
    queries = occupancy_queries(frame.points, frame.intensity, draws, depth=0.25)
    sources = torch.cat([draws.behind, draws.front, draws.far])
    for number, source in enumerate(sources.tolist()):
        ray, place = frame.points[source].double(), queries.positions[number].double()
        distance, along = ray.norm(), (place @ ray) / ray.norm()
        assert torch.allclose(place, ray / distance * along, atol=1e-5)
        if number < sizes[0]:
            assert queries.occupancy[number] == 1
            assert -1e-5 <= along - distance <= 0.25 + 1e-5
        elif number < sizes[0] + sizes[1]:
            assert queries.occupancy[number] == 0
            assert -1e-5 <= distance - along <= 0.25 + 1e-5
        else:
            assert queries.occupancy[number] == 0
            assert -1e-5 <= along <= distance + 1e-5
            assert queries.intensity[number] < 0
            continue
        assert queries.intensity[number] == frame.intensity[source]


@settings(max_examples=60, deadline=None)
@given(points=st.integers(1, 300), count=st.integers(3, 100), seed=st.integers(0, 2**31))
def test_steps_of_the_chosen_rays_are_those_of_all(points: int, count: int, seed: int) -> None:
    frame = scan(points, seed)
    frame.points[0] = 0
    draws = draw_queries(points, count, np.random.default_rng(seed))
    queries = occupancy_queries(frame.points, frame.intensity, draws, depth=0.1)
    step = torch.nn.functional.normalize(frame.points, dim=1, eps=1e-12) * 0.1
    behind = frame.points[draws.behind] + draws.share_behind[:, None] * step[draws.behind]
    front = frame.points[draws.front] - draws.share_front[:, None] * step[draws.front]
    found = queries.positions.split([len(behind), len(front), len(draws.far)])
    assert torch.equal(found[0], behind)
    assert torch.equal(found[1], front)


def test_queries_turn_with_the_points() -> None:
    plain = made(scan(), MakeQueries(30)).queries
    turned = made(scan(), MakeQueries(30), RotateZ(), FlipAxes(1.0, axes="x"))
    assert plain is not None
    assert turned.queries is not None
    before = torch.cdist(plain.positions.double(), scan().points.double())
    after = torch.cdist(turned.queries.positions.double(), turned.points.double())
    assert torch.allclose(before, after, atol=1e-5)
    assert not torch.allclose(plain.positions, turned.queries.positions, atol=0.1)


@pytest.mark.parametrize("shape", ["ball", "column"])
@pytest.mark.parametrize("choice", ["random", "nearest", "first"])
@pytest.mark.parametrize("limit", [None, 3])
def test_supports_are_inside_and_as_many_as_allowed(
    shape: str, choice: Choice, limit: int | None
) -> None:
    search = SupportSearch(shape, 1.5, limit, choice)  # type: ignore[arg-type]
    frame = made(scan(), MakeQueries(60), FindSupports(search))
    queries = frame.queries
    assert queries is not None
    assert queries.query is not None
    assert queries.point is not None
    width = 2 if shape == "column" else 3
    distance = torch.cdist(queries.positions[:, :width].double(), frame.points[:, :width].double())
    near = distance < 1.5
    found = torch.zeros_like(near)
    found[queries.query, queries.point] = True
    assert len(queries.query) == found.sum()
    assert not (found & ~near).any()
    most = near.sum(1) if limit is None else near.sum(1).clamp(max=limit)
    assert torch.equal(found.sum(1), most)
    assert (near.sum(1) > 3).any()
    if limit is not None and choice == "nearest":
        ranks = distance.argsort(1).argsort(1)
        assert ranks[found].max() < limit
    if limit is not None and choice == "first":
        assert torch.equal(found, near & (near.cumsum(1) <= limit))


def test_a_random_choice_is_another_with_another_generator() -> None:
    search = SupportSearch("ball", 1.5, 2)
    chosen = [
        made(made(scan(), MakeQueries(60)), FindSupports(search), seed=seed).queries
        for seed in (1, 1, 2)
    ]
    points = [queries.point for queries in chosen if queries is not None]
    assert torch.equal(points[0], points[1])
    assert not torch.equal(points[0], points[2])


def test_random_supports_are_spread_evenly() -> None:
    """Every one of ten equal supports is chosen about as often as any other."""
    places = torch.zeros(10, 3)
    frame = Frame(FrameId("made", "0", "0"), places + 1, torch.ones(10))
    counts = torch.zeros(10)
    for seed in range(400):
        queries = made(frame, MakeQueries(3, 0.01), FindSupports(SupportSearch(limit=2)), seed=seed)
        assert queries.queries is not None
        assert queries.queries.point is not None
        counts += torch.bincount(queries.queries.point, minlength=10)
    assert counts.max() / counts.min() < 1.6


def test_nearest_supports_however_far() -> None:
    search = SupportSearch("nearest", limit=2)
    frame = made(scan(20), MakeQueries(9), FindSupports(search))
    assert frame.queries is not None
    assert frame.queries.query is not None
    assert torch.bincount(frame.queries.query).tolist() == [2] * len(frame.queries)


def test_pairs_follow_points_and_frames() -> None:
    """What is removed from a frame, or put behind another, keeps its queries right."""
    some = []
    for seed in range(2):
        frame = made(scan(300, seed), MakeQueries(90), FindSupports(SupportSearch(limit=None)))
        some.append(made(frame, LimitPoints(200), seed=seed))
    batch = collate(some)
    queries = batch.queries
    assert queries is not None
    assert queries.query is not None
    assert queries.point is not None
    expected = ball_pairs(
        queries.positions, batch.points.points, 1.0, None, queries.batch, batch.points.batch
    )
    order = (queries.query * len(batch.points.points) + queries.point).argsort()
    assert torch.equal(queries.query[order], expected[0])
    assert torch.equal(queries.point[order], expected[1])


@pytest.mark.parametrize(
    "options",
    [
        {"shape": "cube"},
        {"choice": "last"},
        {"radius": 0.0},
        {"limit": 0},
        {"shape": "nearest", "limit": None},
    ],
)
def test_bad_searches(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        SupportSearch(**options)  # type: ignore[arg-type]
    assert "search" in str(caught.value.field)


@pytest.mark.parametrize("arguments", [(2, 0.1), (9, 0.0), (9, float("inf"))])
def test_bad_queries(arguments: tuple[int, float]) -> None:
    with pytest.raises(ConfigError):
        MakeQueries(*arguments)
