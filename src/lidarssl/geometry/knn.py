"""A fixed number of nearest points of each point, as a table: what grid-free networks gather by.

Unlike ``neighbours`` it does not order equal distances, which lets it be several times faster.
"""

from __future__ import annotations

import torch
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
    table = torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)
    if found == 0 or len(queries) == 0:
        return table
    if queries.device.type == "cpu":
        tree = cKDTree(sources.numpy(), balanced_tree=False, compact_nodes=False)
        rows = tree.query(queries.numpy(), [*range(1, found + 1)])[1]
        table[:, :found] = torch.from_numpy(rows)
        return table
    step = max(1, _CHUNK // len(sources))
    for first in range(0, len(queries), step):
        # Not the expanded square, which cancels for points far from the origin.
        distance = torch.cdist(
            queries[first : first + step], sources, compute_mode="donot_use_mm_for_euclid_dist"
        )
        nearest = distance.topk(found, dim=1, largest=False).indices
        table[first : first + step, :found] = nearest
    return table


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
    table = torch.where(table < 0, itself, table)
    # A point at the same place may come first.
    late = (table[:, :1] != itself)[:, 0]
    if bool(late.any()):
        others = (table[late] != itself[late]).to(torch.int8)
        table[late] = table[late].gather(1, others.argsort(dim=1, stable=True))
    return table[:, 1:]
