"""Largest response of a small perceptron among the neighbours of every token.

The wide rows of all pairs of a token and a neighbour are made for a few tokens at a time, and made
again in the backward pass: which neighbour responds most is all that is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Wide rows made at a time: on a CPU as many as stay in the cache of a core.
_ROWS = {"cpu": 2**10}
_ROWS_ELSEWHERE = 2**17


def largest_response(
    values: Tensor, neighbours: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> Tensor:
    """Of every token, the largest ``weight @ relu(scale @ difference + shift)``.

    The differences are those of its neighbours' values to its own. Of equal responses the first
    one counts. Products are made in the dtype of autocast, where it is enabled.

    Args:
        values: (T, C_in).
        neighbours: (T, K) int64 rows of ``values``.
        scale: (C, C_in).
        shift: (C,).
        weight: (C_out, C).

    Returns:
        (T, C_out).
    """
    device = values.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        scale, shift, weight = scale.to(dtype), shift.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():
        return _largest(values, neighbours, scale, shift, weight, None)
    largest: Tensor = _LargestResponse.apply(values, neighbours, scale, shift, weight)
    return largest


class _LargestResponse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, neighbours: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
    ) -> Tensor:
        small = torch.uint8 if neighbours.shape[1] < 256 else torch.int32
        winner = torch.empty(len(values), len(weight), dtype=small, device=values.device)
        largest = _largest(values, neighbours, scale, shift, weight, winner)
        ctx.save_for_backward(values, neighbours, scale, shift, weight, winner)
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with _without_autocast(gradient):
            return _gradients(gradient, *ctx.saved_tensors)


def _largest(
    values: Tensor,
    neighbours: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    winner: Tensor | None,
) -> Tensor:
    """(T, C_out); ``winner`` (T, C_out) becomes the column of the neighbour that it comes from."""
    pairs = neighbours.shape[1]
    largest = weight.new_empty(len(values), len(weight))
    with _without_autocast(values):
        for rows in _chunks(neighbours):
            _, hidden = _hidden(values, neighbours, rows, scale, shift)
            responses = (hidden @ weight.t()).view(-1, pairs, len(weight))
            largest[rows] = responses.amax(1)
            if winner is not None:
                # Faster than the indices that max() returns, which has no vectorised form.
                backwards = torch.arange(pairs - 1, -1, -1, device=values.device).to(winner.dtype)
                same = responses == largest[rows, None]
                winner[rows] = pairs - 1 - (same * backwards[:, None]).amax(1)
    return largest


def _gradients(
    gradient: Tensor,
    values: Tensor,
    neighbours: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    winner: Tensor,
) -> tuple[Tensor | None, ...]:
    wide = torch.promote_types(gradient.dtype, torch.float32)
    of_scale, of_shift, of_weight = (
        torch.zeros_like(layer, dtype=wide) for layer in (scale, shift, weight)
    )
    of_difference = values.new_empty(*neighbours.shape, values.shape[1])
    backwards = _through_few if _few_are_faster(gradient) else _through_all
    for rows in _chunks(neighbours):
        difference, hidden = _hidden(values, neighbours, rows, scale, shift)
        own, of_hidden = backwards(gradient[rows], winner[rows], hidden, weight)
        of_hidden *= hidden > 0
        of_weight += own
        of_scale += of_hidden.t() @ difference
        of_shift += of_hidden.sum(0)
        of_difference[rows] = (of_hidden @ scale).view_as(of_difference[rows])
    of_values = -of_difference.sum(1)
    of_values.index_add_(0, neighbours.flatten(), of_difference.flatten(0, 1))
    return (
        of_values, None,
        of_scale.to(scale.dtype), of_shift.to(shift.dtype), of_weight.to(weight.dtype),
    )  # fmt: skip


def _chunks(neighbours: Tensor) -> Iterator[slice]:
    count, pairs = neighbours.shape
    step = max(1, _ROWS.get(neighbours.device.type, _ROWS_ELSEWHERE) // max(pairs, 1))
    return (slice(first, first + step) for first in range(0, count, step))


def _hidden(
    values: Tensor, neighbours: Tensor, rows: slice, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Differences (R * K, C_in) of the tokens ``rows``, and the hidden rows (R * K, C) of them."""
    difference = (values[neighbours[rows]] - values[rows, None]).flatten(0, 1).to(scale.dtype)
    return difference, torch.addmm(shift, difference, scale.t()).relu_()


def _few_are_faster(gradient: Tensor) -> bool:
    return gradient.device.type == "cpu" and gradient.dtype in (torch.float32, torch.float64)


def _through_all(
    gradient: Tensor, winner: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of ``weight`` and of ``hidden``, as products with a matrix that is mostly zeros.

    Args:
        gradient, winner: (R, C_out) of the largest responses, and the neighbours that have them.
        hidden: (R * K, C).
        weight: (C_out, C).
    """
    count, channels = gradient.shape
    spread = gradient.new_zeros(count, len(hidden) // count, channels)
    spread = spread.scatter_(1, winner.long()[:, None], gradient[:, None]).flatten(0, 1)
    return spread.t() @ hidden, spread @ weight


def _through_few(
    gradient: Tensor, winner: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, as sums of the rows whose factors are not zero: one in K."""
    row = torch.arange(0, len(hidden), len(hidden) // len(winner))[:, None] + winner
    of_weight = F.embedding_bag(
        row.t().contiguous(), hidden, mode="sum", per_sample_weights=gradient.t().contiguous()
    )
    channel = _by_winner(winner)
    counts = torch.bincount(row.flatten(), minlength=len(hidden))
    of_hidden = F.embedding_bag(
        channel.flatten(), weight, counts.cumsum(0) - counts, mode="sum",
        per_sample_weights=gradient.gather(1, channel).flatten(),
    )  # fmt: skip
    return of_weight, of_hidden


def _by_winner(winner: Tensor) -> Tensor:
    """Channels of every row in the order of their winners, (R, C_out) int64."""
    channels = winner.shape[1]
    bits = (channels - 1).bit_length()
    key = (winner.int() << bits) + torch.arange(channels, dtype=torch.int32)
    # numpy sorts short rows many times faster.
    return (torch.from_numpy(np.sort(key.numpy(), 1)) & ((1 << bits) - 1)).long()


def _without_autocast(rows: Tensor) -> AbstractContextManager[object]:
    device = rows.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
