"""Kernel maps: which input row meets which output row under which weight.

Maps depend on coordinates alone. They are built once per batch, shared by every layer that
needs them, and can be built ahead in a loader worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.frame import map_tensors
from lidarssl.geometry.keys import Box, find, pack, ranks, site_keys
from lidarssl.sparse.kernel import Convention, Triple, axis_offsets, row_major, strided_shape


@dataclass
class Level:
    """The sites of one resolution.

    Attributes:
        coordinates: (N, 4) int64 [batch, x, y, z], multiples of ``stride``.
        stride: of the grid, in cells of the finest one.
        order: (N,) int64 that sorts the rows by (batch, x, y, z); None = they are sorted.
        parent: index of the level this one was made from, or None.
        shape: cells of the grid along x, y, z, all sites being inside; None = no borders.
    """

    coordinates: Tensor
    stride: Triple
    order: Tensor | None = None
    parent: int | None = None
    shape: Triple | None = None


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
        ordered, pairs = row.sort(stable=True)
        start = torch.searchsorted(ordered, torch.arange(count + 1, device=row.device))
        return cls(pairs, start)

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
    """

    in_row: Tensor
    out_row: Tensor
    counts: tuple[int, ...]
    identity: int | None
    by_in: Rows
    by_out: Rows

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
        return KernelMap(
            self.out_row, self.in_row, self.counts, self.identity, self.by_out, self.by_in
        )


@dataclass
class KernelMaps:
    """Levels and kernel maps of one batch of sites, each made when first asked for.

    Holds tensors and plain values only: it can be pickled and moved to a device.
    """

    levels: list[Level]
    children: dict[tuple[int, Triple, tuple[Triple, ...]], int] = field(default_factory=dict)
    maps: dict[tuple[int, int, Triple, Triple, str, Triple], KernelMap] = field(
        default_factory=dict
    )

    @classmethod
    def of(
        cls, coordinates: Tensor, stride: Triple = (1, 1, 1), shape: Triple | None = None
    ) -> KernelMaps:
        """Start from the finest sites.

        Args:
            coordinates: (N, 4) int64 [batch, x, y, z], unique, multiples of ``stride``.
            stride: of the grid.
            shape: its cells along x, y, z, from 0 on; None = no borders.

        Raises:
            DataError: wrong shape or type, two equal rows, or a site outside the grid.
        """
        if coordinates.dim() != 2 or coordinates.shape[1] != 4 or coordinates.is_floating_point():
            raise DataError(
                f"sites must be (N, 4) integers, not {tuple(coordinates.shape)} of "
                f"{coordinates.dtype}",
                field="coordinates",
            )
        coordinates = coordinates.long()
        keys, order = site_keys(coordinates).sort(stable=True)
        if bool((keys[1:] == keys[:-1]).any()):
            raise DataError(
                "two rows have the same site",
                field="coordinates",
                remedy="voxelize first: one row per occupied cell",
            )
        if shape is not None:
            _check_inside(coordinates, stride, shape)
        is_sorted = bool((order[1:] > order[:-1]).all())
        return cls([Level(coordinates, stride, None if is_sorted else order, shape=shape)])

    def coarser(
        self,
        level: int,
        kernel_size: Triple,
        stride: Triple,
        convention: Convention,
        dilation: Triple = (1, 1, 1),
        padding: Triple = (0, 0, 0),
    ) -> int:
        """Index of the level that a strided convolution writes to.

        ``dilation`` and ``padding`` count in the spconv convention only.

        Raises:
            ValueError: in that convention, a grid without borders or smaller than the kernel.
        """
        if convention is Convention.SPCONV:
            return self._bounded(level, kernel_size, stride, dilation, padding)
        dilates = convention is Convention.TORCHSPARSE and any(
            step not in (1, size) for step, size in zip(stride, kernel_size, strict=True)
        )
        key = (level, stride, (kernel_size,) if dilates else ())
        if key not in self.children:
            fine = self.levels[level]
            coarse = _product(fine.stride, stride)
            sites = fine.coordinates
            if dilates:
                offsets = _grid_offsets(kernel_size, (1, 1, 1), convention)
                low = Box.around(sites).low[1:]
                sites = _multiples(fine, offsets, coarse, low)
            self._add(key, Level(_floor_sites(sites, coarse), coarse, parent=level))
        return self.children[key]

    def _bounded(
        self, level: int, kernel_size: Triple, stride: Triple, dilation: Triple, padding: Triple
    ) -> int:
        """As ``coarser``, of a grid with borders."""
        key = (level, stride, (kernel_size, dilation, padding))
        if key not in self.children:
            fine = self.levels[level]
            shape = strided_shape(fine.shape, kernel_size, stride, dilation, padding)
            coarse = _product(fine.stride, stride)
            reads = _grid_offsets(kernel_size, dilation, Convention.SPCONV, padding)
            # A site is read at +offset from those written: they lie at -offset from it.
            written = [(-x, -y, -z) for x, y, z in reads]
            sites = _multiples(fine, written, coarse, (0, 0, 0), _product(shape, coarse))
            self._add(key, Level(_floor_sites(sites, coarse), coarse, parent=level, shape=shape))
        return self.children[key]

    def _add(self, key: tuple[int, Triple, tuple[Triple, ...]], level: Level) -> None:
        self.levels.append(level)
        self.children[key] = len(self.levels) - 1

    def finer(self, level: int, stride: Triple) -> int:
        """Index of the level that a transposed convolution writes back to.

        Raises:
            ValueError: no convolution led here from that stride.
        """
        target: int | None = level
        while target is not None:
            if _product(self.levels[target].stride, stride) == self.levels[level].stride:
                return target
            target = self.levels[target].parent
        raise ValueError(
            f"no level of stride {self.levels[level].stride} / {stride} led to this one: "
            "a transposed convolution writes on the sites of an earlier, finer level"
        )

    def kernel_map(
        self,
        fine: int,
        coarse: int,
        kernel_size: Triple,
        dilation: Triple,
        convention: Convention,
        padding: Triple = (0, 0, 0),
    ) -> KernelMap:
        """The map of a convolution that reads level ``fine`` and writes level ``coarse``.

        The site read is the site written plus (offset * dilation - padding) * stride of ``fine``.
        """
        key = (fine, coarse, kernel_size, dilation, str(convention), padding)
        if key not in self.maps:
            self.maps[key] = _build(
                self.levels[fine],
                self.levels[coarse],
                _grid_offsets(kernel_size, dilation, convention, padding),
                row_major(kernel_size, convention),
                run=kernel_size[2] if dilation[2] == 1 else 1,
                same=fine == coarse,
            )
        return self.maps[key]

    def packed(self) -> KernelMaps:
        """The same with all tensors in one storage: one file descriptor between processes."""
        tensors: list[Tensor] = []
        map_tensors(self, lambda tensor: tensors.append(tensor.reshape(-1)))
        views = iter(torch.cat(tensors).split([tensor.shape[0] for tensor in tensors]))
        return map_tensors(self, lambda tensor: next(views).view(tensor.shape))


