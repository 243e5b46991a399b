"""Tokens averaged in the cells of a flat grid, convolved there, and read back.

Source: Puy et al., "Using a Waffle Iron for Automotive Point Cloud Semantic Segmentation",
ICCV 2023, section 3. Only cells that hold tokens are read back, so of two 3x3 convolutions the
first is needed at these cells and their neighbours, the second at these cells alone: 20,000 tokens
around a point of a SemanticKITTI scan lie in 1700 of 256 x 256 cells, which have 1700 neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OFFSETS = [(row, column) for row in range(3) for column in range(3)]


class Plane(Protocol):
    """The cells of one grid, of all frames of a batch."""

    def mix(self, rows: Tensor, ffn: nn.Sequential, scale: nn.Module) -> Tensor:
        """Weighted means of the cells through ``ffn`` and ``scale``, at the cell of every token.

        Args:
            rows: (T, C) tokens.
            ffn: 3x3 depthwise convolution, activation, 3x3 depthwise convolution.
            scale: acts on rows of channels.

        Returns:
            (T, C).
        """
        ...


@dataclass(frozen=True)
class WholePlane:
    """Every cell, in dense convolutions: no shape depends on where the tokens are.

    Attributes:
        cells: (T,) int64 flat cell of every token, those of frame b after those of frame b - 1.
        weights: (T,) of every token in the mean of its cell.
        grid: frames, rows, columns.
    """

    cells: Tensor
    weights: Tensor
    grid: Sequence[int]

    def mix(self, rows: Tensor, ffn: nn.Sequential, scale: nn.Module) -> Tensor:
        means = _sums(rows * self.weights[:, None], self.cells, math.prod(self.grid))
        maps = ffn(means.view(*self.grid, -1).permute(0, 3, 1, 2))
        mixed: Tensor = scale(maps.permute(0, 2, 3, 1).reshape(means.shape)[self.cells])
        return mixed


@dataclass(frozen=True)
class OccupiedPlane:
    """The cells that hold tokens ("sites") and those within one step of a site ("nearby").

    Attributes:
        site: (T,) int64 site of every token.
        weights: (T,) of every token in the mean of its cell.
        sites: their number S.
        around_nearby: (9, M) int64 site at every offset from every nearby cell; S where the cell
            there holds no token.
        around_sites: (9, S) int64 nearby cell at every offset from every site; M beyond the border.
    """

    site: Tensor
    weights: Tensor
    sites: int
    around_nearby: Tensor
    around_sites: Tensor

    @classmethod
    def of(cls, cells: Tensor, weights: Tensor, grid: Sequence[int]) -> OccupiedPlane:
        """Arguments as of ``WholePlane``."""
        frames, rows, columns = grid
        occupied = torch.zeros(math.prod(grid), dtype=torch.bool, device=cells.device)
        occupied[cells] = True
        site = (occupied.cumsum(0) - 1)[cells]
        occupied = occupied.view(frames, rows, columns)
        wide = F.pad(occupied, (1, 1, 1, 1))
        nearby = torch.zeros_like(occupied)
        for row, column in _OFFSETS:
            nearby |= wide[:, row : row + rows, column : column + columns]
        around_sites = _around(occupied, nearby)
        return cls(site, weights, around_sites.shape[1], _around(nearby, occupied), around_sites)

    def mix(self, rows: Tensor, ffn: nn.Sequential, scale: nn.Module) -> Tensor:
        first, activation, last = ffn
        means = _sums(rows * self.weights[:, None], self.site, self.sites)
        maps = activation(_depthwise(means, first, self.around_nearby, self.around_sites))
        maps = _depthwise(maps, last, self.around_sites, self.around_nearby)
        mixed: Tensor = scale(maps).index_select(0, self.site)
        return mixed


def _sums(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    return rows.new_zeros(groups, rows.shape[1]).index_add(0, group, rows)


def _around(centres: Tensor, chosen: Tensor) -> Tensor:
    """Cells of a mask around those of another.

    Args:
        centres, chosen: (frames, rows, columns) bool.

    Returns:
        (9, centres) int64 place among the chosen cells of the one at every offset; their number
        where that is none of them.
    """
    places = (chosen.flatten().cumsum(0) - 1).view_as(chosen)
    count = chosen.sum()
    wide = F.pad(torch.where(chosen, places, count) - count, (1, 1, 1, 1)) + count
    frame, row, column = centres.nonzero().unbind(1)
    return torch.stack([wide[frame, row + i, column + j] for i, j in _OFFSETS])


def _depthwise(rows: Tensor, layer: nn.Module, table: Tensor, back: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    weight = layer.weight.flatten(1).t().to(rows.dtype)
    out: Tensor = _Depthwise.apply(rows, weight, layer.bias.to(rows.dtype), table, back)
    return out


class _Depthwise(torch.autograd.Function):
    """A 3x3 depthwise convolution from some cells of a plane to others, without dense maps."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, table: Tensor, back: Tensor
    ) -> Tensor:
        """(N, C), (9, C), (C,), (9, M) rows or N, (9, N) outputs or M -> (M, C)."""
        ctx.save_for_backward(rows, weight, back)
        out = bias.repeat(table.shape[1], 1)
        rows, seen = _with_nothing(rows), torch.empty_like(out)
        for around, factor in zip(table, weight, strict=True):
            torch.index_select(rows, 0, around, out=seen)
            out.addcmul_(seen, factor)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, back = ctx.saved_tensors
        of_rows, of_weight = torch.zeros_like(rows), torch.empty_like(weight)
        padded, seen = _with_nothing(gradient), torch.empty_like(rows)
        # Seen from an input the output that it is at offset k of lies at the opposite one.
        for offset, around in enumerate(back.flip(0)):
            torch.index_select(padded, 0, around, out=seen)
            of_rows.addcmul_(seen, weight[offset])
            of_weight[offset] = seen.mul_(rows).sum(0)
        return of_rows, of_weight, gradient.sum(0), None, None


def _with_nothing(rows: Tensor) -> Tensor:
    """A row of zeros behind the others, for cells that are not there."""
    return F.pad(rows, (0, 0, 0, 1))
