"""Pairs of rows of one convolution: containers, and the search for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.geometry.keys import Box, find, pack, ranks
from lidarssl.sparse.kernel import Triple
from lidarssl.sparse.levels import Level


@dataclass
class Rows:
    """The pairs that belong to each row, in compressed-row form.

    Attributes:
        pairs: (P,) int64 pair indices, sorted by row.
        start: (N + 1,) int64; the pairs of row n are pairs[start[n]:start[n + 1]].
    """

    pairs: Tensor
    start: Tensor

    @classmethod
    def of(cls, row: Tensor, count: int) -> Rows:
        start = F.pad(row.bincount(minlength=count).cumsum(0), (1, 0))
        return cls(row.argsort(stable=True), start)

    def sum(self, values: Tensor) -> Tensor:
        """Sum the (P, C) values of each row, (N, C), always in the same order."""
        if values.shape[0] == 0:
            return values.new_zeros(self.start.shape[0] - 1, values.shape[1])
        return F.embedding_bag(self.pairs, values, self.start, mode="sum", include_last_offset=True)


@dataclass
class KernelMap:
    """Pairs of rows, grouped by weight: output[out_row] += input[in_row] @ weight[k].

    Attributes:
        in_row, out_row: (P,) int64, weight after weight.
        counts: pairs of each of the K weights among the P listed.
        identity: the weight that joins every row to itself; its pairs are not listed.
        by_in, by_out: the same pairs by row.
        is_transposed: input and output have been swapped.
        plans: what backends have made of this map for the layers that share it, by a name of their
            own and ``is_transposed``; shared with the transposed map, not with copies.
    """

    in_row: Tensor
    out_row: Tensor
    counts: tuple[int, ...]
    identity: int | None
    by_in: Rows
    by_out: Rows
    is_transposed: bool = False
    plans: dict[tuple[str, bool], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def rows_in(self) -> int:
        return self.by_in.start.shape[0] - 1

    @property
    def rows_out(self) -> int:
        return self.by_out.start.shape[0] - 1

    def pairs_per_weight(self) -> list[int]:
        """Pairs of each weight, the identity included."""
        counts = list(self.counts)
        if self.identity is not None:
            counts[self.identity] = self.rows_in
        return counts

    def transposed(self) -> KernelMap:
        """The map of the transposed convolution: same weights, input and output swapped."""
        swapped = KernelMap(
            self.out_row, self.in_row, self.counts, self.identity, self.by_out, self.by_in,
            is_transposed=not self.is_transposed,
        )  # fmt: skip
        swapped.plans = self.plans
        return swapped


def find_pairs(
    fine: Level,
    coarse: Level,
    offsets: list[Triple],
    weight_cell: list[int],
    run: int,
    same: bool,
) -> KernelMap:
    """Search the site that each kernel cell reads for every site written.

    Args:
        fine, coarse: levels read and written.
        offsets: site read minus site written of each kernel cell, in cells of ``fine``.
        weight_cell: kernel cell of each weight.
        run: how many of the offsets, from any multiple of it on, follow each other along z.
        same: both levels are one.
    """
    cells = len(offsets)
    zero = offsets.index((0, 0, 0)) if (0, 0, 0) in offsets else None
    identity = zero if same else None
    # An odd kernel on one set of sites is its own mirror image: search one half.
    mirrored = same and zero is not None and offsets[::-1] == [(-x, -y, -z) for x, y, z in offsets]
    searched = cells // 2 if mirrored else cells
    pairs = _search(fine, coarse, offsets, searched, run)
    if mirrored:
        none = fine.coordinates.new_empty(0)
        pairs += [(none, none)]
        pairs += [(out, into) for into, out in reversed(pairs[:searched])]
    elif identity is not None:
        none = fine.coordinates.new_empty(0)
        pairs[identity] = (none, none)
    ordered = [pairs[cell] for cell in weight_cell]
    in_row = torch.cat([into for into, _ in ordered])
    out_row = torch.cat([out for _, out in ordered])
    counts = tuple(into.shape[0] for into, _ in ordered)
    at = None if identity is None else weight_cell.index(identity)
    return _listed(in_row, out_row, counts, at, fine, coarse)


def pairs_of_cells(
    fine: Level, coarse: Level, row_in: Tensor, size: Triple, weight_cell: list[int]
) -> KernelMap:
    """As ``find_pairs`` where the cells of ``coarse`` are what the kernel covers: no search.

    Args:
        fine, coarse: levels read and written.
        row_in: see ``Level``.
        size: of the kernel, and of a coarse cell in fine ones.
        weight_cell: row-major cell of each weight.
    """
    corner = coarse.coordinates[row_in]
    inside = torch.div(
        (fine.coordinates - corner)[:, 1:], fine.coordinates.new_tensor(fine.stride),
        rounding_mode="floor",
    )  # fmt: skip
    cell = (inside[:, 0] * size[1] + inside[:, 1]) * size[2] + inside[:, 2]
    weight = cell.new_tensor(weight_cell).argsort()[cell]
    if fine.order is None:
        in_row = weight.argsort(stable=True)
    else:
        in_row = fine.order[weight[fine.order].argsort(stable=True)]
    counts = tuple(weight.bincount(minlength=len(weight_cell)).tolist())
    return _listed(in_row, row_in[in_row], counts, None, fine, coarse)


def _listed(
    in_row: Tensor,
    out_row: Tensor,
    counts: tuple[int, ...],
    identity: int | None,
    fine: Level,
    coarse: Level,
) -> KernelMap:
    return KernelMap(
        in_row,
        out_row,
        counts,
        identity,
        by_in=Rows.of(in_row, fine.coordinates.shape[0]),
        by_out=Rows.of(out_row, coarse.coordinates.shape[0]),
    )


def _search(
    fine: Level, coarse: Level, offsets: list[Triple], searched: int, run: int
) -> list[tuple[Tensor, Tensor]]:
    """(in_row, out_row) of each of the first ``searched`` offsets."""
    cell = fine.coordinates.new_tensor((1, *fine.stride))
    sites = _sorted_rows(fine)
    sites = torch.div(sites, cell, rounding_mode="floor")
    written = torch.div(_sorted_rows(coarse), cell, rounding_mode="floor")
    reach = list(zip(*offsets, strict=True))
    before = (0, *(min(axis) for axis in reach))
    after = (0, *(max(axis) for axis in reach))
    box = Box.around(sites).join(Box.around(written).grow(before, after))
    steps = box.steps()
    if steps is None:
        keys, queries, run = *_joint_ranks(sites, written, offsets[:searched]), 1
    else:
        starts = offsets[: -(-searched // run) * run : run]
        delta = [sum(o * s for o, s in zip(start, steps[1:], strict=True)) for start in starts]
        keys = pack(sites, box, steps)
        queries = pack(written, box, steps) + keys.new_tensor(delta)[:, None]
    position, found = find(keys, queries, run)
    position, found = position[:searched], found[:searched]
    counts = found.sum(1).tolist()
    in_row, out_row = position[found], found.nonzero()[:, 1]
    in_row = in_row if fine.order is None else fine.order[in_row]
    out_row = out_row if coarse.order is None else coarse.order[out_row]
    return list(zip(in_row.split(counts), out_row.split(counts), strict=True))


def _sorted_rows(level: Level) -> Tensor:
    return level.coordinates if level.order is None else level.coordinates[level.order]


def _joint_ranks(
    sites: Tensor, written: Tensor, offsets: Sequence[Triple]
) -> tuple[Tensor, Tensor]:
    """Keys of the sites and of every site that is read, for extents beyond 63 bits."""
    shifts = F.pad(written.new_tensor(offsets), (1, 0))
    queries = (written + shifts[:, None]).flatten(0, 1)
    keys = ranks(torch.cat([sites, queries]))
    count = sites.shape[0]
    return keys[:count], keys[count:].view(len(offsets), written.shape[0])
