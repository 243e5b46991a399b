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
    if query_batch is None or source_batch is None:
        return _columns(_of_frame(queries, sources, radius, limit))
    pairs = [queries.new_empty((0, 2), dtype=torch.int64)]
    for mine, theirs in _frames(query_batch, source_batch):
        found = _of_frame(queries[mine], sources[theirs], radius, limit)
        pairs.append(torch.stack([mine[found[:, 0]], theirs[found[:, 1]]], 1))
    joined = torch.cat(pairs)
    return _columns(joined[joined[:, 0].argsort(stable=True)])


def _columns(pairs: Tensor) -> tuple[Tensor, Tensor]:
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()


def _frames(query_batch: Tensor, source_batch: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the queries and of the sources of every frame that has both."""
    for frame in torch.unique(query_batch):
        yield (query_batch == frame).nonzero()[:, 0], (source_batch == frame).nonzero()[:, 0]


def _of_frame(queries: Tensor, sources: Tensor, radius: float, limit: int | None) -> Tensor:
    """(P, 2) pairs of one frame, sorted by (query, source)."""
    waiting = torch.arange(len(queries), device=queries.device)
    missing = torch.full_like(waiting, len(sources) if limit is None else limit)
    size = len(sources) if limit is None else max(_SMALLEST, len(sources) // 32)
    start, parts = 0, [waiting.new_empty(0, 2)]
    while start < len(sources) and len(waiting):
        some = queries.index_select(0, waiting)
        query, source = _near(some, sources[start : start + size], radius).unbind(1)
        counts = torch.bincount(query, minlength=len(waiting))
        place = torch.arange(len(query), device=query.device)
        place -= (counts.cumsum(0) - counts).index_select(0, query)
        asked = (place < missing.index_select(0, query)).nonzero()[:, 0]
        query, source = query.index_select(0, asked), source.index_select(0, asked) + start
        parts.append(torch.stack([waiting.index_select(0, query), source], 1))
        missing -= counts
        waiting, missing = waiting[missing > 0], missing[missing > 0]
        start, size = start + size, 2 * size
    joined = torch.cat(parts)
    return joined.index_select(0, joined[:, 0].argsort(stable=True))


def _near(queries: Tensor, sources: Tensor, radius: float) -> Tensor:
    """(P, 2) all pairs closer than ``radius``, sorted by (query, source)."""
    if queries.device.type != "cpu":
        return _near_on_device(queries, sources, radius)
    query, source = _by_trees(queries, sources, radius)
    gap = queries.index_select(0, query) - sources.index_select(0, source)
    near = gap.square().sum(1) < radius**2
    keys = torch.where(near, query * len(sources) + source, -1).sort().values
    keys = keys[torch.searchsorted(keys, 0) :]
    query = keys // len(sources)
    return torch.stack([query, keys - query * len(sources)], 1)


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


def _by_trees(queries: Tensor, sources: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Query and source of all pairs that near, and perhaps of some a rounding error farther."""
    trees = [
        cKDTree(places.numpy(), balanced_tree=False, compact_nodes=False)
        for places in (queries, sources)
    ]
    # Of the ways to search pairs this one alone makes no Python list of each query.
    found = trees[0].sparse_distance_matrix(trees[1], radius * (1 + 1e-9), output_type="ndarray")
    query, source = (np.ascontiguousarray(found[name], np.int64) for name in ("i", "j"))
    return torch.from_numpy(query), torch.from_numpy(source)
