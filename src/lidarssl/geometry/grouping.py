"""Rows of equal keys, found by one sort that everything else about the groups follows from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.geometry.keys import site_keys


@dataclass(frozen=True)
class Groups:
    """Rows by key.

    Attributes:
        order: (N,) int64 rows sorted by (key, row).
        group: (N,) int64 number of the group of each of them, from 0, non-decreasing.
        start: (G,) int64 place of each group in ``order``.
    """

    order: Tensor
    group: Tensor
    start: Tensor

    @property
    def first(self) -> Tensor:
        """(G,) int64 first row of each group."""
        return self.order.index_select(0, self.start)

    def of_rows(self) -> Tensor:
        """(N,) int64 group of every row."""
        return torch.empty_like(self.order).scatter_(0, self.order, self.group)


def group_rows(keys: Tensor) -> Groups:
    """Groups of equal (N,) integer keys, in the order of the keys."""
    ordered, order = keys.sort(stable=True)
    _, group, counts = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    return Groups(order, group, counts.cumsum(0) - counts)


def cell_keys(cells: Tensor) -> Tensor:
    """Keys of cells that are equal where the cells are, and sort as their coordinates do.

    Args:
        cells: (D, N) finite floating-point numbers without a fraction, a row per axis: on rows
            of three numbers every operation takes several times as long.

    Returns:
        (N,) int32 where that is enough, because it sorts faster, else int64.
    """
    if cells.shape[1] == 0:
        return torch.zeros(0, dtype=torch.int64, device=cells.device)
    low, high = cells.amin(1), cells.amax(1)
    spans = (high.double() - low.double() + 1).tolist()
    # Up to there a difference of two such numbers is exact.
    if not max(spans) <= 2 / torch.finfo(cells.dtype).eps or math.prod(spans) >= 2**62:
        return site_keys(cells.t().long())
    narrow = math.prod(spans) < 2**31
    above = (cells - low[:, None]).to(torch.int32 if narrow else torch.int64)
    keys = above[-1]
    step = 1
    for axis in range(len(spans) - 2, -1, -1):
        step *= int(spans[axis + 1])
        keys = keys.add(above[axis], alpha=step)
    return keys
