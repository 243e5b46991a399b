"""Sparse convolution by spconv 2 on our kernel maps, to compare with.

On a CPU spconv has no backward, and its forward is not safe with more than one thread. Not yet
run on a GPU.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lidarssl.errors import ConfigError
from lidarssl.sparse.pairs import KernelMap


def convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """See ``lidarssl.sparse.backends.choice.convolve``.

    Raises:
        ConfigError: spconv is not installed, or asked for on a CPU for more than a forward pass
            of one thread.
    """
    if features.device.type == "cpu":
        _check_cpu(features, kernel)
    return _Convolution.apply(features, kernel, kernel_map)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map = kernel_map
        if features.shape[0] == 0 or kernel_map.rows_out == 0:
            return features.new_zeros(kernel_map.rows_out, kernel.shape[2])
        pairs, counts = _pairs(kernel_map)
        return _operations().indice_conv(
            features.contiguous(), _filters(kernel), pairs, counts, kernel_map.rows_out
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        features, kernel = ctx.saved_tensors
        if features.shape[0] == 0 or grad.shape[0] == 0:
            return torch.zeros_like(features), torch.zeros_like(kernel), None
        pairs, counts = _pairs(ctx.kernel_map)
        grad_features, filters = _operations().indice_conv_backward(
            features.contiguous(), _filters(kernel), grad.contiguous(), pairs, counts
        )
        return grad_features, filters.flatten(1, 3).permute(1, 2, 0), None


def _operations() -> ModuleType:
    try:
        import spconv.pytorch.ops as operations
    except ImportError as error:
        raise ConfigError(
            "spconv is not installed",
            field="LIDARSSL_SPARSE",
            remedy="pip install spconv-cu126 (or the wheel of your CUDA version), or use torch",
        ) from error
    return operations


def _check_cpu(features: Tensor, kernel: Tensor) -> None:
    training = torch.is_grad_enabled() and (features.requires_grad or kernel.requires_grad)
    if training or torch.get_num_threads() > 1:
        raise ConfigError(
            "spconv on a CPU computes a forward pass on one thread, nothing else",
            field="LIDARSSL_SPARSE",
            remedy="leave it unset or set it to torch; in code, torch.no_grad() and "
            "torch.set_num_threads(1) make it work",
        )


def _filters(kernel: Tensor) -> Tensor:
    """(K, C_in, C_out) in spconv's layout, (C_out, K, 1, 1, C_in)."""
    return kernel.permute(2, 0, 1)[:, :, None, None].contiguous()


def _pairs(kernel_map: KernelMap) -> tuple[Tensor, Tensor]:
    """(2, K, P) int32 rows in and out of each weight, padded by -1; and their (K,) numbers."""
    key = ("spconv", kernel_map.is_transposed)
    if key not in kernel_map.plans:
        own = torch.arange(kernel_map.rows_in, device=kernel_map.in_row.device)
        lists = [
            [*side.split(kernel_map.counts)] for side in (kernel_map.in_row, kernel_map.out_row)
        ]
        if kernel_map.identity is not None:
            for rows in lists:
                rows[kernel_map.identity] = own
        numbers = kernel_map.pairs_per_weight()
        longest = max(numbers)
        padded = [
            F.pad(rows, (0, longest - len(rows)), value=-1) for side in lists for rows in side
        ]
        pairs = torch.stack(padded).view(2, len(numbers), longest).int()
        counts = torch.tensor(numbers, dtype=torch.int32, device=pairs.device)
        kernel_map.plans[key] = pairs, counts
    return kernel_map.plans[key]
