"""MinkUNet: a residual U-Net of sparse convolutions (Choy et al., CVPR 2019).

``res16unet34c`` is the network of SLidR, PPKT and OLIVINE, with the parameter names of their
checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lidarssl.backbones.base import Backbone
from lidarssl.backbones.voxelize import PointInputs, VoxelBatch, VoxelGrid, voxelize_batch
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch, PointFeatures
from lidarssl.sparse.layers import BatchNorm, SparseConv3d, cat, frozen_statistics, relu_
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.tensor import SparseTensor

_Stage = tuple[str, str, str]  # names of the convolution, norm and residual blocks of a level


class ResidualBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), 3x3x3 convolutions.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; the shortcut is a 1x1x1 convolution and a norm
            where they differ.
        momentum: of the two norms of the main branch.
        shortcut_momentum: of the norm of the shortcut.
    """

    def __init__(
        self, in_channels: int, out_channels: int, momentum: float, shortcut_momentum: float
    ) -> None:
        super().__init__()
        self.conv1 = SparseConv3d(in_channels, out_channels, 3)
        self.norm1 = BatchNorm(out_channels, momentum)
        self.conv2 = SparseConv3d(out_channels, out_channels, 3)
        self.norm2 = BatchNorm(out_channels, momentum)
        self.downsample: nn.Sequential | None = None
        if in_channels != out_channels:
            self.downsample = nn.Sequential(
                SparseConv3d(in_channels, out_channels, 1),
                BatchNorm(out_channels, shortcut_momentum),
            )

    def forward(self, x: SparseTensor) -> SparseTensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        main = relu_(self.norm1(self.conv1(x)))
        main = self.norm2(self.conv2(main))
        return relu_(main.with_features(main.features + shortcut.features))


