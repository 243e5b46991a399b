"""Layers on sparse tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.sparse.backends.choice import convolve
from lidarssl.sparse.kernel import Convention, triple, volume
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.norms import RowNorm
from lidarssl.sparse.pairs import KernelMap
from lidarssl.sparse.tables import Table
from lidarssl.sparse.tensor import SparseTensor

Connect = Callable[[KernelMaps, int], tuple[int, KernelMap | Table]]


class SparseConv3d(nn.Module):
    """Convolution over occupied sites.

    At stride 1 the output has the sites of the input; a strided one makes a coarser level; a
    transposed one returns to the sites of the finer level that led to its input. Sites that
    are not occupied contribute nothing.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one or three sizes along x, y, z.
        stride: one or three; of the matching strided convolution when transposed.
        dilation: one or three.
        transposed: go to a finer level.
        bias: add a learned constant per channel.
        convention: library whose output sites, kernel offsets and weight order are used.

    Attributes:
        kernel: (K, C_in, C_out), or (C_in, C_out) when K = 1 and the stride is 1.
        bias: (1, C_out) in the minkowski convention, (C_out,) in the torchsparse one; or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        transposed: bool = False,
        bias: bool = False,
        convention: str = "minkowski",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = triple(kernel_size, "kernel_size")
        self.stride = triple(stride, "stride")
        self.dilation = triple(dilation, "dilation")
        self.transposed = transposed
        self.convention = Convention(convention)
        if self.convention is Convention.SPCONV:
            raise ValueError("convolutions of spconv are lidarssl.sparse.spconv.SpconvConv3d")
        weights = volume(self.kernel_size)
        self.pointwise = weights == 1 and volume(self.stride) == 1
        shape = (in_channels, out_channels)
        self.kernel = nn.Parameter(torch.empty(shape if self.pointwise else (weights, *shape)))
        self.bias: nn.Parameter | None = None
        if bias:
            minkowski = self.convention is Convention.MINKOWSKI
            self.bias = nn.Parameter(torch.empty((1,) * minkowski + (out_channels,)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1 / sqrt(K * C), C the input (transposed: output) channels."""
        channels = self.out_channels if self.transposed else self.in_channels
        bound = 1 / math.sqrt(volume(self.kernel_size) * channels)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: SparseTensor) -> SparseTensor:
        return convolution(x, self.kernel, self.bias, None if self.pointwise else self.connect)

    def connect(self, maps: KernelMaps, level: int) -> tuple[int, KernelMap]:
        """The level this layer writes when it reads ``level``, and the pairs in between."""
        size, convention = self.kernel_size, self.convention
        if self.transposed:
            target = maps.finer(level, self.stride)
            shared = maps.kernel_map(target, level, size, self.dilation, convention)
            return target, shared.transposed()
        target = level
        if volume(self.stride) > 1:
            target = maps.coarser(level, size, self.stride, convention)
        return target, maps.kernel_map(level, target, size, self.dilation, convention)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts += [f"stride={self.stride}"] if volume(self.stride) > 1 else []
        parts += [f"dilation={self.dilation}"] if volume(self.dilation) > 1 else []
        parts += ["transposed=True"] if self.transposed else []
        return ", ".join([*parts, f"bias={self.bias is not None}"])


class BatchNorm(nn.Module):
    """Batch norm over all rows of the batch and, in training, of all ranks; see ``RowNorm``.

    Args:
        channels: channels of the input.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.

    Attributes:
        bn: parameters and running statistics (MinkowskiEngine's key layout).
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.bn = RowNorm(channels, eps=eps, momentum=momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.with_features(self.bn(x.features))


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms in training leave their running statistics alone.

    For a forward that is run again (activation checkpointing), so that it counts once.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm1d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def relu_(x: SparseTensor) -> SparseTensor:
    """max(x, 0) in place, of features that nothing else reads: a norm or a sum has made them."""
    return x.with_features(F.relu_(x.features))


def cat(first: SparseTensor, second: SparseTensor) -> SparseTensor:
    """Concatenate channels of two tensors on the same level.

    Raises:
        ValueError: their sites are not the same.
    """
    if first.maps is not second.maps or first.level != second.level:
        raise ValueError("cannot concatenate sparse tensors of different levels")
    return first.with_features(torch.cat([first.features, second.features], dim=1))


def convolution(
    x: SparseTensor, kernel: Tensor, bias: Tensor | None, connect: Connect | None
) -> SparseTensor:
    """What every sparse convolution computes.

    Args:
        x: input.
        kernel: (K, C_in, C_out), or (C_in, C_out) of one that only mixes channels.
        bias: C_out values, or None.
        connect: from maps and the level read to the level written and the pairs in between;
            None for a kernel of two axes.
    """
    features, kernel = _autocast(x.features, kernel)
    level = x.level
    if connect is None:
        features = features @ kernel
    else:
        level, pairs = connect(x.maps, level)
        if isinstance(pairs, Table):
            features = pairs.convolve(features, kernel)
        else:
            features = convolve(features, kernel, pairs)
    if bias is not None:
        features = features + bias.to(features.dtype)
    return replace(x, features=features, level=level)


def _autocast(features: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Under autocast, both in its dtype, as dense convolutions are."""
    device = features.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        return features.to(dtype), kernel.to(dtype)
    return features, kernel
