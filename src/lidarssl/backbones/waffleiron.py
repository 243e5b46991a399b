"""WaffleIron: points mixed on flat grids by dense 2-D convolutions, no sparse convolution.

Source: Puy et al., "Using a Waffle Iron for Automotive Point Cloud Semantic Segmentation",
ICCV 2023; the layer-norm and GELU variants are those of ScaLR (CVPR 2024) and its successor.
Tokens are rows (T, C) of all frames of a batch, one after the other. Parameters have the names
of the published files; a 1x1 convolution is the linear layer that it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lidarssl.backbones.base import Backbone
from lidarssl.backbones.difference_norm import difference_affine
from lidarssl.backbones.neighbourhood import largest_response
from lidarssl.backbones.plane_cells import OccupiedPlane, Plane
from lidarssl.backbones.plane_tokens import Grid, PlaneGrids, PlaneTokens, TokenRule
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch, PointFeatures
from lidarssl.geometry.boxes import Corner
from lidarssl.sparse.layers import frozen_statistics
from lidarssl.sparse.norms import RowNorm

Norm = Literal["batch", "layer"]
Activation = Literal["relu", "gelu"]
STANDARD_XYZ = PointInputs(("standard_intensity", "x", "y", "z", "radius"))


class Embedding(nn.Module):
    """Input values of a token and of its neighbours relative to it -> (T, channels)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm: nn.Module = RowNorm(in_channels)
        self.conv1 = nn.Linear(in_channels, channels)
        self.conv2 = nn.Sequential(
            RowNorm(in_channels),
            nn.Linear(in_channels, channels, bias=False),
            RowNorm(channels),
            nn.ReLU(),
            nn.Linear(channels, channels, bias=False),
        )
        self.final = nn.Linear(2 * channels, channels)

    def forward(self, values: Tensor, neighbours: Tensor) -> Tensor:
        """(T, in_channels) and (T, K) -> (T, channels)."""
        values = self.norm(values)
        affine = difference_affine(values, neighbours, self.conv2)
        last = self.conv2[4]
        assert isinstance(last, nn.Linear)
        around = largest_response(values, neighbours, *affine, last.weight)
        embedded: Tensor = self.final(torch.cat([self.conv1(values), around], 1))
        return embedded

    @torch.no_grad()
    def fold(self) -> None:
        """Leave linear layers alone: on raw values, and on raw differences of values."""
        assert isinstance(self.norm, RowNorm)
        scale, shift = self.norm.scale_and_shift(*self.norm.running())
        self.conv1 = _linear(self.conv1.weight * scale, self.conv1(shift))
        # A difference of values does not depend on the shift.
        nobody = torch.zeros(0, 1, dtype=torch.int64, device=scale.device)
        weight, bias = difference_affine(scale[:0, None], nobody, self.conv2)
        self.norm, self.conv2[0], self.conv2[2] = nn.Identity(), nn.Identity(), nn.Identity()
        self.conv2[1] = _linear(weight * scale, bias)


class LayerScale(nn.Module):
    """One learned factor per channel, from U(-1, 1) as the published code initialises it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-1, 1))

    def forward(self, rows: Tensor) -> Tensor:
        return rows * self.weight

    def after(self, layer: nn.Module, rows: Tensor) -> Tensor:
        """The linear layer and then the scale, in one product."""
        assert isinstance(layer, nn.Linear)
        return F.linear(rows, layer.weight * self.weight[:, None], layer.bias * self.weight)


class SpatialMix(nn.Module):
    """Tokens averaged in the cells of a grid, convolved there, and read back."""

    def __init__(self, channels: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.norm = _norm(norm, channels)
        depthwise = partial(nn.Conv2d, channels, channels, 3, padding=1, groups=channels)
        self.ffn = nn.Sequential(depthwise(), _activation(activation), depthwise())
        self.scale: Any = LayerScale(channels)

    def forward(self, tokens: Tensor, plane: Plane) -> Tensor:
        """(T, C) -> (T, C)."""
        return plane.mix(self.norm(tokens), self.ffn, self.scale)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the scale into the last convolution; the norm stands before an average and stays."""
        last = self.ffn[2]
        assert isinstance(last, nn.Conv2d)
        assert isinstance(last.bias, nn.Parameter)
        last.weight.mul_(self.scale.weight.view(-1, 1, 1, 1))
        last.bias.mul_(self.scale.weight)
        self.scale = nn.Identity()


