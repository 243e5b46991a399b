from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.metrics.features import (
    effective_rank,
    feature_statistics,
    mean_cosine,
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
