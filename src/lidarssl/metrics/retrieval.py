"""How well whole images and whole scans find each other, and how their embeddings lie.

Of N pairs of unit rows a_i (image) and b_i (lidar). The rank of a partner is 1 + the candidates
that are more similar to the query than it is + half of those that are exactly as similar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import DataError

TIE = 1e-9
"""Cosines closer than this are equal: rounding alone would decide between them."""
ENTRIES = 2**22
"""Similarities that are held at once; bounds the memory whatever the number of pairs."""


@dataclass(frozen=True)
class Retrieval:
    """How well queries find their partners among N candidates; NaN without a pair.

    Attributes:
        recall: k -> share of queries whose partner ranks at most k.
        median_rank, mean_reciprocal_rank: of the partner; 1 is best.
    """

    recall: dict[int, float]
    median_rank: float
    mean_reciprocal_rank: float


@dataclass(frozen=True)
class FrameGroups:
    """Which frames are as good an answer as the partner itself: its neighbours in time.

    Attributes:
        sequence: (N,) int64, number of the recording.
        position: (N,) int64, number of the frame in it.
        within: largest difference of positions that counts as a hit.
    """

    sequence: Tensor
    position: Tensor
    within: int


@dataclass(frozen=True)
class Directions:
    """Retrieval both ways.

    Attributes:
        chance: k -> recall of a random order of the candidates.
        image_to_lidar: images are the queries.
        lidar_to_image: scans are the queries.
    """

    chance: dict[int, float]
    image_to_lidar: Retrieval
    lidar_to_image: Retrieval


@dataclass(frozen=True)
class RetrievalReport:
    """What is said of N pairs; NaN where there are too few for it.

    Attributes:
        count: N, on which recall depends.
        exact: only the partner is a hit.
        near: a frame near the partner in the same recording is a hit too; None when not asked.
        modality_gap: |mean a - mean b|, from 0 to 2.
        alignment: mean |a_i - b_i|^2, from 0 (equal) to 4; 2 where they are orthogonal.
        uniformity_image, uniformity_lidar: log of the mean of exp(-2 |a_i - a_j|^2) over all i
            other than j, from 0 (all rows equal) down to about -4 (spread evenly).
    """

    count: int
    exact: Directions
    near: Directions | None
    modality_gap: float
    alignment: float
    uniformity_image: float
    uniformity_lidar: float


def retrieval(
    image: Tensor,
    lidar: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    groups: FrameGroups | None = None,
) -> RetrievalReport:
    """Retrieval by cosine and the geometry of paired embeddings.

    Source: alignment and uniformity of Wang and Isola (2020); modality gap of Liang et al. (2022).

    Args:
        image, lidar: (N, D), of any length; row i of one belongs to row i of the other.
        ks: ranks at which recall is taken.
        groups: of the rows, for ``near``.

    Raises:
        DataError: shapes that do not fit together, or an embedding that is not finite.
    """
    _check(image, lidar, groups)
    a, b = _unit(image), _unit(lidar)
    count = len(a)
    return RetrievalReport(
        count=count,
        exact=_directions(a, b, ks, None, count),
        near=None if groups is None else _directions(a, b, ks, groups, count),
        modality_gap=float((a.mean(0) - b.mean(0)).norm()) if count else math.nan,
        alignment=_mean((a - b).square().sum(1)),
        uniformity_image=uniformity(a),
        uniformity_lidar=uniformity(b),
    )


def partner_ranks(
    queries: Tensor,
    candidates: Tensor,
    groups: FrameGroups | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Rank of each query's partner by cosine; with groups, that of the best frame near it.

    Args:
        queries, candidates: (N, D), of any length.
        groups: of the rows; None = the partner alone is a hit.
        chunk: queries compared at once; None = as many as fit ``ENTRIES``.

    Returns:
        (N,) float64 in [1, N].
    """
    queries, candidates = _unit(queries), _unit(candidates)
    ranks = [queries.new_empty(0)]
    for rows in _chunks(len(queries), chunk):
        cosine = queries[rows] @ candidates.T
        hits = _hits(rows, len(candidates), groups, cosine.device)
        best = cosine.masked_fill(~hits, -torch.inf).amax(1, keepdim=True)
        above = (cosine - best).masked_fill(hits, -torch.inf)
        ties = (above.abs() <= TIE).sum(1)
        ranks.append(1 + (above > TIE).sum(1) + ties.double() / 2)
    return torch.cat(ranks)