def _product(a: Triple, b: Triple) -> Triple:
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


def _floor_sites(coordinates: Tensor, stride: Triple) -> Tensor:
    """Sorted unique multiples of ``stride`` at or below the (N, 4) coordinates."""
    cell = coordinates.new_tensor((1, *stride))
    sites = torch.div(coordinates, cell, rounding_mode="floor") * cell
    keys, order = site_keys(sites).sort()
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    return sites[order[first]]


def _check_inside(coordinates: Tensor, stride: Triple, shape: Triple) -> None:
    end = coordinates.new_tensor(_product(shape, stride))
    outside = ((coordinates[:, 1:] < 0) | (coordinates[:, 1:] >= end)).any(1)
    if bool(outside.any()):
        row = int(outside.int().argmax())
        raise DataError(
            f"site {coordinates[row].tolist()} [batch, x, y, z] is outside a grid of {shape} cells",
            field="coordinates",
            remedy="make the grid larger, or drop such sites",
        )


def _multiples(
    fine: Level,
    offsets: Sequence[Triple],
    coarse: Triple,
    low: Sequence[int],
    end: Triple | None = None,
) -> Tensor:
    """(M, 4) sites of the coarse grid at one of the offsets from some fine site, with repeats.

    Args:
        fine: level with the sites.
        offsets: in cells of ``fine``.
        coarse: stride of the coarse grid.
        low: smallest coordinate that is kept, along x, y, z.
        end: one past the largest; None = no limit.
    """
    sites, step = fine.coordinates, fine.coordinates.new_tensor(coarse)
    lowest = sites.new_tensor(low)
    found = []
    for shift in sites.new_tensor(offsets) * sites.new_tensor(fine.stride):
        xyz = sites[:, 1:] + shift
        kept = ((xyz % step == 0) & (xyz >= lowest)).all(1)
        if end is not None:
            kept &= (xyz < sites.new_tensor(end)).all(1)
        found.append(torch.cat([sites[kept, :1], xyz[kept]], 1))
    return torch.cat(found)


def _grid_offsets(
    kernel_size: Triple,
    dilation: Triple,
    convention: Convention,
    padding: Triple = (0, 0, 0),
) -> list[Triple]:
    """Offsets of a kernel in row-major order (z fastest), in cells of the grid it reads."""
    x, y, z = (
        [step * offset - pad for offset in axis_offsets(size, convention)]
        for size, step, pad in zip(kernel_size, dilation, padding, strict=True)
    )
    return list(itertools.product(x, y, z))


def _build(
    fine: Level,
    coarse: Level,
    offsets: list[Triple],
    weight_cell: list[int],
    run: int,
    same: bool,
) -> KernelMap:
    """Find the pairs of every kernel cell, then list them in the order of the weights."""
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
    return KernelMap(
        in_row,
        out_row,
        counts=tuple(into.shape[0] for into, _ in ordered),
        identity=None if identity is None else weight_cell.index(identity),
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
