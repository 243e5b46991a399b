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

import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.geometry.keys import site_keys

LARGEST_CELL = 2**31 - 1
"""Sparse-convolution libraries keep cells in 32 bits."""

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
    cells = cell_coordinates(points, rule, voxel_size)
    sorted_keys, inverse = torch.unique(site_keys(cells), return_inverse=True)
    index = first_rows(inverse, sorted_keys.shape[0])
    if not _RULES[rule].sorted:
        index, order = index.sort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.shape[0], device=order.device)
        inverse = rank[inverse]
    return Voxels(cells[index], index, inverse)


def cell_coordinates(points: Tensor, rule: str, voxel_size: VoxelSize) -> Tensor:
    """Cell of every point, (N, 3) int64; arguments and errors as ``voxelize``."""
    if rule not in _RULES:
        raise unknown_name("rule", rule, _RULES)
    size = _size_tensor(voxel_size, rule, points.device)
    if points.ndim != 2 or points.shape[1] != 3:
        raise DataError(f"points are {tuple(points.shape)}, not (N, 3)", field="points")
    if points.shape[0] == 0:
        return torch.zeros((0, 3), dtype=torch.int64, device=points.device)
    cells = _to_integer(_RULES[rule].cells(points.float(), size))
    return cells - cells.amin(0) if _RULES[rule].shifted else cells


@dataclass(frozen=True)
class _Rule:
    cells: Callable[[Tensor, Tensor], Tensor]
    sorted: bool = False
    shifted: bool = False


def _cylindrical(points: Tensor, size: Tensor) -> Tensor:
    x, y, z = points.unbind(1)
    half_turn, pi = points.new_tensor([180.0, torch.pi])
    azimuth = torch.atan2(y, x) * half_turn / pi
    return torch.floor(torch.stack([torch.sqrt(x * x + y * y), azimuth, z], 1) / size)


def _floor(points: Tensor, size: Tensor) -> Tensor:
    return torch.floor(points / size)


def _round(points: Tensor, size: Tensor) -> Tensor:
    return torch.round(points / size)


def _floor_from_minimum(points: Tensor, size: Tensor) -> Tensor:
    scaled = points / size
    return torch.floor(scaled - scaled.amin(0))


def _floor_above_minimum(points: Tensor, size: Tensor) -> Tensor:
    return torch.floor((points - points.amin(0)) / size)


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


def _to_integer(cells: Tensor) -> Tensor:
    # One comparison finds NaN, infinity and overflow alike.
    bad = ~(cells.abs() <= LARGEST_CELL).all(1)
    if bool(bad.any()):
        raise DataError(
            f"{int(bad.sum())} of {len(cells)} points are not finite or more than "
            f"{LARGEST_CELL} cells away; the first is point {int(bad.int().argmax())}",
            field="points",
            remedy="remove such points when the frame is loaded, and check that the unit is metres",
        )
    return cells.to(torch.int64)


def first_rows(group: Tensor, count: int) -> Tensor:
    """First row of each group, (count,) int64, every group being in ``group`` (N,)."""
    rows = torch.arange(group.shape[0], device=group.device)
    return rows.new_full((count,), group.shape[0]).scatter_reduce_(0, group, rows, "amin")
