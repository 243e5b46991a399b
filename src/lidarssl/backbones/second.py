"""SECOND without its detection head: a sparse trunk, seen from above, then dense convolutions.

Source: Yan et al., "SECOND: Sparsely Embedded Convolutional Detection", Sensors 2018, in the
layers and under the names of OpenPCDet: ``backbone_3d.*`` (see ``voxelnet``) and
``backbone_2d.{blocks,deblocks}.I.J.*``. ALSO pretrains it as it is; NCLR's BEVNet is the same
network with a 1x1 head (:func:`bevnet`).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.backbones.bev import Reading
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.voxelnet import XYZ_INTENSITY, BoundedVoxels, VoxelNet
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch, PointFeatures
from lidarssl.geometry.hard_voxels import Range, Size
from lidarssl.sparse.norms import MapNorm
from lidarssl.sparse.tensor import SparseTensor


class BevConvolutions(nn.Module):
    """Convolutions at falling resolutions, each brought back to the first and concatenated.

    ``BaseBEVBackbone`` of OpenPCDet and its names.

    Args:
        in_channels: of the map.
        layers: 3x3 convolutions of each block after the first one.
        strides: of each block.
        channels: of each block.
        up_channels: of each block after it is brought back.
        bn_momentum: of the batch norms.

    Attributes:
        out_channels: of the output.
    """

    def __init__(
        self,
        in_channels: int,
        layers: Sequence[int] = (5, 5),
        strides: Sequence[int] = (1, 2),
        channels: Sequence[int] = (128, 256),
        up_channels: Sequence[int] = (256, 256),
        bn_momentum: float = 0.01,
    ) -> None:
        super().__init__()
        self._momentum = bn_momentum
        self.blocks, self.deblocks = nn.ModuleList(), nn.ModuleList()
        scales = itertools.accumulate(strides, operator.mul)
        for count, stride, width, up, scale in zip(
            layers, strides, channels, up_channels, scales, strict=True
        ):
            block: list[nn.Module] = [nn.ZeroPad2d(1)]
            block += self._unit(nn.Conv2d(in_channels, width, 3, stride, bias=False))
            for _ in range(count):
                block += self._unit(nn.Conv2d(width, width, 3, padding=1, bias=False))
            self.blocks.append(nn.Sequential(*block))
            back = nn.ConvTranspose2d(width, up, scale, stride=scale, bias=False)
            self.deblocks.append(nn.Sequential(*self._unit(back)))
            in_channels = width
        self.out_channels = sum(up_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        rows, columns = maps.shape[2:]
        outputs = []
        for block, back in zip(self.blocks, self.deblocks, strict=True):
            maps = block(maps)
            # An odd size is rounded up on the way down.
            outputs.append(back(maps)[:, :, :rows, :columns])
        return torch.cat(outputs, 1)

    def _unit(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
        norm = MapNorm(convolution.out_channels, eps=1e-3, momentum=self._momentum)
        return [convolution, norm, nn.ReLU()]


class Second(Backbone):
    """SECOND's 3-D and 2-D backbones.

    Tokens ``cells``, as ALSO: all cells of the map, empty ones included. Those of a frame are in
    row-major order (y, x), ``bev.height`` x ``bev.width`` of them, at z = 0. A point has the
    token of its cell; one outside the range that of the nearest cell.

    Tokens ``voxels``, as NCLR: the occupied voxels at the mean of their points, in the order
    (frame, x, y, z), with the features of the map there. A point has the token of its voxel; one
    that is in none (out of range, or beyond ``max_voxels``) is a token of its own, with zeros,
    after all voxels.

    Args:
        point_range, voxel_size, inputs, radius, added_height, residual, max_points, max_voxels,
            trunk_channels: of the trunk, see ``VoxelNet``.
        channels: of the four stages of the trunk.
        layers: 3x3 convolutions of each block of the plane after its first.
        strides: of the blocks.
        plane_channels: of the blocks.
        up_channels: of the blocks brought back to the resolution of the map.
        bn_momentum: of every batch norm.
        head_channels: adds the 1x1 convolution ``final`` with bias.
        positions: of the tokens: ``centers`` of the cells, or ``stretched`` from edge to edge,
            as ALSO's published code. Those of ``cells``.
        tokens: ``cells`` or ``voxels``.
        reading: of the map at ``voxels``, see ``lidarssl.backbones.bev.BevGrid.read``.

    Attributes:
        out_channels: width of the output.
        bev: the cells of the map.

    Raises:
        ConfigError: as ``VoxelNet``, or lists whose lengths differ.
    """

    _positions: Tensor

    def __init__(
        self,
        point_range: Range = (0.0, -40.0, -3.0, 70.4, 40.0, 1.0),
        voxel_size: Size = (0.05, 0.05, 0.1),
        inputs: PointInputs = XYZ_INTENSITY,
        radius: float | None = None,
        added_height: int = 1,
        residual: bool = False,
        channels: tuple[int, int, int, int] = (16, 32, 64, 64),
        trunk_channels: int = 128,
        layers: tuple[int, ...] = (5, 5),
        strides: tuple[int, ...] = (1, 2),
        plane_channels: tuple[int, ...] = (128, 256),
        up_channels: tuple[int, ...] = (256, 256),
        max_points: int | None = None,
        max_voxels: int | None = None,
        bn_momentum: float = 0.01,
        head_channels: int | None = None,
        positions: Literal["centers", "stretched"] = "centers",
        tokens: Literal["cells", "voxels"] = "cells",
        reading: Reading = "centers",
    ) -> None:
        super().__init__()
        _check_blocks(layers, strides, plane_channels, up_channels)
        self.tokens, self.reading = tokens, reading
        self.columns = tokens == "cells"
        if tokens == "voxels":
            self.fov = (point_range[:3], point_range[3:])
        self.backbone_3d = VoxelNet(
            point_range,
            voxel_size,
            inputs,
            radius,
            added_height,
            residual,
            channels,
            trunk_channels,
            max_points,
            max_voxels,
            bn_momentum,
        )
        self.backbone_2d = BevConvolutions(
            self.backbone_3d.out_channels, layers, strides, plane_channels, up_channels, bn_momentum
        )
        self.bev = self.backbone_3d.bev
        self.out_channels = self.backbone_2d.out_channels
        self.final: nn.Conv2d | None = None
        if head_channels is not None:
            self.final = nn.Conv2d(self.out_channels, head_channels, 1)
            self.out_channels = head_channels
        self.register_buffer(
            "_positions", self.bev.positions(positions == "stretched"), persistent=False
        )

    def forward(self, points: PointBatch) -> PointFeatures:
        voxels = self.backbone_3d.voxels(points)
        maps = self.forward_map(voxels.tensor(), points.batch_size)
        return self._cells(maps, points) if self.columns else self._voxels(maps, points, voxels)

    def _cells(self, maps: Tensor, points: PointBatch) -> PointFeatures:
        frames = torch.arange(points.batch_size, device=maps.device)
        return PointFeatures(
            positions=self._positions.to(points.points.dtype).repeat(points.batch_size, 1),
            features=maps.permute(0, 2, 3, 1).flatten(0, 2),
            batch=frames.repeat_interleave(self.bev.height * self.bev.width),
            token_of_point=self.bev.cell_of(points.points, points.batch),
        )

    def _voxels(self, maps: Tensor, points: PointBatch, voxels: BoundedVoxels) -> PointFeatures:
        frame = voxels.tensor().coordinates[:, 0]
        features = self.bev.read(maps, voxels.centroids, frame, self.reading)
        alone = (voxels.voxel_of_point < 0).nonzero()[:, 0]
        token = voxels.voxel_of_point.clone()
        token[alone] = len(frame) + torch.arange(len(alone), device=token.device)
        return PointFeatures(
            positions=torch.cat([voxels.centroids, points.points[alone]]),
            features=torch.cat([features, features.new_zeros(len(alone), self.out_channels)]),
            batch=torch.cat([frame, points.batch[alone]]),
            token_of_point=token,
        )

    def forward_map(self, x: SparseTensor, batch_size: int) -> Tensor:
        """Voxels to the map, (B, out_channels, H, W), rows along y."""
        maps: Tensor = self.backbone_2d(self.backbone_3d.forward_map(x, batch_size))
        return maps if self.final is None else self.final(maps)

    def prepare(self, points: PointBatch) -> PointBatch:
        """Voxels and every kernel map of the trunk, in ``points.prepared``."""
        return self.backbone_3d.prepare(points)


def _check_blocks(*lists: tuple[int, ...]) -> None:
    if not lists[0] or len({len(one) for one in lists}) > 1 or math.prod(map(min, lists[1:])) < 1:
        raise ConfigError(
            f"{', '.join(map(str, lists))} do not describe blocks",
            field="layers, strides, plane_channels, up_channels",
            remedy="give each one positive number per block",
        )


def bevnet(
    out_channels: int = 64,
    max_points: int | None = None,
    max_voxels: int | None = None,
    reading: Reading = "centers",
) -> Second:
    """NCLR's network as they pretrain it on nuScenes, whose intensities reach 255.

    Args:
        out_channels: of the head ``final``.
        max_points, max_voxels: 10 and 60000 in the publication.
        reading: of the map at the voxels; ``corners`` in the publication.
    """
    return Second(
        point_range=(-51.2, -51.2, -3.0, 51.2, 51.2, 1.0),
        inputs=replace(XYZ_INTENSITY, scale=(1.0, 1.0, 1.0, 1 / 255)),
        max_points=max_points,
        max_voxels=max_voxels,
        head_channels=out_channels,
        tokens="voxels",
        reading=reading,
    )
