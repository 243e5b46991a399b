"""Features from voxels to points and back, as in SPVCNN (Tang et al., ECCV 2020).

Both ways are linear: every output row is a weighted sum of input rows. The rows and weights
depend on coordinates alone. They are computed once per batch and level, and can be computed
ahead in a loader worker.

A voxel sits at its lowest corner: a point at the coordinates of a voxel gets that voxel's
features, without a shift of half a cell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.sparse.kernel import Convention, Triple
from lidarssl.sparse.levels import Level
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.pairs import KernelMap, Rows

_ENOUGH = 1e-8  # added to the sum of the corners' weights by torchsparse


@dataclass
class WeightedRows:
    """A sparse matrix in compressed-row form.

    Attributes:
        index: (E,) int64 input row of each entry, output row after output row.
        weight: (E,) float32 or float64.
        start: (N_out + 1,) int64; the entries of row n are start[n]:start[n + 1].
    """

    index: Tensor
    weight: Tensor
    start: Tensor

    def sum(self, features: Tensor) -> Tensor:
        """(N_out, C) weighted sums of the (N_in, C) features, in a fixed order."""
        if self.index.shape[0] == 0:
            return features.new_zeros(self.start.shape[0] - 1, features.shape[1])
        return F.embedding_bag(
            self.index,
            features,
            self.start,
            mode="sum",
            per_sample_weights=self.weight.to(features.dtype),
            include_last_offset=True,
        )


@dataclass
class Blend:
    """A linear map of rows.

    Attributes:
        rows: what each output row sums.
        transposed: the matrix transposed, which takes gradients back.
    """

    rows: WeightedRows
    transposed: WeightedRows


def blend(features: Tensor, weights: Blend) -> Tensor:
    """Apply a linear map of rows; at least float32 inside.

    Args:
        features: (N_in, C).
        weights: see ``voxel_to_point`` and ``point_to_voxel``.

    Returns:
        (N_out, C), differentiable in features; the weights are constants.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    return _Blend.apply(features.to(wide), weights).to(features.dtype)


def voxel_to_point(level: Level, points: Tensor, batch: Tensor) -> Blend:
    """Trilinear interpolation between the eight voxels around each point.

    Voxels that are not occupied count for nothing, and the weights of the others add up to 1
    (up to 1e-8 of a cell, as in torchsparse 1.4); a point without any gets zeros.

    Args:
        level: the voxels.
        points: (P, 3) in cells of the finest grid, integer or not.
        batch: (P,) int64 frame of each point.

    Returns:
        From (V, C) features of voxels to (P, C) features of points.

    Raises:
        DataError: wrong shapes, or a point that is not finite.
    """
    cells, fraction = _cells(points, batch, level.stride)
    found = _pairs(level, cells, size=2)
    corner = torch.repeat_interleave(
        torch.arange(8, device=batch.device), batch.new_tensor(found.counts)
    )
    bits = torch.stack([corner >> 2 & 1, corner >> 1 & 1, corner & 1], dim=1).bool()
    inside = fraction[found.out_row]
    weight = torch.where(bits, inside, 1 - inside).prod(1)
    total = found.by_out.sum(weight[:, None])[:, 0]
    weight = weight / (total + _ENOUGH)[found.out_row]
    return _blend_of(found, weight.to(_weight_dtype(points)))


def point_to_voxel(level: Level, points: Tensor, batch: Tensor) -> Blend:
    """Mean of the points inside each voxel; points outside all of them are dropped.

    Arguments and errors as ``voxel_to_point``.

    Returns:
        From (P, C) features of points to (V, C) features of voxels, zeros where no point is.
    """
    cells, _ = _cells(points, batch, level.stride)
    found = _pairs(level, cells, size=1).transposed()
    count = found.by_out.start.diff()[found.out_row]
    return _blend_of(found, (1 / count.double()).to(_weight_dtype(points)))


@dataclass
class PointVoxelMaps(KernelMaps):
    """Kernel maps of a batch whose finest voxels are points too.

    Attributes:
        blends: of each level asked for, to the points and to the voxels.
    """

    blends: dict[int, tuple[Blend, Blend]] = field(default_factory=dict)

    @classmethod
    def around(cls, maps: KernelMaps) -> PointVoxelMaps:
        """The same maps, shared, with room for blends."""
        if isinstance(maps, PointVoxelMaps):
            return maps
        return cls(levels=maps.levels, children=maps.children, maps=maps.maps)

    def between(self, level: int) -> tuple[Blend, Blend]:
        """From the voxels of a level to the points, and from the points to these voxels."""
        if level not in self.blends:
            sites = self.levels[0].coordinates
            points, batch = sites[:, 1:], sites[:, 0]
            voxels = self.levels[level]
            self.blends[level] = (
                voxel_to_point(voxels, points, batch),
                point_to_voxel(voxels, points, batch),
            )
        return self.blends[level]


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weights: Blend) -> Tensor:
        ctx.weights = weights
        return weights.rows.sum(features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        weights: Blend = ctx.weights
        back = Blend(weights.transposed, weights.rows)
        return _Blend.apply(grad.contiguous(), back), None


def _cells(points: Tensor, batch: Tensor, stride: Triple) -> tuple[Tensor, Tensor]:
    """(P, 4) lowest corner of the cell of each point, (P, 3) float64 place inside it."""
    if points.dim() != 2 or points.shape[1] != 3 or batch.shape != points.shape[:1]:
        raise DataError(
            f"points are {tuple(points.shape)} and their frames {tuple(batch.shape)}, "
            "not (P, 3) and (P,)",
            field="points",
        )
    step = batch.new_tensor(stride)
    scaled = points.double() / step
    corner = scaled.floor()
    if not bool(torch.isfinite(corner).all()):
        raise DataError("a point is not finite", field="points")
    return torch.cat([batch[:, None], corner.long() * step], dim=1), scaled - corner


def _pairs(level: Level, cells: Tensor, size: int) -> KernelMap:
    """Voxels (input) at and above the cells (output), corner after corner, z fastest."""
    # Several points may lie in one cell; only the rows that are read must be unique.
    maps = KernelMaps([level, Level(cells, level.stride)])
    return maps.kernel_map(0, 1, (size,) * 3, (1, 1, 1), Convention.TORCHSPARSE)


def _blend_of(pairs: KernelMap, weight: Tensor) -> Blend:
    def rows(by: Rows, other: Tensor) -> WeightedRows:
        return WeightedRows(other[by.pairs], weight[by.pairs], by.start)

    return Blend(rows(pairs.by_out, pairs.in_row), rows(pairs.by_in, pairs.out_row))


def _weight_dtype(points: Tensor) -> torch.dtype:
    return torch.float64 if points.dtype == torch.float64 else torch.float32
