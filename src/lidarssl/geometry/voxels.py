"""Voxel grids: which cell a point falls into, by the rules of the published backbones.

The rules differ in the order of the voxels and at the borders of cells, and a network trained
with one rule sees other voxels under another:

===================  =============================================  ========================
rule                 cell                                           order of the voxels
===================  =============================================  ========================
slidr_cylindrical    floor(rho / v), floor(azimuth in degrees),     first appearance
                     floor(z / v)
slidr_cartesian      floor(xyz / v)                                 first appearance
nclr_me              round half to even(xyz / v), minus minimum     first appearance
also                 round half to even(xyz / v), minus minimum     sorted by (x, y, z)
nclr_torchsparse     floor(xyz / v - min(xyz / v))                  sorted by (x, y, z)
waffleiron           floor((xyz - min(xyz)) / v)                    sorted by (x, y, z)
===================  =============================================  ========================

All arithmetic is float32, as in the code these rules come from: the loaders of SLidR, ALSO, NCLR,
WaffleIron and ScaLR, and the quantisation of MinkowskiEngine 0.5.4 and torchsparse 1.4.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.geometry.grouping import Groups, cell_keys, group_rows
from lidarssl.rows import true_rows

LARGEST_CELL = 2**31 - 1
"""Sparse-convolution libraries keep cells in 32 bits."""

_ROUNDING = 1e-6  # relative; more than an arc tangent and three quotients lose in float32

VoxelSize = float | tuple[float, float, float]


@dataclass(frozen=True)
class Voxels:
    """Occupied voxels of one cloud.

    Attributes:
        coordinates: (V, 3) int64 cell of each voxel.
        index: (V,) int64 representative point of each voxel: the first that falls into it.
        inverse: (N,) int64 voxel of each point.
    """

    coordinates: Tensor
    index: Tensor
    inverse: Tensor


def voxelize(points: Tensor, rule: str, voxel_size: VoxelSize) -> Voxels:
    """Group the points of one cloud into voxels.

    Args:
        points: (N, 3) m, on any device; taken as float32.
        rule: one of the table above.
        voxel_size: m, one or one per axis. Of ``slidr_cylindrical`` the second is in degrees,
            and 1 when a single number is given.

    Raises:
        ConfigError: unknown rule, or a size that is not positive and finite.
        DataError: a point that is not finite, or too far away for 32-bit cells.
    """
    sites, groups = sorted_voxels(points, rule, voxel_size)
    coordinates = torch.stack(sites.unbind(), 1)
    index, inverse = groups.first, groups.of_rows()
    if _RULES[rule].sorted:
        return Voxels(coordinates, index, inverse)
    # Marks in the order of the rows number the voxels by their first appearance.
    is_first = torch.zeros_like(inverse, dtype=torch.bool).index_fill_(0, index, True)
    rank = is_first.cumsum(0).index_select(0, index) - 1
    order = torch.empty_like(rank).scatter_(0, rank, torch.arange(len(rank), device=rank.device))
    return Voxels(
        coordinates.index_select(0, order),
        index.index_select(0, order),
        rank.index_select(0, inverse),
    )


def sorted_voxels(points: Tensor, rule: str, voxel_size: VoxelSize) -> tuple[Tensor, Groups]:
    """Voxels sorted by (x, y, z) whatever the rule; arguments and errors as ``voxelize``.

    Returns:
        (3, V) int64 cell of each voxel, a row per axis, and the points of each.
    """
    cells = _cells(points, rule, voxel_size)
    groups = group_rows(cell_keys(cells))
    return _counted(cells.index_select(1, groups.first), _origin(cells, rule)), groups


def voxel_keys(points: Tensor, rule: str, voxel_size: VoxelSize) -> Tensor:
    """A number per point, (N,) integers: equal in one voxel, and sorted as by (x, y, z)."""
    return cell_keys(_cells(points, rule, voxel_size))


def cell_coordinates(points: Tensor, rule: str, voxel_size: VoxelSize) -> Tensor:
    """Cell of every point, (N, 3) int64; arguments and errors as ``voxelize``."""
    cells = _cells(points, rule, voxel_size)
    return torch.stack(_counted(cells, _origin(cells, rule)).unbind(), 1)


def _cells(points: Tensor, rule: str, voxel_size: VoxelSize) -> Tensor:
    """Cell of every point before any shift, (3, N) float32 without fractions."""
    if rule not in _RULES:
        raise unknown_name("rule", rule, _RULES)
    size = _size_tensor(voxel_size, rule, points.device)
    if points.ndim != 2 or points.shape[1] != 3:
        raise DataError(f"points are {tuple(points.shape)}, not (N, 3)", field="points")
    if points.shape[0] == 0:
        return torch.zeros((3, 0), device=points.device)
    cells = _RULES[rule].cells(points.float(), size[:, None])
    _check_cells(cells)
    return cells


def _origin(cells: Tensor, rule: str) -> Tensor:
    """Lowest cell (3,) int64 of the rules that count from there, else zeros."""
    if not _RULES[rule].shifted or cells.shape[1] == 0:
        return torch.zeros(3, dtype=torch.int64, device=cells.device)
    return cells.amin(1).long()


def _counted(cells: Tensor, origin: Tensor) -> Tensor:
    """(3, V) cells from an origin (3,), int64."""
    return cells.long() - origin[:, None]


@dataclass(frozen=True)
class _Rule:
    cells: Callable[[Tensor, Tensor], Tensor]
    sorted: bool = False
    shifted: bool = False


def _axes(points: Tensor) -> Tensor:
    """(N, 3) -> (3, N)."""
    if points.device.type != "cpu":
        return torch.stack(points.unbind(1))
    # In half the time.
    return torch.from_numpy(np.array(points.detach().numpy().T, order="C"))


def _cylindrical(points: Tensor, size: Tensor) -> Tensor:
    cells = _axes(points)
    x, y, z = cells
    azimuth = _azimuth_cells(y, x, size[1])
    _decide_borders(azimuth, points, size[1])
    x.square_().add_(y.square_()).sqrt_().div_(size[0])
    y.copy_(azimuth)
    z.div_(size[2])
    return cells.floor_()


def _azimuth_cells(y: Tensor, x: Tensor, size: Tensor) -> Tensor:
    """Azimuth over ``size`` degrees, its fraction included."""
    half_turn, pi = x.new_tensor([180.0, torch.pi])
    return torch.atan2(y, x).mul_(half_turn).div_(pi).div_(size)


def _decide_borders(azimuth: Tensor, points: Tensor, size: Tensor) -> None:
    """Compute azimuths again, in place, that rounding could take across the border of a cell.

    The arc tangent of whole columns is fast and one unit in the last place off; that of elements
    apart in memory decides.
    """
    margin = _ROUNDING * 180 / float(size)
    near = (azimuth - azimuth.round()).abs_() <= margin
    rows = true_rows(near)
    x, y, _ = points.index_select(0, rows).unbind(1)
    azimuth[rows] = _azimuth_cells(y, x, size)


def _floor(points: Tensor, size: Tensor) -> Tensor:
    return torch.floor(_axes(points) / size)


def _round(points: Tensor, size: Tensor) -> Tensor:
    return torch.round(_axes(points) / size)


def _floor_from_minimum(points: Tensor, size: Tensor) -> Tensor:
    scaled = _axes(points) / size
    return torch.floor(scaled - scaled.amin(1, keepdim=True))


def _floor_above_minimum(points: Tensor, size: Tensor) -> Tensor:
    axes = _axes(points)
    return torch.floor((axes - axes.amin(1, keepdim=True)) / size)


_RULES = {
    "slidr_cylindrical": _Rule(_cylindrical),
    "slidr_cartesian": _Rule(_floor),
    "nclr_me": _Rule(_round, shifted=True),
    "also": _Rule(_round, shifted=True, sorted=True),
    "nclr_torchsparse": _Rule(_floor_from_minimum, sorted=True),
    "waffleiron": _Rule(_floor_above_minimum, sorted=True),
}


def _size_tensor(voxel_size: VoxelSize, rule: str, device: torch.device) -> Tensor:
    # A tensor on the points' device: CUDA multiplies by the reciprocal of a Python scalar,
    # which is not always the quotient.
    if isinstance(voxel_size, int | float):
        middle = 1.0 if rule == "slidr_cylindrical" else voxel_size
        voxel_size = (voxel_size, middle, voxel_size)
    size = torch.tensor(voxel_size, dtype=torch.float32)
    if size.shape != (3,) or not bool((torch.isfinite(size) & (size > 0)).all()):
        raise ConfigError(
            f"{voxel_size} is not a voxel size",
            field="voxel_size",
            remedy="give one or three positive numbers",
        )
    return size.to(device)


def _check_cells(cells: Tensor) -> None:
    # One comparison finds NaN, infinity and overflow alike.
    extremes = torch.stack([cells.amin(1), cells.amax(1)])
    if bool((extremes.abs() <= LARGEST_CELL).all()):
        return
    bad = ~(cells.abs() <= LARGEST_CELL).all(0)
    raise DataError(
        f"{int(bad.sum())} of {len(bad)} points are not finite or more than "
        f"{LARGEST_CELL} cells away; the first is point {int(bad.int().argmax())}",
        field="points",
        remedy="remove such points when the frame is loaded, and check that the unit is metres",
    )


def first_rows(group: Tensor, count: int) -> Tensor:
    """First row of each group, (count,) int64, every group being in ``group`` (N,)."""
    rows = torch.arange(group.shape[0], device=group.device)
    return rows.new_full((count,), group.shape[0]).scatter_reduce_(0, group, rows, "amin")