def uniformity(rows: Tensor, chunk: int | None = None) -> float:
    """Log of the mean of exp(-2 |a_i - a_j|^2) over all pairs of different rows.

    Args:
        rows: (N, D) of unit length.
        chunk: rows compared at once; None = as many as fit ``ENTRIES``.

    Returns:
        NaN with fewer than two rows.
    """
    rows, count = rows.double(), len(rows)
    if count < 2:
        return math.nan
    length = rows.square().sum(1)
    total = 0.0
    for part in _chunks(count, chunk):
        squared = length[part, None] + length - 2 * rows[part] @ rows.T
        near = torch.exp(-2 * squared.clamp_min(0))
        near.diagonal(part.start).zero_()
        total += float(near.sum())
    return math.log(total / (count * (count - 1)))


def _directions(
    a: Tensor, b: Tensor, ks: Sequence[int], groups: FrameGroups | None, count: int
) -> Directions:
    return Directions(
        _chance(ks, groups, count),
        _summary(partner_ranks(a, b, groups), ks),
        _summary(partner_ranks(b, a, groups), ks),
    )


def _summary(ranks: Tensor, ks: Sequence[int]) -> Retrieval:
    return Retrieval(
        recall={k: _mean((ranks <= k).double()) for k in ks},
        median_rank=float(ranks.quantile(0.5)) if len(ranks) else math.nan,
        mean_reciprocal_rank=_mean(1 / ranks),
    )


def _chance(ks: Sequence[int], groups: FrameGroups | None, count: int) -> dict[int, float]:
    """Share of random orders with a hit among the first k, by the number of hits of a query."""
    if groups is None:
        return {k: min(k / count, 1.0) if count else math.nan for k in ks}
    hits = [
        _hits(rows, count, groups, groups.sequence.device).sum(1) for rows in _chunks(count, None)
    ]
    missing = count - torch.cat([groups.sequence.new_empty(0), *hits]).double()
    return {k: _mean(1 - _no_hit(missing, k, count)) for k in ks}


def _no_hit(missing: Tensor, k: int, count: int) -> Tensor:
    """Probability that k of ``count`` candidates, drawn without return, are all misses."""
    probability = torch.ones_like(missing)
    for drawn in range(min(k, count)):
        probability = probability * (missing - drawn).clamp_min(0) / (count - drawn)
    return probability


def _hits(rows: slice, count: int, groups: FrameGroups | None, device: torch.device) -> Tensor:
    """(rows, count) bool, which candidates answer which query."""
    if groups is None:
        return torch.arange(rows.start, rows.stop, device=device)[:, None] == torch.arange(
            count, device=device
        )
    sequence, position = groups.sequence.to(device), groups.position.to(device)
    near = (position[rows, None] - position).abs() <= groups.within
    return near & (sequence[rows, None] == sequence)


def _chunks(count: int, chunk: int | None) -> list[slice]:
    size = chunk or max(1, ENTRIES // max(count, 1))
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.detach().double(), dim=1)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan


def _check(image: Tensor, lidar: Tensor, groups: FrameGroups | None) -> None:
    if image.ndim != 2 or image.shape != lidar.shape:
        raise DataError(
            f"{tuple(image.shape)} image embeddings for {tuple(lidar.shape)} of the lidar",
            field="pairs",
        )
    checked: tuple[tuple[str, Tensor], ...] = (("image", image), ("lidar", lidar))
    for name, rows in checked:
        if not bool(rows.isfinite().all()):
            raise DataError(
                f"{int((~rows.isfinite()).any(1).sum())} of {len(rows)} embeddings are not finite",
                field=name,
                remedy="the training has diverged: lower training.optimizer.lr",
            )
    if groups is not None and not len(groups.sequence) == len(groups.position) == len(image):
        raise DataError(
            f"{len(groups.sequence)} sequences and {len(groups.position)} positions "
            f"for {len(image)} pairs",
            field="groups",
        )
