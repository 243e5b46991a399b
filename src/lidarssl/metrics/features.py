"""What features look like without labels: collapse, spread, cross-modal retrieval."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Retrieval:
    """How well a query finds its partner among N candidates; chance recall is k / N.

    Attributes:
        recall: k -> fraction of queries whose partner ranks at most k.
        median_rank, mean_reciprocal_rank: of the partner; 1 is best.
        count: N, on which recall depends.
    """

    recall: dict[int, float]
    median_rank: float
    mean_reciprocal_rank: float
    count: int


def retrieval(queries: Tensor, candidates: Tensor, ks: Sequence[int] = (1, 5, 10)) -> Retrieval:
    """Retrieval by cosine of paired embeddings, from queries to candidates.

    Args:
        queries, candidates: (N, C), N >= 1; row i of one belongs to row i of the other.
        ks: ranks at which recall is taken.
    """
    ranks = match_ranks(queries, candidates)
    return Retrieval(
        recall={k: float((ranks <= k).double().mean()) for k in ks},
        median_rank=float(ranks.quantile(0.5)),
        mean_reciprocal_rank=float((1 / ranks).mean()),
        count=ranks.shape[0],
    )


def match_ranks(
    queries: Tensor, candidates: Tensor, tie: float = 1e-9, chunk: int = 4096
) -> Tensor:
    """Rank of each query's partner by cosine: 1 + candidates above it + half of its ties.

    Args:
        queries, candidates: (N, C).
        tie: cosines closer than this are equal.
        chunk: queries compared at once; bounds the memory to chunk x N.

    Returns:
        (N,) float64 in [1, N].
    """
    queries = F.normalize(queries.detach().double(), dim=1)
    candidates = F.normalize(candidates.detach().double(), dim=1)
    ranks = [queries.new_empty(0)]
    for first in range(0, queries.shape[0], chunk):
        cosine = queries[first : first + chunk] @ candidates.T
        above = cosine - cosine.diagonal(first)[:, None]
        ties = (above.abs() <= tie).sum(1) - 1
        ranks.append(1 + (above > tie).sum(1) + ties / 2)
    return torch.cat(ranks)
