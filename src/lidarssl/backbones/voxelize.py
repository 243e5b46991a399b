"""Points of a batch -> occupied voxels with input features, for sparse backbones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lidarssl.batching import sizes_of
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch
from lidarssl.geometry.voxels import VoxelSize, sorted_voxels
from lidarssl.sparse.levels import Level
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.pairs import Rows
from lidarssl.wording import counted


def _xyz(points: PointBatch) -> Tensor:
    return points.points if points.input_points is None else points.input_points


_COLUMNS: dict[str, Callable[[PointBatch], Tensor]] = {
    "intensity": lambda points: points.intensity,
    "standard_intensity": lambda points: points.standard_intensity(),
    "x": lambda points: _xyz(points)[:, 0],
    "y": lambda points: _xyz(points)[:, 1],
    "z": lambda points: _xyz(points)[:, 2],
    "range": lambda points: _xyz(points)[:, :2].norm(dim=1),
    "radius": lambda points: _xyz(points).norm(dim=1),
    "one": lambda points: torch.ones_like(points.intensity),
}


@dataclass(frozen=True)
class PointInputs:
    """Which values of its points a voxel starts from.

    Attributes:
        columns: among intensity, standard_intensity (mean 0, deviation 1 over its dataset), x, y,
            z (m), range (horizontal, m), radius (m) and one (a constant).
        scale: multiplies each column; None = 1.
        shift: added to each scaled column; None = 0.
        reduce: ``first`` takes the voxel's first point, ``mean`` averages its points.

    Raises:
        ConfigError: an unknown column, or lists of different lengths.
    """

    columns: tuple[str, ...] = ("intensity",)
    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    reduce: Literal["first", "mean"] = "first"

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in _COLUMNS]
        if unknown or not self.columns:
            raise ConfigError(
                f"no input column is called {', '.join(unknown)}" if unknown else "no column",
                field="inputs.columns",
                remedy=f"choose among {', '.join(_COLUMNS)}",
            )
        for name, values in (("scale", self.scale), ("shift", self.shift)):
            if values is not None and len(values) != len(self.columns):
                raise ConfigError(
                    f"{counted(len(values), 'value')} for {counted(len(self.columns), 'column')}",
                    field=f"inputs.{name}",
                    remedy="give one per column",
                )
        if self.reduce not in ("first", "mean"):
            raise ConfigError(
                f"{self.reduce!r} is neither 'first' nor 'mean'", field="inputs.reduce"
            )

    def of_points(self, points: PointBatch, rows: Tensor | None = None) -> Tensor:
        """Input values of every point, or of those in ``rows``, (N, len(columns))."""
        values = _chosen([_COLUMNS[name](points) for name in self.columns], rows)
        if self.scale is not None:
            values = values * values.new_tensor(self.scale)
        if self.shift is not None:
            values = values + values.new_tensor(self.shift)
        return values


def _chosen(columns: list[Tensor], rows: Tensor | None) -> Tensor:
    """Columns side by side, of some rows."""
    if rows is None:
        return torch.stack(columns, dim=1)
    if len(columns) == 1:  # single numbers are gathered several times as fast as rows of one
        return columns[0].index_select(0, rows)[:, None]
    return torch.stack(columns, dim=1).index_select(0, rows)


@dataclass(frozen=True)
class VoxelGrid:
    """How points become voxels.

    Attributes:
        rule: voxelisation rule, see ``lidarssl.geometry.voxels.voxelize``.
        voxel_size: m, one or three.
        inputs: features of a voxel.
    """

    rule: str
    voxel_size: VoxelSize
    inputs: PointInputs


@dataclass
class VoxelBatch:
    """Voxels of several frames, sorted by (batch, x, y, z).

    Attributes:
        grid: how they were made.
        features: (V, C) float32.
        positions: (V, 3) float32 m, centroid of the points of each voxel.
        token_of_point: (N,) int64 voxel of each point.
        maps: the sites, and the kernel maps made so far.
    """

    grid: VoxelGrid
    features: Tensor
    positions: Tensor
    token_of_point: Tensor
    maps: KernelMaps

    @property
    def batch(self) -> Tensor:
        """(V,) int64 frame index."""
        return self.maps.levels[0].coordinates[:, 0]


def voxelize_batch(points: PointBatch, grid: VoxelGrid) -> VoxelBatch:
    """Apply the rule to each frame by itself; a frame without points has no voxels.

    Args:
        points: N points.
        grid: rule, size and inputs.
    """
    sites, token_of_point, rows = _voxels_of_frames(points, grid)
    count = rows.start.diff()[:, None]
    if grid.inputs.reduce == "first":
        first = rows.pairs.index_select(0, rows.start[:-1])
        features = grid.inputs.of_points(points, first)
    else:
        features = rows.sum(grid.inputs.of_points(points)) / count
    return VoxelBatch(
        grid=grid,
        features=features,
        positions=rows.sum(points.points) / count,
        token_of_point=token_of_point,
        # They are unique and sorted as they are.
        maps=KernelMaps([Level(sites, (1, 1, 1))]),
    )


def _voxels_of_frames(points: PointBatch, grid: VoxelGrid) -> tuple[Tensor, Tensor, Rows]:
    """(V, 4) sorted sites, (N,) voxel of each point, and the points of each voxel."""
    sites, start = [points.batch.new_empty(0, 4)], []
    owner, order = torch.empty_like(points.batch), torch.empty_like(points.batch)
    first_point = first_voxel = 0
    for frame, cloud in enumerate(points.points.split(sizes_of(points))):
        cells, groups = sorted_voxels(cloud, grid.rule, grid.voxel_size)
        sites.append(torch.stack([torch.full_like(cells[0], frame), *cells], 1))
        start.append(groups.start + first_point)
        mine = slice(first_point, first_point + cloud.shape[0])
        owner[mine].scatter_(0, groups.order, groups.group + first_voxel)
        torch.add(groups.order, first_point, out=order[mine])
        first_point = mine.stop
        first_voxel += cells.shape[1]
    start.append(owner.new_tensor([first_point]))
    return torch.cat(sites), owner, Rows(order, torch.cat(start))
