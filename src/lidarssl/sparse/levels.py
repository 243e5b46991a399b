"""The occupied sites of one resolution, and those of the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.geometry.keys import site_keys
from lidarssl.sparse.kernel import Triple


@dataclass
class Level:
    """The sites of one resolution.

    Attributes:
        coordinates: (N, 4) int64 [batch, x, y, z], multiples of ``stride``.
        stride: of the grid, in cells of the finest one.
        order: (N,) int64 that sorts the rows by (batch, x, y, z); None = they are sorted.
        parent: index of the level this one was made from, or None.
        shape: cells of the grid along x, y, z, all sites being inside; None = no borders.
        row_in: (N_parent,) int64 row of this level that holds each site of the parent, where every
            site of the parent lies in the cell of one of this level; or None.
    """

    coordinates: Tensor
    stride: Triple
    order: Tensor | None = None
    parent: int | None = None
    shape: Triple | None = None
    row_in: Tensor | None = None


def product(a: Triple, b: Triple) -> Triple:
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


def cells_of(coordinates: Tensor, stride: Triple) -> tuple[Tensor, Tensor]:
    """Cells of a coarser grid that hold the (N, 4) coordinates.

    Returns:
        (M, 4) sorted unique multiples of ``stride``, and the (N,) int64 row of each coordinate.
    """
    cell = coordinates.new_tensor((1, *stride))
    sites = torch.div(coordinates, cell, rounding_mode="floor") * cell
    keys, order = site_keys(sites).sort()
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    row = torch.empty_like(order)
    row[order] = first.cumsum(0) - 1
    return sites[order[first]], row


def check_inside(coordinates: Tensor, stride: Triple, shape: Triple) -> None:
    end = coordinates.new_tensor(product(shape, stride))
    outside = ((coordinates[:, 1:] < 0) | (coordinates[:, 1:] >= end)).any(1)
    if bool(outside.any()):
        row = int(outside.int().argmax())
        raise DataError(
            f"site {coordinates[row].tolist()} [batch, x, y, z] is outside a grid of {shape} cells",
            field="coordinates",
            remedy="make the grid larger, or drop such sites",
        )


def multiples(
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
