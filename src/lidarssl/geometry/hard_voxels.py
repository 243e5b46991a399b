"""Voxels of a grid with borders, as detectors make them ("hard voxelisation").

A point falls into cell floor((p - lowest corner) / v), in float32, and is dropped outside the
grid. Voxels come in the order of their first points. Published detectors store at most some
points of each voxel, and at most some voxels, first come, first served; which ones then depends
on the order of the points. Without these limits nothing depends on it.

Source: the point-to-voxel operation of spconv 2.x, as SECOND, SLidR, OLIVINE and ALSO use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.geometry.keys import Box, pack
from lidarssl.geometry.voxels import first_rows

Range = tuple[float, float, float, float, float, float]
Size = tuple[float, float, float]


@dataclass(frozen=True)
class BoundedGrid:
    """Cells of a box.

    Attributes:
        bounds: x, y, z of the lowest corner, then of the highest, m.
        voxel_size: along x, y, z, m.

    Raises:
        ConfigError: sizes that are not positive, or a box without a cell.
    """

    bounds: Range
    voxel_size: Size

    def __post_init__(self) -> None:
        values = (*self.bounds, *self.voxel_size)
        if (
            len(self.bounds) != 6
            or len(self.voxel_size) != 3
            or not all(map(math.isfinite, values))
        ):
            raise ConfigError(
                f"{self.bounds} and {self.voxel_size} are not a box and a cell",
                field="point_range, voxel_size",
                remedy="give x, y, z of both corners, and three sizes",
            )
        if min(self.voxel_size) <= 0 or min(self.shape) < 1:
            raise ConfigError(
                f"a box from {self.bounds[:3]} to {self.bounds[3:]} m has no cell of "
                f"{self.voxel_size} m",
                field="point_range, voxel_size",
                remedy="give the lowest corner first, and positive sizes",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Cells along x, y, z: the box rounded to whole cells."""
        x, y, z = (
            round((high - low) / size)
            for low, high, size in zip(
                self.bounds[:3], self.bounds[3:], self.voxel_size, strict=True
            )
        )
        return (x, y, z)

    def cells(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Cell of every point.

        Args:
            points: (N, 3) m, taken as float32.

        Returns:
            (N, 3) int64 x, y, z; and (N,) bool, whether it is in the grid.

        Raises:
            DataError: a point that is not finite.
        """
        points = points.float()
        bad = ~torch.isfinite(points).all(1)
        if bool(bad.any()):
            raise DataError(
                f"{int(bad.sum())} of {len(points)} points are not finite; the first is point "
                f"{int(bad.int().argmax())}",
                field="points",
                remedy="remove such points when the frame is loaded",
            )
        # Tensors, not scalars: CUDA multiplies by the reciprocal of a scalar.
        low = torch.tensor(self.bounds[:3], dtype=torch.float32, device=points.device)
        size = torch.tensor(self.voxel_size, dtype=torch.float32, device=points.device)
        cells = torch.floor((points - low) / size)
        end = torch.tensor(self.shape, dtype=torch.float32, device=points.device)
        inside = ((cells >= 0) & (cells < end)).all(1)
        return cells.clamp(-1, max(self.shape)).long(), inside


@dataclass(frozen=True)
class HardVoxels:
    """Occupied voxels of one cloud, in the order of their first points.

    Attributes:
        coordinates: (V, 3) int64 cell x, y, z.
        voxel_of_point: (N,) int64; -1 outside the grid or in a voxel beyond the limit.
        stored: (N,) bool, whether the point is among those its voxel keeps.
    """

    coordinates: Tensor
    voxel_of_point: Tensor
    stored: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean of the (N, C) values of the points that each voxel keeps, (V, C)."""
        if self.coordinates.shape[0] == 0:
            return values.new_zeros(0, values.shape[1])
        points = self.stored.nonzero()[:, 0]
        voxel, order = self.voxel_of_point[points].sort(stable=True)
        start = torch.searchsorted(
            voxel, torch.arange(self.coordinates.shape[0], device=voxel.device)
        )
        # Unlike a scattered sum, this one has a fixed order on every device.
        return F.embedding_bag(points[order], values, start, mode="mean")


def hard_voxelize(
    points: Tensor,
    grid: BoundedGrid,
    max_points: int | None = None,
    max_voxels: int | None = None,
    within: Tensor | None = None,
) -> HardVoxels:
    """Group the points of one cloud.

    Args:
        points: (N, 3) m.
        grid: the cells.
        max_points: points that a voxel keeps, the first ones; None = all.
        max_voxels: voxels that are kept, the first ones; None = all.
        within: (N,) bool, points that count; None = all.

    Raises:
        ConfigError: a limit below 1.
        DataError: a point that is not finite.
    """
    check_limits(max_points, max_voxels)
    cells, inside = grid.cells(points)
    if within is not None:
        inside = inside & within
    kept = inside.nonzero()[:, 0]
    group = _in_order_of_appearance(cells[kept], grid.shape)
    if max_voxels is not None:
        kept, group = kept[group < max_voxels], group[group < max_voxels]
    count = int(group.max()) + 1 if group.shape[0] else 0
    voxel_of_point = torch.full_like(inside, -1, dtype=torch.int64)
    voxel_of_point[kept] = group
    stored = inside & (voxel_of_point >= 0)
    if max_points is not None:
        stored[kept] = _place_in_group(group) < max_points
    return HardVoxels(cells[kept[first_rows(group, count)]], voxel_of_point, stored)


def check_limits(max_points: int | None, max_voxels: int | None) -> None:
    """Raises ConfigError when one is below 1."""
    for name, limit in (("max_points", max_points), ("max_voxels", max_voxels)):
        if limit is not None and limit < 1:
            raise ConfigError(f"{limit} is no limit", field=name, remedy="give at least 1, or none")


def _in_order_of_appearance(cells: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Number of each row's cell, (N,) int64, the cell of the first row being 0."""
    box = Box((0, 0, 0), shape)
    steps = box.steps()
    assert steps is not None, "more cells than any memory holds"
    keys, group = torch.unique(pack(cells, box, steps), return_inverse=True)
    order = first_rows(group, keys.shape[0]).argsort()
    number = torch.empty_like(order)
    number[order] = torch.arange(order.shape[0], device=order.device)
    return number[group]


def _place_in_group(group: Tensor) -> Tensor:
    """How many earlier rows have the same number, (N,) int64."""
    ordered, rows = group.sort(stable=True)
    start = torch.searchsorted(ordered, ordered)
    place = torch.empty_like(rows)
    place[rows] = torch.arange(rows.shape[0], device=rows.device) - start
    return place
