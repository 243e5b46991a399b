"""Nearest neighbours of points, by frame of a batch.

Neighbours are ordered by distance, equal distances by index, whatever computes them: a k-d tree
on the CPU, chunks of all distances elsewhere. Distances are float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from lidarssl.errors import ConfigError, DataError

_CHUNK = 2**24


class Neighbours(NamedTuple):
    """Pairs of a query and a source near it, sorted by (query, distance, source).

    Attributes:
        query, source: (P,) int64.
        distance: (P,) float64 m.
    """

    query: Tensor
    source: Tensor
    distance: Tensor


def nearest(
    queries: Tensor,
    sources: Tensor,
    k: int,
    query_batch: Tensor | None = None,
    source_batch: Tensor | None = None,
) -> Neighbours:
    """The ``k`` nearest sources of each query; fewer where its frame has fewer.

    Args:
        queries: (Q, D) m.
        sources: (S, D) m, on the same device.
        k: number of neighbours.
        query_batch, source_batch: (Q,), (S,) int64 frame of each row; None = one frame.

    Raises:
        ConfigError: ``k`` < 1.
        DataError: coordinates that are not finite.
    """
    if k < 1:
        raise ConfigError(f"cannot search {k} neighbours", field="k")
    return _by_frame(queries, sources, query_batch, source_batch, k=k, radius=None)


def within_radius(
    queries: Tensor,
    sources: Tensor,
    radius: float,
    query_batch: Tensor | None = None,
    source_batch: Tensor | None = None,
) -> Neighbours:
    """All sources at most ``radius`` m from each query; arguments as ``nearest``.

    Raises:
        ConfigError: the radius is not positive and finite.
        DataError: coordinates that are not finite.
    """
    if not 0 < radius < float("inf"):
        raise ConfigError(f"radius {radius} is not positive and finite", field="radius")
    return _by_frame(queries, sources, query_batch, source_batch, k=None, radius=radius)


def _by_frame(
    queries: Tensor,
    sources: Tensor,
    query_batch: Tensor | None,
    source_batch: Tensor | None,
    k: int | None,
    radius: float | None,
) -> Neighbours:
    if (query_batch is None) != (source_batch is None):
        raise ConfigError("give the frame of queries and sources, or of neither", field="batch")
    if not bool(torch.isfinite(queries).all() and torch.isfinite(sources).all()):
        raise DataError("coordinates are not finite", field="points")
    queries, sources = queries.detach().double(), sources.detach().double()
    if query_batch is None or source_batch is None:
        return _search(queries, sources, k, radius)
    parts = []
    for frame in torch.unique(query_batch):
        mine = (query_batch == frame).nonzero()[:, 0]
        theirs = (source_batch == frame).nonzero()[:, 0]
        found = _search(queries[mine], sources[theirs], k, radius)
        parts.append(Neighbours(mine[found.query], theirs[found.source], found.distance))
    if not parts:
        return _search(queries, sources, k, radius)
    joined = Neighbours(*(torch.cat(column) for column in zip(*parts, strict=True)))
    order = joined.query.argsort(stable=True)
    return Neighbours(*(column[order] for column in joined))


def _search(queries: Tensor, sources: Tensor, k: int | None, radius: float | None) -> Neighbours:
    if len(queries) == 0 or len(sources) == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=queries.device)
        return Neighbours(empty, empty.clone(), queries.new_zeros(0))
    if queries.device.type == "cpu":
        candidates = _by_tree(queries, sources, k, radius)
    else:
        candidates = _by_brute_force(queries, sources, k, radius)
    return _sorted(queries, sources, candidates, k, radius)


def _by_tree(queries: Tensor, sources: Tensor, k: int | None, radius: float | None) -> Tensor:
    """(P, 2) query and source: every pair of the answer, perhaps a few more."""
    tree = cKDTree(sources.numpy())
    reach: Any = radius
    if k is not None:
        # The tree breaks ties as it likes: take all sources as near as the k-th.
        reach = tree.query(queries.numpy(), [min(k, len(sources))])[0][:, 0]
    found = tree.query_ball_point(queries.numpy(), _a_bit_more(reach))
    counts = torch.tensor([len(sources_of_query) for sources_of_query in found])
    source = np.concatenate([np.asarray(part, dtype=np.int64) for part in found])
    query = torch.repeat_interleave(torch.arange(len(queries)), counts)
    return torch.stack([query, torch.from_numpy(source)], 1)


def _by_brute_force(
    queries: Tensor, sources: Tensor, k: int | None, radius: float | None
) -> Tensor:
    """As ``_by_tree``, on any device."""
    rows = max(1, _CHUNK // len(sources))
    parts = []
    for first in range(0, len(queries), rows):
        # Differences, not the expanded square, which cancels for points far from the origin.
        distance = _pair_distance(queries[first : first + rows, None], sources)
        reach: Any = radius
        if k is not None:
            reach = distance.kthvalue(min(k, len(sources)), dim=1, keepdim=True)[0]
        pairs = (distance <= _a_bit_more(reach)).nonzero()
        pairs[:, 0] += first
        parts.append(pairs)
    return torch.cat(parts)


def _a_bit_more(reach: Any) -> Any:
    """Room for distances that are rounded in another order; ``_sorted`` is exact."""
    return reach * (1 + 1e-9) + 1e-12


def _pair_distance(a: Tensor, b: Tensor) -> Tensor:
    total = (a[..., 0] - b[..., 0]) ** 2
    for axis in range(1, a.shape[-1]):
        total = total + (a[..., axis] - b[..., axis]) ** 2
    return total.sqrt()


def _sorted(
    queries: Tensor, sources: Tensor, pairs: Tensor, k: int | None, radius: float | None
) -> Neighbours:
    query, source = pairs.unbind(1)
    distance = _pair_distance(queries[query], sources[source])
    order = source.argsort()
    for key in (distance, query):
        order = order[key[order].argsort(stable=True)]
    query, source, distance = query[order], source[order], distance[order]
    if k is None:
        assert radius is not None
        kept = distance <= radius
    else:
        counts = torch.bincount(query, minlength=len(queries))
        place = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        kept = place < k
    return Neighbours(query[kept], source[kept], distance[kept])
