"""The three Triton kernels of sparse convolution. Not yet run on a GPU.

Only builtins of the language are called, none of its jitted helpers: so they also run through
the interpreter when something else has imported triton before TRITON_INTERPRET was set.
Rows are 32-bit, offsets into features 64-bit, because rows times channels may exceed 2^31.
"""

# mypy: disable-error-code=no-untyped-def
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_sums(
    features,  # (N_in, C_in)
    kernel,  # (K, C_in, C_out), strided
    output,  # (N_out, C_out)
    table,  # (K, padded) int32
    order,  # (N_out,) int32, of one part
    listed,  # (T, K) int32, of one part
    counts,  # (T,) int32, of one part
    weights,  # K
    rows_out,
    padded,
    c_in,
    c_out,
    stride_weight,
    stride_in,
    stride_out,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    ADD: tl.constexpr,
):
    """output[o] = sum over k of features[table[k, o]] @ kernel[k], one tile of rows a program.

    Over the weights of one part; with ``ADD`` to what the output already holds.
    """
    column_blocks = (c_out + COLUMNS - 1) // COLUMNS
    tile = tl.program_id(0) // column_blocks
    column = (tl.program_id(0) % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    position = tile * TILE + tl.arange(0, TILE)
    steps = (c_in + INNER - 1) // INNER
    number = tl.load(counts + tile)
    total = tl.full((TILE, COLUMNS), 0, SUM)
    # One loop over weights and channels, not two: it can be pipelined as a whole.
    for step in range(number * steps):
        weight = tl.load(listed + tile * weights + step // steps).to(tl.int64)
        inner = (step % steps) * INNER + tl.arange(0, INNER)
        row = tl.load(table + weight * padded + position)
        left = tl.load(
            features + row.to(tl.int64)[:, None] * c_in + inner[None, :],
            mask=(row >= 0)[:, None] & (inner < c_in)[None, :],
            other=0.0,
        )
        right = tl.load(
            kernel
            + weight * stride_weight
            + inner[:, None] * stride_in
            + column[None, :] * stride_out,
            mask=(inner < c_in)[:, None] & (column < c_out)[None, :],
            other=0.0,
        )
        if WIDEN:
            left, right = left.to(SUM), right.to(SUM)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    inside = position < rows_out
    if ADD:  # nothing to add: the output is not touched
        inside = inside & (tl.full((TILE,), 0, tl.int32) + number > 0)
    row = tl.load(order + position, mask=inside, other=0)
    place = output + row.to(tl.int64)[:, None] * c_out + column[None, :]
    inside = inside[:, None] & (column < c_out)[None, :]
    if ADD:
        total += tl.load(place, mask=inside, other=0.0)
    tl.store(place, total.to(output.dtype.element_ty), mask=inside)


@triton.jit
def chunk_products(
    features,  # (N_in, C_in)
    grad,  # (N_out, C_out)
    partial,  # (J, C_in, C_out) in the type of the sums
    read,  # (P,) int32
    written,  # (P,) int32
    start,  # (J,) int32
    stop,  # (J,) int32
    c_in,
    c_out,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """partial[j] = sum over the pairs (i, o) of piece j of features[i]^T grad[o]."""
    column_blocks = (c_out + COLUMNS - 1) // COLUMNS
    blocks = (c_in + TILE - 1) // TILE * column_blocks
    chunk = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    channel = block // column_blocks * TILE + tl.arange(0, TILE)
    column = block % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    last = tl.load(stop + chunk)
    total = tl.full((TILE, COLUMNS), 0, SUM)
    for at in range(tl.load(start + chunk), last, INNER):
        pair = at + tl.arange(0, INNER)
        inside = pair < last
        source = tl.load(read + pair, mask=inside, other=0).to(tl.int64)
        target = tl.load(written + pair, mask=inside, other=0).to(tl.int64)
        left = tl.load(
            features + source[:, None] * c_in + channel[None, :],
            mask=inside[:, None] & (channel < c_in)[None, :],
            other=0.0,
        )
        right = tl.load(
            grad + target[:, None] * c_out + column[None, :],
            mask=inside[:, None] & (column < c_out)[None, :],
            other=0.0,
        )
        if WIDEN:
            left, right = left.to(SUM), right.to(SUM)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
    tl.store(
        partial + chunk.to(tl.int64) * c_in * c_out + channel[:, None] * c_out + column[None, :],
        total,
        mask=(channel < c_in)[:, None] & (column < c_out)[None, :],
    )


@triton.jit
def add_chunks(
    partial,  # (J, size) in the type of the sums
    result,  # (K, size)
    first,  # (K + 1,) int32
    size,
    BLOCK: tl.constexpr,
    SUM: tl.constexpr,
):
    """result[k] = sum of the pieces of weight k, one after the other."""
    weight = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0, SUM)
    start = tl.load(first + weight)
    piece = partial + start.to(tl.int64) * size
    for _ in range(start, tl.load(first + weight + 1)):
        total += tl.load(piece + place, mask=place < size, other=0.0)
        piece += size
    whole = result + weight.to(tl.int64) * size
    tl.store(whole + place, total.to(result.dtype.element_ty), mask=place < size)
