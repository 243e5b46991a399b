"""A fixed number of nearest points of each point, as a table: what grid-free networks gather by.

Unlike ``neighbours`` it does not order equal distances, which lets it be several times faster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

_CHUNK = 2**24


def nearest_table(queries: Tensor, sources: Tensor, k: int) -> Tensor:
    """Rows of the ``k`` nearest sources of each query, nearest first.

    Args:
        queries: (Q, 3) m, finite.
        sources: (S, 3) m, finite, on the same device.
        k: number of neighbours.

    Returns:
        (Q, k) int64; -1 beyond the number of sources.
    """
    found = min(k, len(sources))
    if found == 0 or len(queries) == 0:
        return torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)
    search = _by_tree if queries.device.type == "cpu" else _by_brute_force
    return F.pad(search(queries, sources, found), (0, k - found), value=-1)


def neighbour_table(points: Tensor, k: int) -> Tensor:
    """Rows of the ``k`` points nearest to each point but itself, nearest first.

    Args:
        points: (N, 3) m, finite.
        k: number of neighbours.

    Returns:
        (N, k) int64; the point itself where there are fewer others.
    """
    itself = torch.arange(len(points), device=points.device)[:, None]
    table = nearest_table(points, points, k + 1)
    if len(points) <= k:
        table = torch.where(table < 0, itself, table)
    # A point at the same place may come first.
    late = (table[:, :1] != itself)[:, 0]
    if bool(late.any()):
        own = (table[late] == itself[late]).to(torch.int8)
        others = torch.ones_like(own).scatter_(1, own.argmax(dim=1, keepdim=True), 0)
        table[late] = table[late].gather(1, others.argsort(dim=1, stable=True))
    return table[:, 1:]


def _by_tree(queries: Tensor, sources: Tensor, k: int) -> Tensor:
    tree = cKDTree(sources.numpy(), leafsize=16, balanced_tree=False)
    return torch.from_numpy(tree.query(queries.numpy(), [*range(1, k + 1)])[1])


def _by_brute_force(queries: Tensor, sources: Tensor, k: int) -> Tensor:
    parts = []
    for some in queries.split(max(1, _CHUNK // len(sources))):
        # Not the expanded square, which cancels for points far from the origin.
        distance = torch.cdist(some, sources, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(distance.topk(k, dim=1, largest=False).indices)
    return torch.cat(parts)
