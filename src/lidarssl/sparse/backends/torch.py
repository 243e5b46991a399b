"""Sparse convolution in plain PyTorch: one autograd node per convolution.

Per weight, the rows it reads are gathered and multiplied into one buffer of pair products;
one segmented sum then adds the products of each output row. The sum has a fixed order, so
results are deterministic on every device. The backward gathers each gradient once for the two
products that read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lidarssl.sparse.pairs import KernelMap


def convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """See ``lidarssl.sparse.backends.choice.convolve``."""
    return _Convolution.apply(features, kernel, kernel_map)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map = kernel_map
        products = features.new_empty(kernel_map.in_row.shape[0], kernel.shape[2])
        for weight, reads, _, product in _groups(kernel_map, products):
            torch.mm(features.index_select(0, reads), kernel[weight], out=product)
        output = kernel_map.by_out.sum(products)
        if kernel_map.identity is not None:
            output.addmm_(features, kernel[kernel_map.identity])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernel = ctx.saved_tensors
        for_features, for_kernel, _ = ctx.needs_input_grad
        return *_gradients(
            grad.contiguous(), features, kernel, ctx.kernel_map, for_features, for_kernel
        ), None


def _gradients(
    grad: Tensor,
    features: Tensor,
    kernel: Tensor,
    kernel_map: KernelMap,
    for_features: bool,
    for_kernel: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Those of features and kernel, or None where not asked for."""
    back = kernel.transpose(1, 2)
    products = grad.new_empty(kernel_map.in_row.shape[0], features.shape[1] * for_features)
    grad_kernel = torch.zeros_like(kernel) if for_kernel else None
    for weight, reads, writes, product in _groups(kernel_map, products):
        rows = grad.index_select(0, writes)
        if for_features:
            torch.mm(rows, back[weight], out=product)
        if grad_kernel is not None:
            torch.mm(features.index_select(0, reads).t(), rows, out=grad_kernel[weight])
    grad_features = kernel_map.by_in.sum(products) if for_features else None
    identity = kernel_map.identity
    if identity is not None:
        if grad_features is not None:
            grad_features.addmm_(grad, back[identity])
        if grad_kernel is not None:
            torch.mm(features.t(), grad, out=grad_kernel[identity])
    return grad_features, grad_kernel


def _groups(
    kernel_map: KernelMap, products: Tensor
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Every weight that has pairs, with their rows in, rows out and (P_k, C) products."""
    counts = kernel_map.counts
    parts = zip(
        range(len(counts)),
        kernel_map.in_row.split(counts),
        kernel_map.out_row.split(counts),
        products.split(counts),
        strict=True,
    )
    return (part for part in parts if counts[part[0]])
