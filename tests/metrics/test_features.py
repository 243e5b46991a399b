from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.metrics.features import (
    effective_rank,
    feature_statistics,
    match_ranks,
    mean_cosine,
    retrieval,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(50, 6), (6, 50)])
def test_effective_rank_equals_singular_values(shape: tuple[int, int]) -> None:
    features = randn(*shape)
    p = torch.linalg.svdvals(features)
    p = p / p.sum()
    assert effective_rank(features) == pytest.approx(float(torch.exp(-(p * p.log()).sum())))


def test_effective_rank_of_known_matrices() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7)
    assert effective_rank(randn(100, 1) @ randn(1, 9)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(4, 3)) == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.inf]])))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 12), channels=st.integers(1, 5), seed=st.integers(0, 999))
def test_mean_cosine_equals_pairs(rows: int, channels: int, seed: int) -> None:
    features = randn(rows, channels, seed=seed)
    pairs = [
        float(torch.cosine_similarity(features[i], features[j], dim=0))
        for i in range(rows)
        for j in range(rows)
        if i != j
    ]
    assert mean_cosine(features) == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)


def test_statistics_tell_collapse() -> None:
    healthy = feature_statistics(randn(500, 8))
    collapsed = feature_statistics(torch.ones(500, 8))
    assert healthy.effective_rank > 7.5
    assert abs(healthy.mean_cosine) < 0.05
    assert healthy.std.tolist() == pytest.approx([1] * 8, rel=0.15)
    assert collapsed.effective_rank == pytest.approx(1, abs=1e-3)
    assert collapsed.mean_cosine == pytest.approx(1)
    assert collapsed.std.tolist() == [0] * 8


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 12), chunk=st.integers(1, 5), seed=st.integers(0, 999))
def test_ranks_equal_sorting(rows: int, chunk: int, seed: int) -> None:
    queries, candidates = randn(2, rows, 4, seed=seed).unbind()
    ranks = match_ranks(queries, candidates, chunk=chunk)
    for i in range(rows):
        cosines = torch.cosine_similarity(queries[i : i + 1], candidates)
        order = cosines.argsort(descending=True).tolist()
        assert float(ranks[i]) == 1 + order.index(i)


def test_retrieval_of_perfect_and_collapsed_embeddings() -> None:
    rows = randn(20, 6)
    perfect = retrieval(rows, 3 * rows)
    assert perfect.recall == {1: 1.0, 5: 1.0, 10: 1.0}
    assert perfect.mean_reciprocal_rank == 1
    collapsed = retrieval(torch.ones(20, 6), torch.ones(20, 6))
    assert collapsed.median_rank == 10.5
    assert collapsed.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert collapsed.count == 20


def test_retrieval_is_directed() -> None:
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert match_ranks(queries, candidates).tolist() == [1, 2]
    assert match_ranks(candidates, queries).tolist() == [1.5, 1.5]
