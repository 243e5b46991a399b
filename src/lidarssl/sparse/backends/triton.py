"""Sparse convolution by Triton kernels. Not yet run on a GPU.

Tested by Triton's interpreter, and compiled to machine code of a GPU.

Forward and data gradient are one kernel, an implicit matrix product: a tile of output rows
gathers its input rows weight after weight and keeps its sums in registers, so that nothing but
features, weights, row numbers and results is moved. A scan at 0.1 m has 3 to 8 of 27
neighbours, and a tile pays for each weight that any of its rows has; rows are therefore sorted
so that a tile holds like sets of weights (``triton_plan``). Of the products of a MinkUNet34 in
tiles of 64 rows, on a real sweep eight times turned, 55 % are then useful, 90 % with the weights
in three parts that are sorted apart (22 % of a full table). Parts move up to 24 bytes more per
result, where one part moves 8 to 18 in bfloat16: they pay where there are many channels. Pair
lists weight by weight waste nothing but write and read every product in float32: 8 bytes for
each of the 3 to 8 pairs of a result.

The weight gradient is a product over the pairs of each weight, in pieces whose sums are then
added in order. No kernel uses atomics: results are deterministic, and the same on every run
once the tiles are chosen; see ``triton_tuning`` for those.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lidarssl.errors import ConfigError, require
from lidarssl.sparse.backends.triton_plan import Plan
from lidarssl.sparse.backends.triton_tuning import Task, Tile, chosen_tile
from lidarssl.sparse.pairs import KernelMap

PROGRAMS = 1024
"""About how many share a weight gradient: several per multiprocessor, 16 MiB of partial sums at
64 x 64 each."""
SHORTEST_CHUNK = 256
_ADDED = 1024
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """See ``lidarssl.sparse.backends.choice.convolve``.

    Sums are float32, of float64 input float64. TF32 is used where torch allows it in matrix
    products.

    Raises:
        ConfigError: triton is not installed, or there is neither a GPU nor the interpreter.
        TypeError: not a floating-point type, or features and kernel of two types.
    """
    if features.dtype not in _TYPES or kernel.dtype != features.dtype:
        raise TypeError(f"features of {features.dtype} and a kernel of {kernel.dtype}")
    if not features.is_cuda and not interpreted():
        raise ConfigError(
            f"the triton backend of sparse convolution cannot run on {features.device.type}",
            field="LIDARSSL_SPARSE",
            remedy="leave it unset or set it to torch, or move the model and its input to a GPU; "
            "TRITON_INTERPRET=1 runs the kernels on a CPU, slowly, for tests",
        )
    return _Convolution.apply(features, kernel, kernel_map)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, by TRITON_INTERPRET=1 at their import.

    Raises:
        ConfigError: triton is not installed.
    """
    return not isinstance(_kernels().tile_sums, require("triton", "gpu").JITFunction)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        features = features.contiguous()
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map = kernel_map
        return sums(features, kernel, Plan.of(kernel_map))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernel = ctx.saved_tensors
        kernel_map: KernelMap = ctx.kernel_map
        grad = grad.contiguous()
        grad_features = grad_kernel = None
        if ctx.needs_input_grad[0]:
            back = Plan.of(kernel_map.transposed())
            grad_features = sums(grad, kernel.transpose(1, 2), back)
        if ctx.needs_input_grad[1]:
            grad_kernel = kernel_gradient(features, grad, Plan.of(kernel_map))
        return grad_features, grad_kernel, None


def sums(features: Tensor, kernel: Tensor, plan: Plan, tile: Tile | None = None) -> Tensor:
    """Sum over weights of the rows they read times their matrix.

    Args:
        features: (N_in, C_in), contiguous.
        kernel: (K, C_in, C_out) with any strides.
        plan: of the direction asked for.
        tile: None = the one chosen for these sizes.

    Returns:
        (N_out, C_out).
    """
    weights, c_in, c_out = kernel.shape
    rows = plan.rows_out
    if rows == 0:
        return features.new_empty(rows, c_out)

    def run(tile: Tile) -> Tensor:
        layout = plan.layout(tile.parts)
        tiles = layout.tiles(tile.rows)
        # Between parts sums are kept as they are; a single part rounds them in the kernel.
        held = features.dtype if tile.parts == 1 else _sum_type(features.dtype)
        output = features.new_empty(rows, c_out, dtype=held)
        programs = -(-rows // tile.rows) * -(-c_out // tile.columns)
        for part in range(tile.parts):
            _kernels().tile_sums[(programs,)](
                features, kernel, output, layout.table, layout.order[part], tiles.listed[part],
                tiles.counts[part], weights, rows, layout.table.shape[1], c_in, c_out,
                *kernel.stride(), ADD=part > 0, **_options(tile, features.dtype),
            )  # fmt: skip
        return output.to(features.dtype)

    task = Task("sums", weights, c_in, c_out, rows, features.dtype, _precision(features.dtype))
    with torch.cuda.device_of(features):
        return run(tile or chosen_tile(task, features.device, run, interpreted()))


def kernel_gradient(features: Tensor, grad: Tensor, plan: Plan, tile: Tile | None = None) -> Tensor:
    """Per weight, the sum over its pairs (i, o) of features[i]^T grad[o].

    Args:
        features: (N_in, C_in), contiguous.
        grad: (N_out, C_out), contiguous.
        plan: of the forward direction.
        tile: None = the one chosen for these sizes.

    Returns:
        (K, C_in, C_out).
    """
    weights, c_in, c_out = len(plan.counts), features.shape[1], grad.shape[1]
    precision = _sum_type(features.dtype)

    def run(tile: Tile) -> Tensor:
        result = features.new_empty(weights, c_in, c_out)
        blocks = -(-c_in // tile.rows) * -(-c_out // tile.columns)
        chunks = plan.chunks(_chunk_length(plan.pairs.shape[1], blocks, tile.inner))
        count = chunks.start.shape[0]
        partial = features.new_empty(count, c_in, c_out, dtype=precision)
        if count:
            _kernels().chunk_products[(count * blocks,)](
                features, grad, partial, *plan.pairs, chunks.start, chunks.stop, c_in, c_out,
                **_options(tile, features.dtype),
            )  # fmt: skip
        size = c_in * c_out
        _kernels().add_chunks[(weights, -(-size // _ADDED))](
            partial, result, chunks.first, size, BLOCK=_ADDED, SUM=_language_type(precision)
        )
        return result

    pairs = plan.pairs.shape[1]
    task = Task("gradient", weights, c_in, c_out, pairs, features.dtype, _precision(features.dtype))
    with torch.cuda.device_of(features):
        return run(tile or chosen_tile(task, features.device, run, interpreted()))


def _chunk_length(pairs: int, blocks: int, step: int) -> int:
    """A power of two, so that layers of several widths share their pieces."""
    length = max(SHORTEST_CHUNK, step)
    while length * PROGRAMS < pairs * blocks:
        length *= 2
    return length


def _options(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "TILE": tile.rows,
        "COLUMNS": tile.columns,
        "INNER": tile.inner,
        "SUM": _language_type(_sum_type(dtype)),
        "PRECISION": _precision(dtype),
        # The interpreter holds bfloat16 as bare bits, which it cannot multiply.
        "WIDEN": interpreted() and dtype == torch.bfloat16,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: what torch allows in its own matrix products."""
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _language_type(dtype: torch.dtype) -> Any:
    return getattr(require("triton.language", "gpu"), str(dtype).removeprefix("torch."))


@functools.cache
def _kernels() -> ModuleType:
    require("triton", "gpu")
    return importlib.import_module("lidarssl.sparse.backends.triton_kernels")
