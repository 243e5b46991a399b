"""Convolutions of spconv 2.x on grids with borders, weights in its layout and under its names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lidarssl.sparse.kernel import Convention, triple, volume
from lidarssl.sparse.layers import convolution, relu_
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.norms import RowNorm
from lidarssl.sparse.pairs import KernelMap
from lidarssl.sparse.tensor import SparseTensor


class SpconvConv3d(nn.Module):
    """``SubMConv3d`` or ``SparseConv3d`` of spconv 2.x.

    Output site o reads the input sites o * stride - padding + k * dilation. A submanifold
    convolution keeps the sites and is centred on them; any other writes every site of its
    output grid that reads an occupied one.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: one or three sizes along x, y, z (spconv's own arguments are z, y, x).
        stride: one or three; of a submanifold convolution 1.
        padding: one or three; a submanifold convolution ignores it, as spconv does.
        dilation: one or three.
        submanifold: keep the sites; sizes are odd then.
        bias: add a learned constant per channel.

    Attributes:
        weight: (C_out, k_z, k_y, k_x, C_in). Of one cell at stride 1 the memory is that of a
            (C_in, C_out) matrix, which spconv reads in it: published weights mean this.
        bias: (C_out,) or None.

    Raises:
        ValueError: a submanifold convolution with a stride or an even size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        submanifold: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = triple(kernel_size, "kernel_size")
        self.stride = triple(stride, "stride")
        self.dilation = triple(dilation, "dilation")
        self.submanifold = submanifold
        x, y, z = self.kernel_size
        if submanifold:
            if volume(self.stride) > 1 or not x % 2 == y % 2 == z % 2 == 1:
                raise ValueError(
                    f"a submanifold convolution has odd sizes and stride 1, not "
                    f"{self.kernel_size} and {self.stride}"
                )
            a, b, c = self.dilation
            padding = (x // 2 * a, y // 2 * b, z // 2 * c)
        self.padding = triple(padding, "padding", least=0)
        plain = volume(self.kernel_size) == 1 and volume(self.stride) == 1
        self.pointwise = plain and self.padding == (0, 0, 0)
        self.weight = nn.Parameter(torch.empty(out_channels, z, y, x, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1 / sqrt(K * C_in): spconv's Kaiming uniform with a = sqrt(5)."""
        bound = 1 / math.sqrt(volume(self.kernel_size) * self.in_channels)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: SparseTensor) -> SparseTensor:
        if self.pointwise:
            matrix = self.weight.view(self.in_channels, self.out_channels)
            return convolution(x, matrix, self.bias, None)
        kernel = self.weight.flatten(1, 3).permute(1, 2, 0)
        return convolution(x, kernel, self.bias, self.connect)

    def connect(self, maps: KernelMaps, level: int) -> tuple[int, KernelMap]:
        """The level this layer writes when it reads ``level``, and the pairs in between."""
        size, dilation, padding = self.kernel_size, self.dilation, self.padding
        rule, target = Convention.SPCONV, level
        if not self.submanifold:
            target = maps.coarser(level, size, self.stride, rule, dilation, padding)
        return target, maps.kernel_map(level, target, size, dilation, rule, padding)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts += [f"stride={self.stride}"] if volume(self.stride) > 1 else []
        parts += ["submanifold=True"] if self.submanifold else [f"padding={self.padding}"]
        parts += [f"dilation={self.dilation}"] if volume(self.dilation) > 1 else []
        return ", ".join([*parts, f"bias={self.bias is not None}"])


class ConvUnit(nn.Sequential):
    """relu(norm(conv(x))), with spconv's names: ``0`` the convolution, ``1`` the batch norm.

    Args:
        conv: the convolution.
        eps, momentum: of the batch norm.
    """

    def __init__(self, conv: SpconvConv3d, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__(conv, RowNorm(conv.out_channels, eps=eps, momentum=momentum))

    def forward(self, x: SparseTensor) -> SparseTensor:
        conv, norm = self
        x = conv(x)
        return relu_(x.with_features(norm(x.features)))


class ResidualUnit(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + x), submanifold convolutions with bias.

    ``SparseBasicBlock`` of OpenPCDet and its names.

    Args:
        channels: of input and output.
        eps, momentum: of the batch norms.
    """

    def __init__(self, channels: int, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__()
        self.conv1 = SpconvConv3d(channels, channels, 3, submanifold=True, bias=True)
        self.bn1 = RowNorm(channels, eps=eps, momentum=momentum)
        self.conv2 = SpconvConv3d(channels, channels, 3, submanifold=True, bias=True)
        self.bn2 = RowNorm(channels, eps=eps, momentum=momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        main = self.conv1(x)
        main = relu_(main.with_features(self.bn1(main.features)))
        main = self.conv2(main)
        return relu_(main.with_features(self.bn2(main.features) + x.features))


def dense_map(x: SparseTensor, batch_size: int) -> Tensor:
    """Features seen from above: heights become channels, zero where no site is.

    Args:
        x: on a grid with borders.
        batch_size: number of frames.

    Returns:
        (B, C * n_z, n_y, n_x); channel c * n_z + z.

    Raises:
        ValueError: the grid has no borders.
    """
    if x.shape is None:
        raise ValueError("a grid without borders: give SparseTensor.of a shape")
    width, length, height = x.shape
    dense = x.features.new_zeros(batch_size, height, length, width, x.features.shape[1])
    cells = x.coordinates // x.coordinates.new_tensor((1, *x.stride))
    batch, column, row, level = cells.unbind(1)
    dense = dense.index_put((batch, level, row, column), x.features)
    return dense.permute(0, 4, 1, 2, 3).flatten(1, 2)
