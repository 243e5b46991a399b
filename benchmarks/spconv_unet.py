"""MinkUNet34 of spconv's layers, with the weights of ours: the same work by another engine.

Needs spconv 2.3, which is imported when a network is built. Its wheel for CPUs has no backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.backbones.minkunet import MinkUNet, ResidualBlock
from lidarssl.sparse.kernel import row_major
from lidarssl.sparse.layers import BatchNorm, SparseConv3d

CELLS = 16
"""Coarsest stride: sites start at a multiple of it, so that both have the same coarse cells."""


class SpconvUNet(nn.Module):
    """The layers of ``ours`` in spconv, sharing index pairs where levels share kernel maps.

    Args:
        ours: a MinkUNet with a head; its weights are copied.
    """

    def __init__(self, ours: MinkUNet) -> None:
        super().__init__()
        self.normalize = ours.normalize
        layers: list[Any] = ours.layers()
        stem, *stages, (head,) = layers
        depth = len(stages) // 2
        self.stem = nn.ModuleList(
            Layer(submanifold(conv, 0), norm)
            for conv, norm in zip(stem[::2], stem[1::2], strict=True)
        )
        self.encoder = nn.ModuleList(
            Stage(down(conv, level), norm, blocks, level)
            for level, (conv, norm, blocks) in enumerate(stages[:depth], 1)
        )
        self.decoder = nn.ModuleList(
            Stage(up(conv, depth - index), norm, blocks, depth - index - 1)
            for index, (conv, norm, blocks) in enumerate(stages[depth:])
        )
        self.head = pointwise(head)

    def forward(self, x: Any) -> Any:
        """From a ``SparseConvTensor`` to one on the same sites."""
        for layer in self.stem:
            x = layer(x)
        skips = []
        for stage in self.encoder:
            skips.append(x.features)
            x = stage(x)
        for stage in self.decoder:
            x = stage(x, skips.pop())
        features = self.head(x.features)
        return x.replace_feature(F.normalize(features) if self.normalize else features)


class Layer(nn.Module):
    """relu(norm(conv(x)))."""

    def __init__(self, conv: nn.Module, norm: BatchNorm) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm_of(norm)

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        return x.replace_feature(F.relu(self.norm(x.features)))


class Stage(nn.Module):
    """A layer to ``level`` and the residual blocks there, with a skip beside its output."""

    def __init__(self, conv: nn.Module, norm: BatchNorm, blocks: Any, level: int) -> None:
        super().__init__()
        self.layer = Layer(conv, norm)
        self.blocks = nn.Sequential(*(Block(block, level) for block in blocks))

    def forward(self, x: Any, skip: Tensor | None = None) -> Any:
        x = self.layer(x)
        if skip is not None:
            x = x.replace_feature(torch.cat([x.features, skip], 1))
        return self.blocks(x)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, ours: ResidualBlock, level: int) -> None:
        super().__init__()
        self.layer = Layer(submanifold(ours.conv1, level), ours.norm1)
        self.conv, self.norm = submanifold(ours.conv2, level), norm_of(ours.norm2)
        shortcut: Any = ours.downsample
        self.shortcut = nn.Sequential()
        if shortcut is not None:
            self.shortcut.extend([pointwise(shortcut[0]), norm_of(shortcut[1])])

    def forward(self, x: Any) -> Any:
        shortcut = self.shortcut(x.features)
        x = self.conv(self.layer(x))
        return x.replace_feature(F.relu(self.norm(x.features) + shortcut))


def submanifold(ours: SparseConv3d, level: int) -> nn.Module:
    import spconv.pytorch as spconv

    size = ours.kernel_size[0]
    theirs = spconv.SubMConv3d(
        ours.in_channels, ours.out_channels, size, padding=size // 2, bias=False,
        indice_key=f"level{level}",
    )  # fmt: skip
    return with_weights(theirs, ours)


def down(ours: SparseConv3d, level: int) -> nn.Module:
    """To ``level``; the next ``up`` from there goes back by the same pairs."""
    import spconv.pytorch as spconv

    channels = (ours.in_channels, ours.out_channels)
    theirs = spconv.SparseConv3d(*channels, 2, 2, bias=False, indice_key=f"to{level}")
    return with_weights(theirs, ours)


def up(ours: SparseConv3d, level: int) -> nn.Module:
    """From ``level``."""
    import spconv.pytorch as spconv

    channels = (ours.in_channels, ours.out_channels)
    theirs = spconv.SparseInverseConv3d(*channels, 2, bias=False, indice_key=f"to{level}")
    return with_weights(theirs, ours)


def with_weights(theirs: Any, ours: SparseConv3d) -> nn.Module:
    """(K, C_in, C_out) into (C_out, x, y, z, C_in)."""
    cells = row_major(ours.kernel_size, ours.convention)
    ordered = torch.empty(ours.out_channels, len(cells), ours.in_channels)
    ordered[:, cells] = ours.kernel.detach().cpu().float().permute(2, 0, 1)
    theirs.load_state_dict({"weight": ordered.view(theirs.weight.shape)})
    return theirs


def pointwise(ours: SparseConv3d) -> nn.Linear:
    theirs = nn.Linear(ours.in_channels, ours.out_channels, bias=ours.bias is not None)
    state = {"weight": ours.kernel.detach().T}
    if ours.bias is not None:
        state["bias"] = ours.bias.detach().view(-1)
    theirs.load_state_dict(state)
    return theirs


def norm_of(ours: BatchNorm) -> nn.BatchNorm1d:
    theirs = nn.BatchNorm1d(ours.bn.num_features, ours.bn.eps, ours.bn.momentum)
    theirs.load_state_dict(ours.bn.state_dict())
    return theirs


def sparse_tensor(sites: Tensor, features: Tensor, frames: int) -> Any:
    """A ``SparseConvTensor`` with a new cache of pairs.

    Args:
        sites: (V, 4) int64 [batch, x, y, z] from ``shifted``.
        features: (V, C).
        frames: of the batch.
    """
    import spconv.pytorch as spconv

    shape = (sites[:, 1:].amax(0) // CELLS + 1) * CELLS
    return spconv.SparseConvTensor(features, sites.int(), shape.tolist(), frames)


def shifted(sites: Tensor) -> Tensor:
    """The same sites from zero on, as spconv wants them."""
    low = sites.amin(0)
    low[0] = 0
    return sites - torch.div(low, CELLS, rounding_mode="floor") * CELLS
