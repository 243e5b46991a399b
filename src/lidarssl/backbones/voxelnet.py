"""VoxelNet: the sparse 3-D trunk of voxel-based detectors, on spconv's grids and weights.

One class, three published networks (layers and names of OpenPCDet):

=====================  ==========================================================================
VoxelBackBone8x        ``VoxelNet(added_height=1)``
VoxelResBackBone8x     ``VoxelNet(added_height=1, residual=True, channels=(16, 32, 64, 128))``
VoxelNet of SLidR and  ``slidr_voxelnet()``: no added height, and the 1x1x1 convolution ``final``
OLIVINE
=====================  ==========================================================================

Keys: ``conv_input.0.weight`` (convolution, (C_out, k_z, k_y, k_x, C_in)) and ``conv_input.1.*``
(batch norm); ``convS.U.0.weight`` and ``convS.U.1.*`` for unit U of stage S = 1..4, or
``convS.U.{conv1,bn1,conv2,bn2}.*`` for a residual one; ``conv_out.0.weight``, ``conv_out.1.*``;
``final.weight`` with ``head_channels``, and ``final_class_level.weight`` with ``heads`` 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.backbones.bev import BevGrid, Reading
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.batching import sizes_of
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch, PointFeatures
from lidarssl.geometry.hard_voxels import (
    BoundedGrid,
    Range,
    Size,
    check_limits,
    hard_voxelize,
)
from lidarssl.geometry.keys import site_keys
from lidarssl.sparse.kernel import Triple, strided_shape
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.spconv import ConvUnit, ResidualUnit, SpconvConv3d, dense_map
from lidarssl.sparse.tensor import SparseTensor

STRIDE = 8
"""Voxels along x and y of a cell of the output."""

XYZ_INTENSITY = PointInputs(("x", "y", "z", "intensity"), reduce="mean")


@dataclass(frozen=True)
class Voxelization:
    """How the points of a frame become voxels of a grid with borders.

    Attributes:
        grid: the cells.
        added_height: cells without points on top of them.
        inputs: features of a voxel.
        radius: m, horizontal; farther points are dropped; None = none.
        max_points, max_voxels: see ``lidarssl.geometry.hard_voxels.hard_voxelize``.
    """

    grid: BoundedGrid
    added_height: int
    inputs: PointInputs
    radius: float | None
    max_points: int | None
    max_voxels: int | None

    @property
    def shape(self) -> Triple:
        x, y, z = self.grid.shape
        return (x, y, z + self.added_height)


@dataclass
class BoundedVoxels:
    """Voxels of several frames, sorted by (batch, x, y, z).

    Attributes:
        made_by: how.
        features: (V, C) float32.
        centroids: (V, 3) m, mean of the points that a voxel keeps.
        inside: (N,) bool, whether a point is in the grid and the radius.
        voxel_of_point: (N,) int64; -1 outside, or in a voxel beyond the limit.
        maps: the sites, and the kernel maps made so far.
    """

    made_by: Voxelization
    features: Tensor
    centroids: Tensor
    inside: Tensor
    voxel_of_point: Tensor
    maps: KernelMaps

    def tensor(self) -> SparseTensor:
        return SparseTensor(self.features, self.maps)


def bounded_voxels(points: PointBatch, rule: Voxelization) -> BoundedVoxels:
    """Apply the rule to each frame by itself."""
    sizes = sizes_of(points)
    within = torch.ones_like(points.batch, dtype=torch.bool)
    if rule.radius is not None:
        within = points.points[:, :2].norm(dim=1) <= rule.radius
    limit = 1 if rule.inputs.reduce == "first" else rule.max_points
    values = rule.inputs.of_points(points)
    sites, features = [points.batch.new_empty(0, 4)], [values.new_empty(0, values.shape[1])]
    centroids, owners, count = [points.points.new_empty(0, 3)], [points.batch.new_empty(0)], 0
    for frame, (cloud, near, inputs) in enumerate(
        zip(points.points.split(sizes), within.split(sizes), values.split(sizes), strict=True)
    ):
        voxels = hard_voxelize(cloud, rule.grid, limit, rule.max_voxels, near)
        sites.append(F.pad(voxels.coordinates, (1, 0), value=frame))
        features.append(voxels.mean(inputs))
        centroids.append(voxels.mean(cloud))
        owner = voxels.voxel_of_point
        owners.append(torch.where(owner >= 0, owner + count, owner))
        count += voxels.coordinates.shape[0]
    coordinates, voxel_of_point = torch.cat(sites), torch.cat(owners)
    order = site_keys(coordinates).argsort()
    # The last row of the table is that of the points without a voxel, -1.
    place = torch.cat([order.argsort(), order.new_tensor([-1])])
    return BoundedVoxels(
        made_by=rule,
        features=torch.cat(features)[order],
        centroids=torch.cat(centroids)[order],
        inside=within & rule.grid.cells(points.points)[1],
        voxel_of_point=place[voxel_of_point],
        maps=KernelMaps.of(coordinates[order], shape=rule.shape),
    )


class VoxelNet(Backbone):
    """Sparse convolutions down to an eighth of the resolution, read from above at the points.

    Tokens are the points: each gets the features of the map at its x, y by bilinear
    interpolation, as SLidR and OLIVINE read it; the heights of a column are channels. A point
    outside the grid gets zeros, and so do cells that no voxel reaches.

    Args:
        point_range: x, y, z of the lowest corner of the grid, then of the highest, m.
        voxel_size: along x, y, z, m.
        inputs: input features of a voxel; ``reduce: first`` takes its first point.
        radius: m, horizontal; farther points are dropped; None = none.
        added_height: empty cells on top of the grid: 1 in OpenPCDet, 0 in SLidR and OLIVINE.
            Of 40 cells it makes 2 heights at the end instead of 1, and without it the highest
            ones reach no output.
        residual: residual blocks instead of plain units.
        channels: of the four stages.
        trunk_channels: of the last convolution.
        max_points, max_voxels: of a voxel and a frame, the first ones; the published networks
            have 10 and 60000 (SLidR, OLIVINE), 5 and 16000 (SECOND on KITTI), 5 and 100000
            (ALSO). None = all: only then does the order of the points not matter.
        bn_momentum: of every batch norm.
        head_channels: adds the 1x1x1 convolution ``final``, without bias.
        heads: 2 adds ``final_class_level``, a second head on the same features; its channels
            come after all of those of ``final``.
        normalize: divide what each head gives a site by its L2 norm.
        reading: of the map, see ``lidarssl.backbones.bev.BevGrid.read``.

    Attributes:
        out_channels: width of the output: channels times heights.
        bev: the cells of the map.

    Raises:
        ConfigError: a range or size that makes no grid, or too few cells of height.
    """

    def __init__(
        self,
        point_range: Range = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        voxel_size: Size = (0.1, 0.1, 0.2),
        inputs: PointInputs = XYZ_INTENSITY,
        radius: float | None = None,
        added_height: int = 0,
        residual: bool = False,
        channels: tuple[int, int, int, int] = (16, 32, 64, 64),
        trunk_channels: int = 128,
        max_points: int | None = None,
        max_voxels: int | None = None,
        bn_momentum: float = 0.01,
        head_channels: int | None = None,
        heads: Literal[1, 2] = 1,
        normalize: bool = False,
        reading: Reading = "centers",
    ) -> None:
        super().__init__()
        check_limits(max_points, max_voxels)
        grid = BoundedGrid(point_range, voxel_size)
        self.voxelization = Voxelization(grid, added_height, inputs, radius, max_points, max_voxels)
        self.normalize, self.reading = normalize, reading
        self._momentum = bn_momentum
        first = len(inputs.columns)
        self.conv_input = self._unit(SpconvConv3d(first, channels[0], 3, submanifold=True))
        self.conv1 = self._stage(None, channels[0], residual, 2 if residual else 1)
        self.conv2, self.conv3, self.conv4 = (
            self._stage(SpconvConv3d(before, after, 3, 2, padding), after, residual, 2)
            for before, after, padding in zip(
                channels, channels[1:], ((1, 1, 1), (1, 1, 1), (1, 1, 0)), strict=False
            )
        )
        last = SpconvConv3d(channels[-1], trunk_channels, (1, 1, 3), stride=(1, 1, 2))
        self.conv_out = self._unit(last)
        self.final: SpconvConv3d | None = None
        self.final_class_level: SpconvConv3d | None = None
        if head_channels is not None:
            self.final = SpconvConv3d(trunk_channels, head_channels, 1)
            if heads == 2:
                self.final_class_level = SpconvConv3d(trunk_channels, head_channels, 1)
        elif heads != 1:
            raise ConfigError("two heads of no width", field="heads", remedy="give head_channels")
        width, height, depth = self._output_shape()
        self.out_channels = depth * (heads * head_channels if head_channels else trunk_channels)
        self.bev = BevGrid(
            origin=(grid.bounds[0], grid.bounds[1]),
            cell=(STRIDE * grid.voxel_size[0], STRIDE * grid.voxel_size[1]),
            width=width,
            height=height,
        )

    def forward(self, points: PointBatch) -> PointFeatures:
        voxels = self.voxels(points)
        maps = self.forward_map(voxels.tensor(), points.batch_size)
        features = self.bev.read(maps, points.points, points.batch, self.reading)
        features = torch.where(voxels.inside[:, None], features, 0)
        tokens = torch.arange(points.batch.shape[0], device=points.batch.device)
        return PointFeatures(points.points, features, points.batch, tokens)

    def forward_map(self, x: SparseTensor, batch_size: int) -> Tensor:
        """Voxels to the map, (B, out_channels, H, W): channel c * heights + z, rows along y."""
        return dense_map(self.forward_sparse(x), batch_size)

    def forward_sparse(self, x: SparseTensor) -> SparseTensor:
        """The network on voxels.

        Args:
            x: (V, number of input columns), cast to the dtype of the parameters.

        Returns:
            (sites of the last level, channels).
        """
        x = x.with_features(x.features.to(next(self.parameters()).dtype))
        x = self.conv_input(x)
        for stage in (self.conv1, self.conv2, self.conv3, self.conv4, self.conv_out):
            x = stage(x)
        heads = [head for head in (self.final, self.final_class_level) if head is not None]
        features = [head(x).features for head in heads] or [x.features]
        if self.normalize:
            features = [F.normalize(one, dim=1) for one in features]
        return x.with_features(torch.cat(features, dim=1))

    def prepare(self, points: PointBatch) -> PointBatch:
        """Voxels and every kernel map of the network, in ``points.prepared``."""
        voxels, level = self.voxels(points), 0
        for convolution in self._convolutions():
            level, _ = convolution.connect(voxels.maps, level)
        return replace(points, prepared=voxels)

    def voxels(self, points: PointBatch) -> BoundedVoxels:
        """Those of ``points.prepared`` if they are what this network needs, else new ones."""
        made = points.prepared
        if isinstance(made, BoundedVoxels) and made.made_by == self.voxelization:
            return made
        return bounded_voxels(points, self.voxelization)

    def _convolutions(self) -> Iterator[SpconvConv3d]:
        """Those with a kernel map, in the order in which they run."""
        for module in self.modules():
            if isinstance(module, SpconvConv3d) and not module.pointwise:
                yield module

    def _output_shape(self) -> Triple:
        shape = self.voxelization.shape
        try:
            for one in self._convolutions():
                if not one.submanifold:
                    shape = strided_shape(
                        shape, one.kernel_size, one.stride, one.dilation, one.padding
                    )
        except ValueError as error:
            raise ConfigError(
                f"the grid has {self.voxelization.shape} cells along x, y, z: too few",
                field="point_range, voxel_size",
                remedy="give a grid of at least 25 cells of height",
            ) from error
        return shape

    def _unit(self, convolution: SpconvConv3d) -> ConvUnit:
        return ConvUnit(convolution, momentum=self._momentum)

    def _stage(
        self, down: SpconvConv3d | None, channels: int, residual: bool, count: int
    ) -> nn.Sequential:
        units: list[nn.Module] = [] if down is None else [self._unit(down)]
        for _ in range(count):
            units.append(
                ResidualUnit(channels, momentum=self._momentum)
                if residual
                else self._unit(SpconvConv3d(channels, channels, 3, submanifold=True))
            )
        return nn.Sequential(*units)


def slidr_voxelnet(
    out_channels: int | None = 64,
    max_points: int | None = None,
    max_voxels: int | None = None,
    heads: Literal[1, 2] = 1,
) -> VoxelNet:
    """The network of SLidR and OLIVINE as they pretrain it on nuScenes.

    Args:
        out_channels: of the head ``final``; None = no head.
        heads: 1 in SLidR, 2 in OLIVINE.
        max_points, max_voxels: 10 and 60000 in the publications.
    """
    return VoxelNet(
        radius=51.2,
        max_points=max_points,
        max_voxels=max_voxels,
        head_channels=out_channels,
        heads=heads,
        normalize=True,
        reading="corners",
    )