class MinkUNet(Backbone):
    """Sparse residual U-Net over voxels; tokens are voxels, placed at their points' centroid.

    Every encoder level halves the resolution (2x2x2 convolution of stride 2, residual blocks);
    every decoder level doubles it, concatenates the encoder's features of that resolution and
    applies residual blocks.

    Args:
        inputs: input features of a voxel.
        rule: voxelisation rule, see ``lidarssl.geometry.voxels.voxelize``.
        voxel_size: m, one or three (the angle of cylindrical cells is 1 degree).
        stem_channels: channels at full resolution, before the encoder.
        encoder_channels: channels of each encoder level, from fine to coarse.
        decoder_channels: channels of each decoder level, from coarse to fine; as many.
        blocks: residual blocks of each encoder, then of each decoder level.
        kernel_size: of the stem's convolutions.
        stem_convolutions: how many convolutions the stem has.
        bn_momentum: of the norms outside the residual blocks and in their shortcuts.
        block_bn_momentum: of the two norms inside residual blocks. The published SLidR, PPKT
            and OLIVINE networks have 0.1 here whatever ``bn_momentum`` is, by an oversight.
        head_channels: adds a 1x1x1 convolution with bias to this many channels.
        normalize: divide the output features by their L2 norm.
        checkpointing: trade time for memory: keep the input of each level only and compute
            its inside again in the backward pass. Same results.

    Attributes:
        out_channels: width of the output.

    Raises:
        ConfigError: lists whose lengths do not fit each other, or an empty stem or level.
    """

    def __init__(
        self,
        inputs: PointInputs = PointInputs(),  # noqa: B008 - frozen
        rule: str = "slidr_cylindrical",
        voxel_size: float | tuple[float, float, float] = 0.1,
        stem_channels: int = 32,
        encoder_channels: tuple[int, ...] = (32, 64, 128, 256),
        decoder_channels: tuple[int, ...] = (256, 128, 96, 96),
        blocks: tuple[int, ...] = (2, 3, 4, 6, 2, 2, 2, 2),
        kernel_size: int = 3,
        stem_convolutions: int = 1,
        bn_momentum: float = 0.1,
        block_bn_momentum: float = 0.1,
        head_channels: int | None = None,
        normalize: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_levels(encoder_channels, decoder_channels, blocks, stem_convolutions)
        depth = len(encoder_channels)
        self.grid = VoxelGrid(rule, voxel_size, inputs)
        self.normalize, self.checkpointing = normalize, checkpointing
        self._momenta = (block_bn_momentum, bn_momentum)
        self._stem = [("conv0p1s1", "bn0")]
        self._stem += [(f"conv0p1s1_{i}", f"bn0_{i}") for i in range(1, stem_convolutions)]
        width = len(inputs.columns)
        for conv, norm in self._stem:
            self.add_module(conv, SparseConv3d(width, stem_channels, kernel_size))
            self.add_module(norm, BatchNorm(stem_channels, bn_momentum))
            width = stem_channels
        widths = [stem_channels, *encoder_channels]
        self._encoder = [
            self._add_encoder(level, widths[level - 1], widths[level], blocks[level - 1])
            for level in range(1, depth + 1)
        ]
        self._decoder: list[_Stage] = []
        width = widths.pop()
        for index, channels in enumerate(decoder_channels):
            count = blocks[depth + index]
            stage = self._add_decoder(depth, index, width, channels, widths.pop(), count)
            self._decoder.append(stage)
            width = channels
        self.out_channels = width
        self.final: SparseConv3d | None = None
        if head_channels is not None:
            self.final = SparseConv3d(width, head_channels, 1, bias=True)
            self.out_channels = head_channels

    def forward(self, points: PointBatch) -> PointFeatures:
        voxels = self._voxels(points)
        x = self.forward_sparse(SparseTensor(voxels.features, voxels.maps))
        return PointFeatures(voxels.positions, x.features, voxels.batch, voxels.token_of_point)

    def forward_sparse(self, x: SparseTensor) -> SparseTensor:
        """The network on voxels.

        Args:
            x: (V, number of input columns), cast to the dtype of the parameters.

        Returns:
            (V, out_channels) on the same sites.
        """
        x = x.with_features(x.features.to(next(self.parameters()).dtype))
        x = self._body(x)
        if self.final is not None:
            x = self.final(x)
        if self.normalize:
            norm = x.features.norm(dim=1, keepdim=True)
            x = x.with_features(x.features / norm.clamp(min=torch.finfo(norm.dtype).tiny))
        return x

    def prepare(self, points: PointBatch) -> PointBatch:
        """Voxels and every kernel map of the network, in ``points.prepared``."""
        voxels = self._voxels(points)
        self._connect(voxels.maps)
        return replace(points, prepared=voxels)

    def layers(self) -> list[list[nn.Module]]:
        """The stem, every encoder level, every decoder level, and the final convolution."""
        stem = [name for layer in self._stem for name in layer]
        stages = [stem, *self._encoder, *self._decoder]
        found = [[self._layer(name) for name in stage] for stage in stages]
        return found if self.final is None else [*found, [self.final]]

    def _voxels(self, points: PointBatch) -> VoxelBatch:
        made = points.prepared
        if isinstance(made, VoxelBatch) and made.grid == self.grid:
            return made
        return voxelize_batch(points, self.grid)

    def _connect(self, maps: KernelMaps) -> list[int]:
        """Make every map of the network; the level that each stage writes, in order."""
        level = 0
        for conv, _ in self._stem:
            self._layer(conv).connect(maps, level)
        levels = []
        for conv, _, blocks in (*self._encoder, *self._decoder):
            level, _ = self._layer(conv).connect(maps, level)
            for block in self._layer(blocks):
                block.conv1.connect(maps, level)
            levels.append(level)
        return levels

    def _layer(self, name: str) -> Any:
        return getattr(self, name)

    def _body(self, x: SparseTensor) -> SparseTensor:
        """From input features to those of the last decoder level."""
        x, skips = self._encode(self._run(self._apply_stem, x))
        return self._decode(x, self._decoder, skips)

    def _encode(self, x: SparseTensor) -> tuple[SparseTensor, list[SparseTensor]]:
        """The coarsest level, and the input of each encoder level."""
        skips = []
        for stage in self._encoder:
            skips.append(x)
            x = self._run(self._apply_stage, x, stage)
        return x, skips

    def _decode(
        self, x: SparseTensor, stages: Sequence[_Stage], skips: list[SparseTensor]
    ) -> SparseTensor:
        """Some decoder levels, which take their skip from the end of ``skips``."""
        for stage in stages:
            x = self._run(self._apply_stage, x, stage, skips.pop())
        return x

    def _run(self, part: Callable[..., SparseTensor], *arguments: Any) -> SparseTensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return part(*arguments)
        return checkpoint(
            part,
            *arguments,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), frozen_statistics(self)),
        )

    def _apply_stem(self, x: SparseTensor) -> SparseTensor:
        for conv, norm in self._stem:
            x = relu_(self._layer(norm)(self._layer(conv)(x)))
        return x

    def _apply_stage(
        self, x: SparseTensor, stage: _Stage, skip: SparseTensor | None = None
    ) -> SparseTensor:
        conv, norm, blocks = stage
        x = relu_(self._layer(norm)(self._layer(conv)(x)))
        return self._layer(blocks)(x if skip is None else cat(x, skip))

    def _add_encoder(self, level: int, width: int, channels: int, count: int) -> _Stage:
        stage = (f"conv{level}p{2 ** (level - 1)}s2", f"bn{level}", f"block{level}")
        conv = SparseConv3d(width, width, 2, stride=2)
        return self._add_stage(stage, conv, width, channels, count)

    def _add_decoder(
        self, depth: int, index: int, width: int, channels: int, skip: int, count: int
    ) -> _Stage:
        number = depth + index
        stage = (f"convtr{number}p{2 ** (depth - index)}s2", f"bntr{number}", f"block{number + 1}")
        conv = SparseConv3d(width, channels, 2, stride=2, transposed=True)
        return self._add_stage(stage, conv, channels + skip, channels, count)

    def _add_stage(
        self, stage: _Stage, conv: SparseConv3d, width: int, channels: int, count: int
    ) -> _Stage:
        inside, outside = self._momenta
        widths = [width, *[channels] * count]
        blocks = [
            ResidualBlock(before, after, inside, outside)
            for before, after in itertools.pairwise(widths)
        ]
        for name, module in zip(
            stage,
            (conv, BatchNorm(conv.out_channels, outside), nn.Sequential(*blocks)),
            strict=True,
        ):
            self.add_module(name, module)
        return stage


