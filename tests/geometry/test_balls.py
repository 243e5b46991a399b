from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.geometry import balls
from lidarssl.geometry.balls import ball_pairs


def brute_force(
    queries: Tensor,
    sources: Tensor,
    radius: float,
    limit: int | None,
    frames: tuple[Tensor, Tensor],
) -> list[tuple[int, int]]:
    pairs = []
    for q, place in enumerate(queries.double()):
        near = [
            s
            for s, other in enumerate(sources.double())
            if frames[0][q] == frames[1][s] and float(((place - other) ** 2).sum()) < radius**2
        ]
        pairs += [(q, s) for s in near[:limit]]
    return pairs


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    queries=st.integers(0, 12),
    sources=st.integers(0, 60),
    width=st.sampled_from([2, 3]),
    limit=st.sampled_from([None, 1, 3, 8, 100]),
    smallest=st.sampled_from([1, 7, 2048]),
)
def test_equals_brute_force(
    seed: int, queries: int, sources: int, width: int, limit: int | None, smallest: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Multiples of 1/4 put many pairs at a distance of exactly the radius: these are outside.
    places = torch.randint(-6, 7, (queries + sources, width), generator=generator) / 4
    first, second = places[:queries], places[queries:]
    frames = (
        torch.randint(0, 3, (queries,), generator=generator),
        torch.randint(0, 3, (sources,), generator=generator),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balls, "_SMALLEST", smallest)
        query, source = ball_pairs(first, second, 1.0, limit, *frames)
    assert list(zip(query.tolist(), source.tolist(), strict=True)) == brute_force(
        first, second, 1.0, limit, frames
    )


def test_other_devices_search_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of devices without a tree, run on the CPU in small chunks."""
    generator = torch.Generator().manual_seed(0)
    queries, sources = torch.randn((2, 300, 3), generator=generator).unbind()
    expected = ball_pairs(queries, sources, 0.7, 5)
    monkeypatch.setattr(balls, "_CHUNK", 1000)
    monkeypatch.setattr(balls, "_near", balls._near_on_device)
    found = ball_pairs(queries, sources, 0.7, 5)
    assert len(expected[0]) > 300
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_one_frame_needs_no_frame_numbers() -> None:
    points = torch.zeros(3, 3)
    query, source = ball_pairs(points[:2], points, 0.1, 2)
    assert query.tolist() == [0, 0, 1, 1]
    assert source.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(("radius", "limit"), [(0.0, 3), (-1.0, 3), (float("inf"), 3), (1.0, 0)])
def test_bad_arguments(radius: float, limit: int) -> None:
    with pytest.raises(ConfigError):
        ball_pairs(torch.zeros(1, 3), torch.zeros(1, 3), radius, limit)


def test_coordinates_must_be_finite() -> None:
    with pytest.raises(DataError, match="finite"):
        ball_pairs(torch.full((1, 3), float("nan")), torch.zeros(1, 3), 1.0)