class ChannelMix(nn.Module):
    """A perceptron on every token."""

    def __init__(self, channels: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.norm = _norm(norm, channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels), _activation(activation), nn.Linear(channels, channels)
        )
        self.scale: Any = LayerScale(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        first, activation, last = self.mlp
        rows = activation(first(self.norm(tokens)))
        if isinstance(self.scale, LayerScale):
            return self.scale.after(last, rows)
        mixed: Tensor = last(rows)
        return mixed

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the scale into the second layer, and a batch norm into the first."""
        first, second = self.mlp[0], self.mlp[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        if isinstance(self.norm, RowNorm):
            scale, shift = self.norm.scale_and_shift(*self.norm.running())
            self.mlp[0], self.norm = _linear(first.weight * scale, first(shift)), nn.Identity()
        factor = self.scale.weight
        self.mlp[2] = _linear(second.weight * factor[:, None], second.bias * factor)
        self.scale = nn.Identity()


class Mixes(nn.Module):
    """The layers, under the published names."""

    def __init__(self, channels: int, depth: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        layers = range(depth)
        self.channel_mix = nn.ModuleList(ChannelMix(channels, norm, activation) for _ in layers)
        self.spatial_mix = nn.ModuleList(SpatialMix(channels, norm, activation) for _ in layers)


class WaffleIron(Backbone):
    """Tokens are voxels of ``voxel_size``; a point has the features of the nearest token.

    Args:
        channels: width of every layer.
        depth: layers; layer l mixes on grid l mod the number of grids.
        norm: ``batch`` (WaffleIron) or ``layer`` (ScaLR).
        activation: ``relu``, or ``gelu`` (ScaLR+); the embedding keeps ``relu``.
        fov: low and high corner of the field of view, m; points outside make no token.
        planes: axis projected out of each grid.
        grids: cells of each grid along its two axes.
        neighbours: nearest tokens that a token is embedded with.
        voxel_size: m, one token per voxel; null = every point is a token.
        inputs: values of a token.
        drop_path: probability of skipping a mix for a whole frame, in training.
        checkpointing: compute activations again in the backward pass instead of keeping them.
        padded: fill every frame of a batch with rows of zeros up to the longest one, which count
            in batch-norm statistics, as the published code does.

    Raises:
        ConfigError: sizes or grids that make no sense.
    """

    def __init__(
        self,
        channels: int = 256,
        depth: int = 48,
        norm: Norm = "batch",
        activation: Activation = "relu",
        fov: tuple[Corner, Corner] = ((-64.0, -64.0, -8.0), (64.0, 64.0, 8.0)),
        planes: tuple[int, ...] = (2, 1, 0),
        grids: tuple[Grid, ...] = ((256, 256), (256, 32), (256, 32)),
        neighbours: int = 16,
        voxel_size: float | None = 0.1,
        inputs: PointInputs = STANDARD_XYZ,
        drop_path: float = 0.0,
        checkpointing: bool = False,
        padded: bool = False,
    ) -> None:
        super().__init__()
        _check_sizes(channels=channels, depth=depth, neighbours=neighbours)
        if not 0 <= drop_path < 1:
            raise ConfigError(f"drop_path {drop_path} is not in [0, 1)", field="drop_path")
        self.rule = TokenRule(
            PlaneGrids(fov, planes, grids), neighbours, voxel_size, inputs, padded
        )
        self.fov, self.voxel_of_token = fov, voxel_size
        self.out_channels, self.drop_path, self.checkpointing = channels, drop_path, checkpointing
        self.embed = Embedding(len(inputs.columns), channels)
        self.waffleiron = Mixes(channels, depth, norm, activation)

    def forward(self, points: PointBatch) -> PointFeatures:
        tokens = self._tokens(points)
        return PointFeatures(
            positions=tokens.positions[: tokens.real],
            features=self.forward_tokens(tokens)[: tokens.real],
            batch=tokens.batch[: tokens.real],
            token_of_point=tokens.token_of_point,
        )

    def forward_tokens(
        self, tokens: PlaneTokens, kind: Callable[..., Plane] = OccupiedPlane.of
    ) -> Tensor:
        """The network itself, (T, channels).

        Args:
            tokens: of some frames.
            kind: makes the plane of flat cells, weights, and frames, rows and columns.
        """
        values = tokens.features.to(self.embed.final.weight.dtype)
        rows = self.embed(values, tokens.neighbours)
        planes = [
            kind(cells, weights, (tokens.batch_size, *grid))
            for cells, weights, grid in zip(
                tokens.cells, tokens.weights, self.rule.grids.grids, strict=True
            )
        ]
        mixes = zip(self.waffleiron.spatial_mix, self.waffleiron.channel_mix, strict=True)
        for layer, (spatial_mix, channel_mix) in enumerate(mixes):
            mixed = self._run(spatial_mix, rows, planes[layer % len(planes)])
            rows = rows + self._dropped(mixed, tokens)
            rows = rows + self._dropped(self._run(channel_mix, rows), tokens)
        return rows

    def prepare(self, points: PointBatch) -> PointBatch:
        """Voxels, neighbours and cells, in ``points.prepared``."""
        return replace(points, prepared=self.rule(points))

    def layers(self) -> list[list[nn.Module]]:
        """The embedding, then the two mixes of every layer."""
        mixes = zip(self.waffleiron.channel_mix, self.waffleiron.spatial_mix, strict=True)
        return [[self.embed], *([*pair] for pair in mixes)]

    def merged(self) -> WaffleIron:
        """A copy for inference, with norms and scales folded into the layers beside them.

        It computes the same in eval mode, up to rounding, with fewer operations.
        """
        one = copy.deepcopy(self).eval().requires_grad_(False)
        for module in one.modules():
            if isinstance(module, Embedding | ChannelMix | SpatialMix):
                module.fold()
        return one

    def _tokens(self, points: PointBatch) -> PlaneTokens:
        if points.prepared is not None:
            tokens: PlaneTokens = points.prepared
            return tokens
        if points.points.device.type == "mps":  # which has no float64
            return self.prepare(points.to("cpu")).to("mps").prepared
        return self.rule(points)

    def _run(self, mix: nn.Module, *arguments: object) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(
                mix,
                *arguments,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), frozen_statistics(mix)),
            )
        mixed: Tensor = mix(*arguments)
        return mixed

    def _dropped(self, rows: Tensor, tokens: PlaneTokens) -> Tensor:
        """Stochastic depth (Huang et al., 2016): nothing for some frames, more for the others."""
        if not (self.training and self.drop_path):
            return rows
        keep = 1 - self.drop_path
        kept = rows.new_empty(tokens.batch_size).bernoulli_(keep) / keep
        return rows * kept[tokens.batch, None]


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm not in ("batch", "layer"):
        raise ConfigError(f"unknown norm '{norm}'", field="norm", remedy="use batch or layer")
    return RowNorm(channels) if norm == "batch" else nn.LayerNorm(channels)


def _activation(name: Activation) -> nn.Module:
    if name not in ("relu", "gelu"):
        raise ConfigError(f"unknown activation '{name}'", field="activation", remedy="relu or gelu")
    return nn.ReLU(inplace=True) if name == "relu" else nn.GELU()


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name} cannot be {size}", field=name, remedy="give 1 or more")


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer.requires_grad_(False)
