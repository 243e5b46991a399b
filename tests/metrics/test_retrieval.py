from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import DataError
from lidarssl.metrics import retrieval as module
from lidarssl.metrics.retrieval import (
    FrameGroups,
    RetrievalReport,
    partner_ranks,
    retrieval,
    uniformity,
)

KS = (1, 2, 5)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coarse(*shape: int, seed: int = 0) -> torch.Tensor:
    """Few different directions, so that many similarities are equal."""
    return randn(*shape, seed=seed).sign() + torch.tensor([0.5] + [0.0] * (shape[-1] - 1))


def grouped(count: int, within: int, seed: int = 0) -> FrameGroups:
    generator = torch.Generator().manual_seed(seed)
    return FrameGroups(
        torch.randint(0, 2, (count,), generator=generator),
        torch.randint(0, count + 1, (count,), generator=generator),
        within,
    )


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return round(float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)), 9)


def slow_ranks(queries: np.ndarray, candidates: np.ndarray, hit: np.ndarray) -> list[float]:
    """By a loop over every pair: the best hit, and whoever is before or beside it."""
    ranks = []
    for i, query in enumerate(queries):
        scores = [cosine(query, candidate) for candidate in candidates]
        best = max(score for score, counts in zip(scores, hit[i], strict=True) if counts)
        others = [score for score, counts in zip(scores, hit[i], strict=True) if not counts]
        larger, equal = (
            sum(test) for test in ((s > best for s in others), (s == best for s in others))
        )
        ranks.append(1 + larger + equal / 2)
    return ranks


def slow_hits(count: int, groups: FrameGroups | None) -> np.ndarray:
    if groups is None:
        return np.eye(count, dtype=bool)
    sequence, position = groups.sequence.tolist(), groups.position.tolist()
    return np.array(
        [
            [
                sequence[i] == sequence[j] and abs(position[i] - position[j]) <= groups.within
                for j in range(count)
            ]
            for i in range(count)
        ]
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    seed=st.integers(0, 999),
    tied=st.booleans(),
    within=st.none() | st.integers(0, 3),
    chunk=st.none() | st.integers(1, 5),
)
def test_ranks_equal_a_double_loop(
    rows: int, seed: int, tied: bool, within: int | None, chunk: int | None
) -> None:
    queries, candidates = (coarse if tied else randn)(2, rows, 3, seed=seed).unbind()
    groups = None if within is None else grouped(rows, within, seed)
    found = partner_ranks(queries, candidates, groups, chunk)
    expected = slow_ranks(queries.numpy(), candidates.numpy(), slow_hits(rows, groups))
    assert found.tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_report_equals_its_formulas(seed: int) -> None:
    image, lidar = randn(2, 9, 4, seed=seed).unbind()
    found = retrieval(image, lidar, KS)
    a, b = ((x / x.norm(dim=1, keepdim=True)).numpy() for x in (image, lidar))
    for way, left, right in (
        (found.exact.image_to_lidar, a, b),
        (found.exact.lidar_to_image, b, a),
    ):
        ranks = slow_ranks(left, right, np.eye(9, dtype=bool))
        assert way.recall == {k: pytest.approx(sum(r <= k for r in ranks) / 9) for k in KS}
        assert way.median_rank == sorted(ranks)[4]
        assert way.mean_reciprocal_rank == pytest.approx(sum(1 / rank for rank in ranks) / 9)
    assert found.exact.chance == {k: pytest.approx(k / 9) for k in KS}
    assert found.near is None
    assert found.modality_gap == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)))
    distances = [((one - other) ** 2).sum() for one, other in zip(a, b, strict=True)]
    assert found.alignment == pytest.approx(np.mean(distances))
    for rows, value in ((a, found.uniformity_image), (b, found.uniformity_lidar)):
        pairs = [
            math.exp(-2 * ((rows[i] - rows[j]) ** 2).sum())
            for i in range(9)
            for j in range(9)
            if i != j
        ]
        assert value == pytest.approx(math.log(sum(pairs) / len(pairs)))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 10), seed=st.integers(0, 999), tied=st.booleans())
