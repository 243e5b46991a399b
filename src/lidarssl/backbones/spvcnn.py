"""SPVCNN: a sparse U-Net with a branch of points beside it (Tang et al., ECCV 2020).

As in ALSO and NCLR, the points of the branch are the occupied voxels: the branch keeps full
resolution where the U-Net halves it. Parameter names are those of ``MinkUNet``, and
``point_transforms`` as published.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch.nn.functional as F
from torch import nn

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.voxelize import PointInputs, VoxelBatch
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch
from lidarssl.sparse.layers import BatchNorm, relu_
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.points import PointVoxelMaps, blend
from lidarssl.sparse.tensor import SparseTensor


class Spvcnn(MinkUNet):
    """MinkUNet whose features pass through points three times; tokens are voxels.

    Between encoder and decoder, and in the middle of the decoder, the voxels' features are
    interpolated at the points, added to a transform of the points' own features, and averaged
    back into the voxels. After the decoder the sum of both is the output.

    The published code computes the points as (c * v) / v, which is not always c in float32.
    Here they are c, exactly.

    Args:
        inputs, rule, voxel_size, kernel_size, stem_convolutions: see ``MinkUNet``.
        width: multiplies all channels but the head's; 0.5 is the small published network.
        stem_channels, encoder_channels, decoder_channels, blocks: see ``MinkUNet``; at least
            two levels.
        bn_momentum, block_bn_momentum: see ``MinkUNet``; the first is that of the points, too.
        dropout: of the features that go from points to voxels. It is drawn from the global
            generator of torch, as every layer of torch draws.
        head_channels, normalize, checkpointing: see ``MinkUNet``.

    Raises:
        ConfigError: as ``MinkUNet``, or a single level, a width of nothing, or a dropout that
            is no probability.
    """

    def __init__(
        self,
        inputs: PointInputs = PointInputs(),  # noqa: B008 - frozen
        rule: str = "also",
        voxel_size: float | tuple[float, float, float] = 0.1,
        width: float = 1.0,
        stem_channels: int = 32,
        encoder_channels: tuple[int, ...] = (32, 64, 128, 256),
        decoder_channels: tuple[int, ...] = (256, 128, 96, 96),
        blocks: tuple[int, ...] = (2,) * 8,
        kernel_size: int = 3,
        stem_convolutions: int = 2,
        bn_momentum: float = 0.1,
        block_bn_momentum: float = 0.1,
        dropout: float = 0.3,
        head_channels: int | None = None,
        normalize: bool = False,
        checkpointing: bool = False,
    ) -> None:
        stem, encoder, decoder = (
            tuple(int(width * channels) for channels in widths)
            for widths in ((stem_channels,), encoder_channels, decoder_channels)
        )
        _check(stem + encoder + decoder, len(encoder), dropout)
        super().__init__(
            inputs=inputs,
            rule=rule,
            voxel_size=voxel_size,
            stem_channels=stem[0],
            encoder_channels=encoder,
            decoder_channels=decoder,
            blocks=blocks,
            kernel_size=kernel_size,
            stem_convolutions=stem_convolutions,
            bn_momentum=bn_momentum,
            block_bn_momentum=block_bn_momentum,
            head_channels=head_channels,
            normalize=normalize,
            checkpointing=checkpointing,
        )
        self.dropout = dropout
        self._middle = len(decoder) // 2
        widths = (stem[0], encoder[-1], decoder[self._middle - 1], decoder[-1])
        self.point_transforms = nn.ModuleList(
            nn.ModuleList([nn.Linear(before, after), BatchNorm(after, bn_momentum)])
            for before, after in itertools.pairwise(widths)
        )

    def layers(self) -> list[list[nn.Module]]:
        """Those of the voxels, each with the point layer that it meets."""
        found = super().layers()
        depth = len(self._encoder)
        meets = (depth, depth + self._middle, depth + len(self._decoder))
        for level, transform in zip(meets, self.point_transforms, strict=True):
            found[level].append(transform)
        return found

    def forward_sparse(self, x: SparseTensor) -> SparseTensor:
        return super().forward_sparse(replace(x, maps=PointVoxelMaps.around(x.maps)))

    def _voxels(self, points: PointBatch) -> VoxelBatch:
        voxels = super()._voxels(points)
        return replace(voxels, maps=PointVoxelMaps.around(voxels.maps))

    def _connect(self, maps: KernelMaps) -> list[int]:
        levels = super()._connect(maps)
        assert isinstance(maps, PointVoxelMaps)
        depth = len(self._encoder)
        for stage in (depth - 1, depth + self._middle - 1):
            maps.between(levels[stage])
        return levels

    def _body(self, x: SparseTensor) -> SparseTensor:
        # At stride 1 every point is its own voxel: interpolation and mean change nothing.
        points = self._run(self._apply_stem, x)
        x, skips = self._encode(points)
        parts = (self._decoder[: self._middle], self._decoder[self._middle :])
        for number, stages in enumerate(parts):
            points, x = self._exchange(number, points, x)
            x = self._decode(x, stages, skips)
        points = self._transform(2, points)
        return x.with_features(x.features + points.features)

    def _exchange(
        self, number: int, points: SparseTensor, voxels: SparseTensor
    ) -> tuple[SparseTensor, SparseTensor]:
        """Add the voxels to the points, and make the voxels anew from these."""
        assert isinstance(points.maps, PointVoxelMaps)
        to_points, to_voxels = points.maps.between(voxels.level)
        points = self._transform(number, points)
        points = points.with_features(points.features + blend(voxels.features, to_points))
        features = blend(points.features, to_voxels)
        return points, voxels.with_features(F.dropout(features, self.dropout, self.training))

    def _transform(self, number: int, points: SparseTensor) -> SparseTensor:
        linear, norm = self._layer("point_transforms")[number]
        return relu_(norm(points.with_features(linear(points.features))))


def _check(channels: tuple[int, ...], levels: int, dropout: float) -> None:
    if min(channels) < 1:
        raise ConfigError("a layer has no channel left", field="width", remedy="give more")
    if levels < 2:
        raise ConfigError(
            "the points meet the decoder in its middle, which one level does not have",
            field="encoder_channels, decoder_channels",
            remedy="give at least two levels",
        )
    if not 0 <= dropout < 1:
        raise ConfigError(f"{dropout} is not in [0, 1)", field="dropout")
