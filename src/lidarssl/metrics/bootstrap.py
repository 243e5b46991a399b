"""A score over seeds or over frames: mean, spread and confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
    return percentiles(means, confidence)


def frame_draws(frames: int, resamples: int, generator: torch.Generator) -> Tensor:
    """How often each frame is in each of several sets drawn with replacement (Efron, 1979).

    Args:
        frames: how many there are, and in each set.
        generator: CPU generator of the draws.

    Returns:
        (resamples, frames) float64, rows that sum to ``frames``.
    """
    drawn = torch.randint(frames, (resamples, frames), generator=generator)
    counts = torch.zeros(resamples, frames, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def resampled_miou(matrices: Tensor, draws: Tensor) -> Tensor:
    """mIoU (variant ``nan``, class 0 ignored) of sets of frames.

    Args:
        matrices: (F, C, C) confusion matrix of each frame, rows truth.
        draws: (R, F) how often each frame counts.

    Returns:
        (R,) float64 in [0, 1]; NaN for a set without a labelled pixel.
    """
    counts, draws = matrices.double(), draws.double()
    hits = draws @ counts.diagonal(dim1=1, dim2=2)[:, 1:]
    truth = draws @ counts[:, 1:].sum(2)
    predicted = draws @ counts[:, 1:, 1:].sum(1)
    return (hits / (truth + predicted - hits)).nanmean(1)


def percentiles(values: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """The middle ``confidence`` of resampled scores (R,), NaN left out; NaN where all are."""
    tail = (1 - confidence) / 2
    edges = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = values.double().nanquantile(edges).tolist()
    return low, high


def _checked(scores: Sequence[float], confidence: float) -> Tensor:
    if not scores:
        raise ValueError("no scores to summarise")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    return torch.tensor(scores, dtype=torch.float64)
