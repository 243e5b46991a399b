"""Kernel maps as dense tables: a sparse network as gathers and matrix products.

Pairs of rows change their number from batch to batch, and every engine would have to find them
by itself. A table has one row per output row and one column per weight. It costs a gather of
all weights, present or not (about nine times as many as there are pairs in a driving scan), so
it is the form for export, not for training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.sparse.kernel import Convention, Triple, axis_offsets, row_major, volume
from lidarssl.sparse.levels import Level
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.pairs import KernelMap

NONE = -1
_ONE = (1, 1, 1)


@dataclass(frozen=True)
class TableKey:
    """Which convolutions a table belongs to.

    Attributes:
        read, written: levels of the input and the output; 0 is the finest.
        stride: of the finer of the two, in cells of level 0.
        kernel_size, dilation, convention: of the convolution.
        transposed: whether it is a transposed one.
    """

    read: int
    written: int
    stride: Triple
    kernel_size: Triple
    dilation: Triple
    convention: Convention
    transposed: bool = False

    @property
    def name(self) -> str:
        """E.g. ``level0_k3``, ``level0_to_1_k2`` or ``level1_to_0_k2``."""
        same = self.read == self.written
        levels = f"level{self.read}" + ("" if same else f"_to_{self.written}")
        dilation = "" if self.dilation == _ONE else f"_d{_word(self.dilation)}"
        mirrored = "_transposed" if same and self.transposed else ""
        return f"{levels}_k{_word(self.kernel_size)}{dilation}{mirrored}"

    @property
    def offsets(self) -> list[Triple]:
        """Site read minus site written of each column, along x, y, z in cells of level 0."""
        axes = [
            [offset * spread * cell for offset in axis_offsets(size, self.convention)]
            for size, spread, cell in zip(self.kernel_size, self.dilation, self.stride, strict=True)
        ]
        cells = list(itertools.product(*axes))
        sign = -1 if self.transposed else 1
        ordered = [cells[cell] for cell in row_major(self.kernel_size, self.convention)]
        return [(sign * x, sign * y, sign * z) for x, y, z in ordered]

    def rows(self, maps: KernelMaps) -> Tensor:
        """The table of one batch of sites, (N_written, K) int64 rows read; -1 = none."""
        levels = (self.read, self.written)
        fine, coarse = levels[::-1] if self.transposed else levels
        found = maps.kernel_map(fine, coarse, self.kernel_size, self.dilation, self.convention)
        return table_rows(found.transposed() if self.transposed else found)


def _word(sizes: Triple) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))


def table_rows(kernel_map: KernelMap) -> Tensor:
    """Pairs as a table, (N_out, K) int64 input row of each weight; -1 = none."""
    weights = len(kernel_map.counts)
    rows = kernel_map.in_row.new_full((kernel_map.rows_out, weights), NONE)
    counts = torch.tensor(kernel_map.counts, device=rows.device)
    column = torch.repeat_interleave(torch.arange(weights, device=rows.device), counts)
    rows[kernel_map.out_row, column] = kernel_map.in_row
    if kernel_map.identity is not None:
        rows[:, kernel_map.identity] = torch.arange(kernel_map.rows_out, device=rows.device)
    return rows


def convolve_table(features: Tensor, kernel: Tensor, rows: Tensor) -> Tensor:
    """output[o] = sum over k of features[rows[o, k]] @ kernel[k]; -1 contributes nothing.

    Args:
        features: (N_in, C_in).
        kernel: (K, C_in, C_out), same dtype.
        rows: (N_out, K) int64.

    Returns:
        (N_out, C_out).
    """
    nothing = features.new_zeros(1, features.shape[1])
    # Shifted, because not every engine counts a negative row from the end.
    read = F.embedding(rows - NONE, torch.cat([nothing, features]))
    return read.flatten(1) @ kernel.flatten(0, 1)


Lookup = Callable[[TableKey], Tensor]


@dataclass(frozen=True)
class Table:
    """Takes the place of a ``KernelMap``.

    Attributes:
        key: which table.
        lookup: where its rows are.
    """

    key: TableKey
    lookup: Lookup

    def transposed(self) -> Table:
        """That of the transposed convolution: its rows are looked up, not computed."""
        key = self.key
        return replace(
            self,
            key=replace(key, read=key.written, written=key.read, transposed=not key.transposed),
        )

    def convolve(self, features: Tensor, kernel: Tensor) -> Tensor:
        return convolve_table(features, kernel, self.lookup(self.key))


@dataclass
class TableMaps(KernelMaps):
    """Takes the place of ``KernelMaps`` where tables are known and sites are not.

    Levels are numbered as they are met, as in ``KernelMaps``, and have no sites. Strided
    convolutions of the minkowski convention only.

    Attributes:
        lookup: from a key to the (N_written, K) rows.
    """

    levels: list[Level] = field(default_factory=lambda: [_level(_ONE, None)])
    lookup: Lookup = field(kw_only=True)

    def coarser(
        self,
        level: int,
        kernel_size: Triple,
        stride: Triple,
        convention: Convention,
        dilation: Triple = _ONE,
        padding: Triple = (0, 0, 0),
    ) -> int:
        if convention is not Convention.MINKOWSKI:
            raise ValueError(f"no tables in the {convention} convention")
        key = (level, stride, ())
        if key not in self.children:
            x, y, z = (a * b for a, b in zip(self.levels[level].stride, stride, strict=True))
            self._add(key, _level((x, y, z), level))
        return self.children[key]

    def kernel_map(
        self,
        fine: int,
        coarse: int,
        kernel_size: Triple,
        dilation: Triple,
        convention: Convention,
        padding: Triple = (0, 0, 0),
    ) -> Any:
        """A ``Table``."""
        stride = self.levels[fine].stride
        return Table(TableKey(fine, coarse, stride, kernel_size, dilation, convention), self.lookup)


def _level(stride: Triple, parent: int | None) -> Level:
    return Level(torch.empty(0, 4, dtype=torch.int64), stride, parent=parent)


def tables_read(network: Callable[[TableMaps], object], device: torch.device) -> list[TableKey]:
    """The tables that a network reads, in the order in which it does.

    Args:
        network: runs it on maps of which every level has one row.
        device: of its parameters.
    """
    found: dict[TableKey, Tensor] = {}

    def lookup(key: TableKey) -> Tensor:
        nothing = torch.full((1, volume(key.kernel_size)), NONE, device=device)
        return found.setdefault(key, nothing)

    network(TableMaps(lookup=lookup))
    return list(found)
