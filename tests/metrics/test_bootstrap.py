from __future__ import annotations

import math

import pytest
import torch

from lidarssl.metrics.bootstrap import bootstrap_interval, summarise_seeds


def test_known_t_interval() -> None:
    """Three seeds: t(2, 0.975) = 4.302653."""
    summary = summarise_seeds([1.0, 2.0, 3.0])
    assert summary.mean == 2
    assert summary.std == 1
    assert summary.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2 - summary.low == pytest.approx(summary.high - 2)


def test_one_seed_has_no_interval() -> None:
    summary = summarise_seeds([0.4])
    assert summary.mean == pytest.approx(0.4)
    assert all(math.isnan(value) for value in (summary.std, summary.low, summary.high))


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = torch.randn(1500, 4, generator=torch.Generator().manual_seed(0)).tolist()
    inside = [s.low <= 0 <= s.high for s in (summarise_seeds(d, 0.9) for d in draws)]
    assert sum(inside) / len(inside) == pytest.approx(0.9, abs=0.025)


def test_bootstrap_agrees_with_t_on_many_scores() -> None:
    scores = torch.randn(400, generator=torch.Generator().manual_seed(1)).tolist()
    low, high = bootstrap_interval(scores, torch.Generator().manual_seed(2))
    summary = summarise_seeds(scores)
    assert (low, high) == pytest.approx((summary.low, summary.high), abs=0.01)
    again = bootstrap_interval(scores, torch.Generator().manual_seed(2))
    assert again == (low, high)


@pytest.mark.parametrize(("scores", "confidence"), [([], 0.95), ([1.0], 0.0), ([1.0], 1.0)])
def test_refuses(scores: list[float], confidence: float) -> None:
    with pytest.raises(ValueError, match=r"scores|confidence"):
        summarise_seeds(scores, confidence)
