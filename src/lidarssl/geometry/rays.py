"""What the rays of one scan tell about the space around it: seen free, a surface, or not seen."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.errors import ConfigError


class Cell(enum.IntEnum):
    """State of a cell."""

    UNKNOWN = 0
    FREE = 1
    SURFACE = 2


@dataclass(frozen=True)
class Grid:
    """Axis-aligned cells.

    Attributes:
        low: x, y, z of the corner of cell (0, 0, 0), m.
        size: of a cell along x, y, z, m.
        shape: cells along x, y, z. A horizontal slice has one layer, as thick as its cells.

    Raises:
        ConfigError: a size or a shape that is not positive.
    """

    low: tuple[float, float, float]
    size: tuple[float, float, float]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if min(self.size) <= 0 or min(self.shape) < 1:
            raise ConfigError(f"{self.shape} cells of {self.size} m", field="grid")

    def cells(self, points: Tensor) -> Tensor:
        """(N, 3) float64 place of (N, 3) points counted in cells; its floor is the cell."""
        low, size = (points.new_tensor(v, dtype=torch.float64) for v in (self.low, self.size))
        return (points.double() - low) / size

    def centers(self) -> Tensor:
        """(X, Y, Z, 3) float32 m."""
        axes = [
            low + (torch.arange(count, dtype=torch.float64) + 0.5) * size
            for low, size, count in zip(self.low, self.size, self.shape, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), 3).float()


def seen_cells(points: Tensor, grid: Grid, margin: float = 0.1) -> Tensor:
    """State of every cell: a surface where a return lies inside, free where a ray passes.

    A ray runs from the sensor at the origin to its return and is followed exactly, cell by cell.
    A cell with a return is a surface even if other rays pass it.

    Args:
        points: (N, 3) m, returns in the lidar frame; rows that are not finite are left out.
        grid: see there.
        margin: m, the last part of each ray, which proves nothing.

    Returns:
        (X, Y, Z) int64 ``Cell``.
    """
    points = points[torch.isfinite(points).all(1)].double()
    states = torch.full(grid.shape, int(Cell.UNKNOWN), device=points.device).flatten()
    for cells in _passed(points, grid, margin):
        states[cells] = int(Cell.FREE)
    ends = grid.cells(points).floor().long()
    inside = ((ends >= 0) & (ends < ends.new_tensor(grid.shape))).all(1)
    states[_row(ends[inside], grid)] = int(Cell.SURFACE)
    return states.view(grid.shape)


def ground_height(points: Tensor, reach: float = 10.0, share: float = 0.2) -> float:
    """Height of the ground around the sensor, m in the lidar frame.

    Near a vehicle many returns are of the ground and few from below it: the height that a small
    share of them does not exceed is near the ground's, whatever stands on it.

    Args:
        points: (N, 3) m, N > 0.
        reach: m, horizontal; without returns that near all count.
        share: see above.
    """
    distance = points[:, :2].norm(dim=1)
    # Returns of the vehicle itself are nearer.
    near = points[(distance > 3.0) & (distance < reach), 2]
    return float(torch.quantile((near if len(near) else points[:, 2]).double(), share))


def _passed(points: Tensor, grid: Grid, margin: float) -> Iterator[Tensor]:
    """Rows of the cells that rays pass, one cell of every ray at a time.

    The traversal of Amanatides and Woo ("A fast voxel traversal algorithm for ray tracing",
    Eurographics 1987), all rays at once; t is the share of the way to the return.
    """
    start = grid.cells(points.new_zeros(1, 3))
    way = grid.cells(points) - start
    shape = way.new_tensor(grid.shape)
    enter, leave = _within(start, way, shape)
    distance = points.norm(dim=1)
    leave = leave.minimum(1 - margin / distance.clamp(min=1e-12))
    rays = (enter < leave).nonzero()[:, 0]
    way, enter, leave = way[rays], enter[rays], leave[rays]
    # Rounding may put the entry a hair outside.
    cell = (start + enter[:, None] * way).floor().clamp(torch.zeros_like(shape), shape - 1)
    step = way.sign()
    while len(cell):
        yield _row(cell.long(), grid)
        crossing = (cell + (step > 0) - start) / way
        crossing[step == 0] = torch.inf
        t, axis = crossing.min(1)
        cell = cell.scatter_add(1, axis[:, None], step.gather(1, axis[:, None]))
        going = (t < leave) & ((cell >= 0) & (cell < shape)).all(1)
        cell, step, way, leave = cell[going], step[going], way[going], leave[going]


def _within(start: Tensor, way: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
    """Where each ray enters and leaves the box of the grid, shares of its way from 0."""
    first, last = (0 - start) / way, (shape - start) / way
    along = way != 0
    enter = torch.where(along, first.minimum(last), -torch.inf)
    leave = torch.where(along, first.maximum(last), torch.inf)
    beside = (~along & ((start < 0) | (start >= shape))).any(1)
    enter = enter.amax(1).clamp(min=0)
    return torch.where(beside, torch.inf, enter), leave.amin(1)


def _row(cells: Tensor, grid: Grid) -> Tensor:
    x, y, z = cells.unbind(1)
    return (x * grid.shape[1] + y) * grid.shape[2] + z