def _check_levels(
    encoder: Sequence[int], decoder: Sequence[int], blocks: Sequence[int], stem: int
) -> None:
    if not encoder or len(decoder) != len(encoder) or len(blocks) != 2 * len(encoder):
        raise ConfigError(
            f"{len(encoder)} encoder levels, {len(decoder)} decoder levels and {len(blocks)} "
            "numbers of blocks do not fit",
            field="encoder_channels, decoder_channels, blocks",
            remedy="as many decoder as encoder levels, and one number of blocks for each",
        )
    if min(*blocks, stem) < 1:
        raise ConfigError(
            f"a level without a block, or a stem without a convolution: {blocks}, {stem}",
            field="blocks, stem_convolutions",
            remedy="give at least 1 for each",
        )


def res16unet34c(
    out_channels: int,
    in_channels: int = 1,
    kernel_size: int = 3,
    bn_momentum: float = 0.05,
    normalize: bool = True,
) -> MinkUNet:
    """The 34-layer network of SLidR, PPKT and OLIVINE, with their defaults of pretraining.

    Args:
        out_channels: channels of the head ``final``.
        in_channels: 1 (raw intensity of the first point of each voxel) in the publications;
            other numbers for voxel-level use only.
        kernel_size: of the stem.
        bn_momentum: see ``MinkUNet``.
        normalize: see ``MinkUNet``.
    """
    return MinkUNet(
        inputs=PointInputs(columns=("intensity",) * in_channels),
        kernel_size=kernel_size,
        bn_momentum=bn_momentum,
        head_channels=out_channels,
        normalize=normalize,
    )
