"""Sources inside a ball around each query, at most a given number of them.

Unlike ``neighbours.within_radius`` the ball is open, and ``limit`` keeps the sources that come
first in the order of their rows. When that order is random, so is the choice; and it is cheap:
sources are searched in chunks that double, and a query that has enough is not asked again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from lidarssl.errors import ConfigError, DataError

_CHUNK = 2**24
_SMALLEST = 2048


def ball_pairs(
    queries: Tensor,
    sources: Tensor,
    radius: float,
    limit: int | None = None,
    query_batch: Tensor | None = None,
    source_batch: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Pairs of a query and a source less than ``radius`` m away.

    Args:
        queries: (Q, D) m.
        sources: (S, D) m, on the same device.
        radius: m.
        limit: sources of a query, the first in row order; None = all.
        query_batch, source_batch: (Q,), (S,) int64 frame of each row; None = one frame.

    Returns:
        query and source, (P,) int64 each, sorted by (query, source).

    Raises:
        ConfigError: a radius or limit that is not positive.
        DataError: coordinates that are not finite.
    """
    if not 0 < radius < float("inf"):
        raise ConfigError(f"radius {radius} is not positive and finite", field="radius")
    if limit is not None and limit < 1:
        raise ConfigError(f"a limit of {limit} neighbours", field="limit", remedy="give 1 or more")
    if not bool(torch.isfinite(queries).all() and torch.isfinite(sources).all()):
        raise DataError("coordinates are not finite", field="points")
    queries, sources = queries.detach().double(), sources.detach().double()
    pairs = [queries.new_empty((0, 2), dtype=torch.int64)]
    for mine, theirs in _frames(queries, sources, query_batch, source_batch):
        found = _of_frame(queries[mine], sources[theirs], radius, limit)
        pairs.append(torch.stack([mine[found[:, 0]], theirs[found[:, 1]]], 1))
    joined = torch.cat(pairs)
    order = joined[:, 0].argsort(stable=True)
    return joined[order, 0], joined[order, 1]


def _frames(
    queries: Tensor, sources: Tensor, query_batch: Tensor | None, source_batch: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the queries and of the sources of every frame that has both."""
    if query_batch is None or source_batch is None:
        rows = torch.arange(len(queries), device=queries.device)
        yield rows, torch.arange(len(sources), device=queries.device)
        return
    for frame in torch.unique(query_batch):
        yield (query_batch == frame).nonzero()[:, 0], (source_batch == frame).nonzero()[:, 0]


def _of_frame(queries: Tensor, sources: Tensor, radius: float, limit: int | None) -> Tensor:
    """(P, 2) pairs of one frame, sorted by (query, source)."""
    waiting = torch.arange(len(queries), device=queries.device)
    missing = torch.full_like(waiting, len(sources) if limit is None else limit)
    size = len(sources) if limit is None else max(_SMALLEST, len(sources) // 32)
    start, parts = 0, [waiting.new_empty(0, 2)]
    while start < len(sources) and len(waiting):
        pairs = _near(queries[waiting], sources[start : start + size], radius)
        counts = torch.bincount(pairs[:, 0], minlength=len(waiting))
        place = torch.arange(len(pairs), device=pairs.device)
        place = place - (counts.cumsum(0) - counts)[pairs[:, 0]]
        pairs = pairs[place < missing[waiting[pairs[:, 0]]]]
        parts.append(torch.stack([waiting[pairs[:, 0]], pairs[:, 1] + start], 1))
        missing[waiting] -= counts
        waiting = waiting[missing[waiting] > 0]
        start, size = start + size, 2 * size
    joined = torch.cat(parts)
    return joined[joined[:, 0].argsort(stable=True)]


def _near(queries: Tensor, sources: Tensor, radius: float) -> Tensor:
    """(P, 2) all pairs closer than ``radius``, sorted by (query, source)."""
    if queries.device.type != "cpu":
        return _near_on_device(queries, sources, radius)
    pairs = _by_tree(queries, sources, radius)
    near = (queries[pairs[:, 0]] - sources[pairs[:, 1]]).square().sum(1) < radius**2
    return pairs[near]


def _near_on_device(queries: Tensor, sources: Tensor, radius: float) -> Tensor:
    """As ``_near``, by all distances, chunk by chunk."""
    rows, parts = max(1, _CHUNK // len(sources)), []
    for first in range(0, len(queries), rows):
        square = queries.new_zeros(())
        for axis in range(queries.shape[1]):
            square = square + (queries[first : first + rows, None, axis] - sources[:, axis]) ** 2
        pairs = (square < radius**2).nonzero()
        pairs[:, 0] += first
        parts.append(pairs)
    return torch.cat(parts)


def _by_tree(queries: Tensor, sources: Tensor, radius: float) -> Tensor:
    """As ``_near``, perhaps with pairs a rounding error too far apart."""
    tree = cKDTree(sources.numpy(), balanced_tree=False, compact_nodes=False)
    found = tree.query_ball_point(queries.numpy(), radius * (1 + 1e-9), return_sorted=True)
    counts = torch.tensor([len(of_query) for of_query in found])
    source = np.concatenate([np.asarray(part, dtype=np.int64) for part in found])
    query = torch.repeat_interleave(torch.arange(len(queries)), counts)
    return torch.stack([query, torch.from_numpy(source)], 1)
