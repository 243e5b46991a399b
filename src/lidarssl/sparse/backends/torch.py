"""Sparse convolution in plain PyTorch: one autograd node per convolution.

The rows that the pairs read are gathered at once and multiplied, weight after weight, into one
buffer of products; one segmented sum then adds the products of each output row. The sum has a
fixed order, so results are deterministic on every device. The backward gathers each gradient once
for the two products that read it.

A CPU works on some ten thousand output rows at a time, whatever the batch: buffers stay near its
caches, and are memory that was used before instead of pages that are new each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lidarssl.sparse.pairs import KernelMap, Rows

_ROWS = 2**15
_NAME = "torch"


def convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """See ``lidarssl.sparse.backends.choice.convolve``."""
    return _Convolution.apply(features, kernel, kernel_map)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map = kernel_map
        parts = []
        for block in blocks(kernel_map, _ROWS):
            rows = features.index_select(0, block.read)
            parts.append(block.sums.sum(_products(rows, kernel, block.counts)))
        output = _joined(parts)
        if kernel_map.identity is not None:
            output.addmm_(features, kernel[kernel_map.identity])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernel = ctx.saved_tensors
        for_features, for_kernel, _ = ctx.needs_input_grad
        back, identity = kernel.transpose(1, 2), ctx.kernel_map.identity
        parts, grad_kernel = [], torch.zeros_like(kernel) if for_kernel else None
        for block in blocks(ctx.kernel_map.transposed(), _ROWS):
            rows = grad.index_select(0, block.read)
            if for_features:
                parts.append(block.sums.sum(_products(rows, back, block.counts)))
            if grad_kernel is not None:
                read = features.index_select(0, block.written)
                _add_gradient(grad_kernel, read, rows, block.counts)
        grad_features = _joined(parts) if for_features else None
        if identity is not None:
            if grad_features is not None:
                grad_features.addmm_(grad, back[identity])
            if grad_kernel is not None:
                torch.mm(features.t(), grad, out=grad_kernel[identity])
        return grad_features, grad_kernel, None


@dataclass
class Block:
    """Some successive output rows, and the pairs that write them.

    Attributes:
        read, written: (P,) int64 rows of the pairs, weight after weight.
        counts: pairs of each weight.
        sums: the pairs of each of the rows.
    """

    read: Tensor
    written: Tensor
    counts: tuple[int, ...]
    sums: Rows


def blocks(kernel_map: KernelMap, size: int) -> list[Block]:
    """All output rows of a map, ``size`` at a time on a CPU; made when first asked for."""
    key = (f"{_NAME} {size}", kernel_map.is_transposed)
    if key not in kernel_map.plans:
        whole = kernel_map.rows_out <= size or kernel_map.in_row.device.type != "cpu"
        kernel_map.plans[key] = [_whole(kernel_map)] if whole else _split(kernel_map, size)
    found: list[Block] = kernel_map.plans[key]
    return found


def _whole(kernel_map: KernelMap) -> Block:
    pairs = (kernel_map.in_row, kernel_map.out_row, kernel_map.counts, kernel_map.by_out)
    return Block(*pairs)


def _split(kernel_map: KernelMap, size: int) -> list[Block]:
    weights, number = len(kernel_map.counts), -(-kernel_map.rows_out // size)
    block = kernel_map.out_row // size
    order = block.argsort(stable=True)  # within a block, weight after weight as before
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    weight = torch.arange(weights).repeat_interleave(torch.tensor(kernel_map.counts))
    counts = (block * weights + weight).bincount(minlength=number * weights).view(number, weights)
    lengths = counts.sum(1).tolist()
    read = kernel_map.in_row[order].split(lengths)
    written = kernel_map.out_row[order].split(lengths)
    # Rows follow each other, so the pairs of a block's rows do, too.
    pairs, start = place[kernel_map.by_out.pairs].split(lengths), kernel_map.by_out.start
    found, before = [], 0
    for index, length in enumerate(lengths):
        rows = slice(index * size, min((index + 1) * size, kernel_map.rows_out))
        sums = Rows(pairs[index] - before, start[rows.start : rows.stop + 1] - before)
        own = tuple(counts[index].tolist())
        found.append(Block(read[index], written[index], own, sums))
        before += length
    return found


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _products(rows: Tensor, kernel: Tensor, counts: tuple[int, ...]) -> Tensor:
    """(P, C) rows, those of every weight times its matrix, (P, D)."""
    products = rows.new_empty(rows.shape[0], kernel.shape[2])
    parts = zip(rows.split(counts), kernel.unbind(0), products.split(counts), strict=True)
    for row, weight, product in parts:
        if len(row):
            torch.mm(row, weight, out=product)
    return products


def _add_gradient(total: Tensor, features: Tensor, grads: Tensor, counts: tuple[int, ...]) -> None:
    """Add to (K, C, D) the products of the (P, C) features and (P, D) gradients of the pairs."""
    parts = zip(features.split(counts), grads.split(counts), total.unbind(0), strict=True)
    for feature, grad, weight in parts:
        if len(feature):
            weight.addmm_(feature.t(), grad)
