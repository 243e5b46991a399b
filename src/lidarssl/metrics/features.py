"""What features look like without labels: collapse and spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FeatureStatistics:
    """Signs of collapse of (N, C) features.

    Attributes:
        effective_rank: exp of the entropy of the normalised singular values (Roy & Vetterli,
            2007), from 1 (all rows parallel) to min(N, C); 0 when all features are zero.
        std: (C,) standard deviation of each dimension.
        mean_cosine: mean cosine of two different rows, 1 when all point one way.
    """

    effective_rank: float
    std: Tensor
    mean_cosine: float


def feature_statistics(features: Tensor) -> FeatureStatistics:
    """Statistics of (N, C) features, N >= 2; NaN when a feature is not finite."""
    features = features.detach().double()
    return FeatureStatistics(
        effective_rank(features), features.std(dim=0, correction=0), mean_cosine(features)
    )


def effective_rank(features: Tensor) -> float:
    """exp(-sum p log p) of the singular values p of (N, C) features, scaled to sum 1."""
    features = features.detach().double()
    if not bool(features.isfinite().all()):
        return float("nan")
    tall = features if features.shape[0] >= features.shape[1] else features.T
    singular = torch.linalg.eigvalsh(tall.T @ tall).clamp_min(0).sqrt()
    if not bool(singular.sum() > 0):
        return 0.0
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def mean_cosine(features: Tensor) -> float:
    """Mean cosine over all pairs of different rows of (N, C) features, in O(N C)."""
    unit = F.normalize(features.detach().double(), dim=1)
    count = unit.shape[0]
    pairs = unit.sum(0).square().sum() - unit.square().sum()
    return float(pairs / (count * (count - 1))) if count > 1 else float("nan")