def test_the_order_of_the_pairs_does_not_matter(rows: int, seed: int, tied: bool) -> None:
    image, lidar = (coarse if tied else randn)(2, rows, 3, seed=seed).unbind()
    groups = grouped(rows, 1, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    moved = FrameGroups(groups.sequence[order], groups.position[order], groups.within)
    assert_same(
        retrieval(image, lidar, groups=groups), retrieval(image[order], lidar[order], groups=moved)
    )


def assert_same(one: RetrievalReport, other: RetrievalReport) -> None:
    assert numbers(one) == pytest.approx(numbers(other), abs=1e-9, nan_ok=True)


def numbers(report: RetrievalReport) -> list[float]:
    ways = [report.exact, *([report.near] if report.near else [])]
    return [
        *(value for way in ways for value in way.chance.values()),
        *(
            value
            for way in ways
            for found in (way.image_to_lidar, way.lidar_to_image)
            for value in (*found.recall.values(), found.median_rank, found.mean_reciprocal_rank)
        ),
        report.modality_gap,
        report.alignment,
        report.uniformity_image,
        report.uniformity_lidar,
    ]


def test_perfect_embeddings_of_any_length() -> None:
    rows = randn(20, 6)
    found = retrieval(rows, 3 * rows)
    for way in (found.exact.image_to_lidar, found.exact.lidar_to_image):
        assert way.recall == {1: 1.0, 5: 1.0, 10: 1.0}
        assert way.median_rank == way.mean_reciprocal_rank == 1
    assert found.alignment == pytest.approx(0, abs=1e-12)
    assert found.modality_gap == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equal_embeddings_have_the_middle_rank(dtype: torch.dtype) -> None:
    rows = randn(1, 7).to(dtype).expand(20, -1)
    found = retrieval(rows, rows)
    assert found.exact.image_to_lidar.median_rank == 10.5
    assert found.exact.image_to_lidar.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert found.exact.lidar_to_image.mean_reciprocal_rank == pytest.approx(1 / 10.5)
    assert found.uniformity_image == pytest.approx(0, abs=1e-9)


def test_modalities_that_lie_apart_may_still_find_each_other() -> None:
    image, lidar = randn(2, 30, 5, seed=1).unbind()
    shift = torch.tensor([0, 0, 0, 0, 0, 50.0], dtype=torch.float64)
    apart = torch.cat([image, torch.zeros(30, 1)], 1), torch.cat([image, torch.zeros(30, 1)], 1)
    found = retrieval(apart[0] - shift, apart[1] + shift)
    assert found.modality_gap == pytest.approx(2, abs=0.01)
    assert found.alignment == pytest.approx(4, abs=0.01)
    assert retrieval(image, lidar).modality_gap < 0.6


def test_directions_differ() -> None:
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    lidar = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert partner_ranks(image, lidar).tolist() == [1, 2]
    assert partner_ranks(lidar, image).tolist() == [1.5, 1.5]


def test_a_neighbour_in_time_is_a_hit_and_one_of_another_sequence_is_not() -> None:
    lidar = torch.eye(4)
    image = lidar[[1, 0, 3, 2]]  # each finds its neighbour
    sequence, position = torch.tensor([0, 0, 0, 1]), torch.arange(4)
    found = retrieval(image, lidar, (1,), FrameGroups(sequence, position, 1))
    assert found.exact.image_to_lidar.recall == {1: 0.0}
    assert found.near is not None
    assert found.near.image_to_lidar.recall == {1: 0.5}
    assert found.near.chance == {1: pytest.approx((2 + 3 + 2 + 1) / 16)}


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_chance_near_is_that_of_random_orders(k: int) -> None:
    groups = grouped(8, 1, seed=3)
    hits = torch.from_numpy(slow_hits(8, groups))
    generator, found = torch.Generator().manual_seed(0), 0.0
    for _ in range(3000):
        order = torch.rand(8, 8, generator=generator).argsort(1)
        found += float(hits.gather(1, order)[:, :k].any(1).double().mean()) / 3000
    report = retrieval(randn(8, 2), randn(8, 2), (k,), groups)
    assert report.near is not None
    assert report.near.chance[k] == pytest.approx(found, abs=0.015)


def test_no_neighbours_within_zero_frames_is_exact() -> None:
    image, lidar = randn(2, 12, 4).unbind()
    sequence = torch.zeros(12, dtype=torch.int64)
    found = retrieval(image, lidar, KS, FrameGroups(sequence, torch.arange(12), 0))
    assert found.near is not None
    assert found.near.image_to_lidar == found.exact.image_to_lidar
    assert found.near.lidar_to_image == found.exact.lidar_to_image
    assert found.near.chance == pytest.approx(found.exact.chance)


def test_one_pair() -> None:
    found = retrieval(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert found.count == 1
    assert found.exact.chance == {1: 1.0, 5: 1.0, 10: 1.0}
    assert found.exact.image_to_lidar.recall == {1: 1.0, 5: 1.0, 10: 1.0}
    assert found.alignment == pytest.approx(2)
    assert math.isnan(found.uniformity_image)


def test_no_pair() -> None:
    nobody = torch.zeros(0, dtype=torch.int64)
    found = retrieval(torch.zeros(0, 3), torch.zeros(0, 3), groups=FrameGroups(nobody, nobody, 1))
    assert found.count == 0
    assert all(math.isnan(value) for value in numbers(found))


def test_embeddings_without_a_direction_find_nobody() -> None:
    found = retrieval(torch.zeros(5, 3), randn(5, 3))
    assert found.exact.image_to_lidar.median_rank == 3
    assert found.alignment == pytest.approx(1)


def test_many_rows_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    image, lidar = randn(2, 57, 4).unbind()
    groups = grouped(57, 2)
    whole = retrieval(image, lidar, groups=groups)
    assert uniformity(image / image.norm(dim=1, keepdim=True)) == whole.uniformity_image
    monkeypatch.setattr(module, "ENTRIES", 57 * 10)
    assert_same(whole, retrieval(image, lidar, groups=groups))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    image, lidar = randn(2, 4, 3).unbind()
    image[2, 1] = value
    with pytest.raises(DataError, match="1 of 4 embeddings are not finite") as caught:
        retrieval(image, lidar)
    assert caught.value.field == "image"


def test_shapes_must_fit() -> None:
    with pytest.raises(DataError, match="embeddings for"):
        retrieval(randn(4, 3), randn(5, 3))
    with pytest.raises(DataError, match="for 4 pairs") as caught:
        retrieval(randn(4, 3), randn(4, 3), groups=grouped(3, 1))
    assert caught.value.field == "groups"
