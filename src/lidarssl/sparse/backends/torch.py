"""Sparse convolution in plain PyTorch: one autograd node per convolution.

Per weight, the rows it reads are gathered and multiplied into one buffer of pair products;
one segmented sum then adds the products of each output row. The sum has a fixed order, so
results are deterministic on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lidarssl.sparse.maps import KernelMap


def convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sum over pairs (i, o) of weight k: output[o] += features[i] @ kernel[k].

    Args:
        features: (N_in, C_in).
        kernel: (K, C_in, C_out), same dtype.
        kernel_map: pairs of the K weights.

    Returns:
        (N_out, C_out), differentiable once in features and kernel.
    """
    return _Convolution.apply(features, kernel, kernel_map)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map = kernel_map
        return _apply(features, kernel, kernel_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernel = ctx.saved_tensors
        kernel_map: KernelMap = ctx.kernel_map
        grad = grad.contiguous()
        grad_features = grad_kernel = None
        if ctx.needs_input_grad[0]:
            grad_features = _apply(grad, kernel.transpose(1, 2), kernel_map.transposed())
        if ctx.needs_input_grad[1]:
            grad_kernel = _kernel_gradient(features, grad, kernel_map)
        return grad_features, grad_kernel, None


def _apply(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    products = features.new_empty(kernel_map.in_row.shape[0], kernel.shape[2])
    for weight, pairs in _groups(kernel_map):
        rows = features.index_select(0, kernel_map.in_row[pairs])
        torch.mm(rows, kernel[weight], out=products[pairs])
    output = kernel_map.by_out.sum(products)
    if kernel_map.identity is not None:
        output.addmm_(features, kernel[kernel_map.identity])
    return output


def _kernel_gradient(features: Tensor, grad: Tensor, kernel_map: KernelMap) -> Tensor:
    result = features.new_zeros(len(kernel_map.counts), features.shape[1], grad.shape[1])
    for weight, pairs in _groups(kernel_map):
        rows = features.index_select(0, kernel_map.in_row[pairs])
        grads = grad.index_select(0, kernel_map.out_row[pairs])
        torch.mm(rows.t(), grads, out=result[weight])
    if kernel_map.identity is not None:
        torch.mm(features.t(), grad, out=result[kernel_map.identity])
    return result


def _groups(kernel_map: KernelMap) -> Iterator[tuple[int, slice]]:
    """Weights that have pairs, and where these are listed."""
    start = 0
    for weight, count in enumerate(kernel_map.counts):
        if count:
            yield weight, slice(start, start + count)
        start += count
