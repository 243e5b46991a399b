"""Kernel maps: which input row meets which output row under which weight.

Maps depend on coordinates alone. They are built once per batch, shared by every layer that
needs them, and can be built ahead in a loader worker.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.geometry.keys import Box, site_keys
from lidarssl.sparse.kernel import Convention, Triple, axis_offsets, row_major, strided_shape
from lidarssl.sparse.levels import Level, cells_of, check_inside, multiples, product
from lidarssl.sparse.pairs import KernelMap, find_pairs, pairs_of_cells


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
            check_inside(coordinates, stride, shape)
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
            coarse = product(fine.stride, stride)
            if dilates:
                offsets = _grid_offsets(kernel_size, (1, 1, 1), convention)
                low = Box.around(fine.coordinates).low[1:]
                sites, _ = cells_of(multiples(fine, offsets, coarse, low), coarse)
                self._add(key, Level(sites, coarse, parent=level))
            else:
                sites, row_in = cells_of(fine.coordinates, coarse)
                self._add(key, Level(sites, coarse, parent=level, row_in=row_in))
        return self.children[key]

    def _bounded(
        self, level: int, kernel_size: Triple, stride: Triple, dilation: Triple, padding: Triple
    ) -> int:
        """As ``coarser``, of a grid with borders."""
        key = (level, stride, (kernel_size, dilation, padding))
        if key not in self.children:
            fine = self.levels[level]
            shape = strided_shape(fine.shape, kernel_size, stride, dilation, padding)
            coarse = product(fine.stride, stride)
            reads = _grid_offsets(kernel_size, dilation, Convention.SPCONV, padding)
            # A site is read at +offset from those written: they lie at -offset from it.
            written = [(-x, -y, -z) for x, y, z in reads]
            found = multiples(fine, written, coarse, (0, 0, 0), product(shape, coarse))
            sites, _ = cells_of(found, coarse)
            self._add(key, Level(sites, coarse, parent=level, shape=shape))
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
            if product(self.levels[target].stride, stride) == self.levels[level].stride:
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
            offsets = _grid_offsets(kernel_size, dilation, convention, padding)
            weight_cell = row_major(kernel_size, convention)
            read, written = self.levels[fine], self.levels[coarse]
            inside = itertools.product(*map(range, kernel_size))
            fills = written.stride == product(read.stride, kernel_size) and offsets == list(inside)
            if fills and written.parent == fine and written.row_in is not None:
                made = pairs_of_cells(read, written, written.row_in, kernel_size, weight_cell)
            else:
                run = kernel_size[2] if dilation[2] == 1 else 1
                made = find_pairs(read, written, offsets, weight_cell, run, same=fine == coarse)
            self.maps[key] = made
        return self.maps[key]


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
