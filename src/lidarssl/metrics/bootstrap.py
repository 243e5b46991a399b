"""A score over seeds: mean, spread and confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SeedSummary:
    """A score over ``count`` seeds.

    Attributes:
        mean: of the seeds.
        std: sample standard deviation; NaN with one seed.
        low, high: confidence interval of the mean; NaN with one seed.
        count: number of seeds.
    """

    mean: float
    std: float
    low: float
    high: float
    count: int


def summarise_seeds(scores: Sequence[float], confidence: float = 0.95) -> SeedSummary:
    """Mean, spread and Student-t interval, which unlike the bootstrap is honest for 2-5 seeds.

    Args:
        scores: one per seed; to judge a gain, pass the differences of paired seeds.
        confidence: probability that the interval covers the mean of normal scores.

    Raises:
        ValueError: no score, or confidence outside (0, 1).
    """
    values = _checked(scores, confidence)
    count, mean = len(values), float(values.mean())
    if count == 1:
        return SeedSummary(mean, math.nan, math.nan, math.nan, count)
    from scipy.special import stdtrit

    std = float(values.std())
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * std / math.sqrt(count)
    return SeedSummary(mean, std, mean - half, mean + half, count)


def bootstrap_interval(
    scores: Sequence[float],
    generator: torch.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile interval of the mean of scores drawn with replacement (Efron, 1979).

    Meant for many scores (one per frame, say); with few seeds use :func:`summarise_seeds`.

    Args:
        scores: S values.
        generator: CPU generator of the draws.

    Returns:
        (low, high).

    Raises:
        ValueError: no score, or confidence outside (0, 1).
    """
    values = _checked(scores, confidence)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
    means = values[drawn].mean(dim=1)
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def _checked(scores: Sequence[float], confidence: float) -> torch.Tensor:
    if not scores:
        raise ValueError("no scores to summarise")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return torch.tensor(scores, dtype=torch.float64)
