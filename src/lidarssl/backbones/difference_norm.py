"""Batch norm, linear layer and batch norm of pairwise differences, as one affine map.

Both norms only need the mean and the covariance of a few input values, so the wide rows in between
are never made: the statistics of ``W d`` are ``W mean(d)`` and ``W cov(d) W'``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lidarssl.distributed import all_reduce_sum
from lidarssl.sparse.norms import RowNorm


def difference_affine(
    values: Tensor, neighbours: Tensor, layers: nn.Sequential
) -> tuple[Tensor, Tensor]:
    """The map that the first three ``layers`` are for the differences d of all pairs.

    In training the running statistics of both norms follow the batch, that of all ranks.

    Args:
        values: (T, C_in).
        neighbours: (T, K) rows of ``values``; d = values[neighbour] - values[token].
        layers: ``RowNorm`` of C_in, linear (C_in -> C), ``RowNorm`` of C; once folded, identity,
            linear with a bias, identity.

    Returns:
        (C, C_in) matrix A and (C,) b of A d + b.
    """
    first, linear, second = layers[0], layers[1], layers[2]
    assert isinstance(linear, nn.Linear)
    if not isinstance(first, RowNorm):
        return linear.weight, linear.bias
    assert isinstance(second, RowNorm)
    learning = _moments(values, neighbours) if first.training else None
    if learning is None or learning[2] < 2:
        inner, outer = (
            first.scale_and_shift(*first.running()),
            second.scale_and_shift(*second.running()),
        )
        return _joined(linear.weight, *inner, *outer)
    mean, covariance, count = learning
    variance = covariance.diagonal()
    scale, shift = first.scale_and_shift(mean, variance)
    wide = linear.weight.to(mean.dtype)
    scaled = wide * scale
    wide_mean = wide @ (mean * scale + shift)
    wide_variance = ((scaled @ covariance) * scaled).sum(1)
    unbiased = count / (count - 1)
    first.track(mean, variance * unbiased)
    second.track(wide_mean, wide_variance * unbiased)
    outer_scale, outer_shift = second.scale_and_shift(wide_mean, wide_variance)
    matrix, bias = _joined(wide, scale, shift, outer_scale, outer_shift)
    return matrix.to(values.dtype), bias.to(values.dtype)


def _moments(values: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean, covariance and number of the differences of all pairs and ranks."""
    difference = (values[neighbours] - values[:, None]).flatten(0, 1)
    if difference.device.type != "mps":
        difference = difference.double()
    own = difference.new_tensor([float(len(difference))])
    total = all_reduce_sum(torch.cat([difference.sum(0), own]))
    count = total[-1].detach().clamp(min=1)
    mean = total[:-1] / count
    centred = difference - mean
    return mean, all_reduce_sum(centred.t() @ centred) / count, float(total[-1].detach())


def _joined(
    weight: Tensor, scale: Tensor, shift: Tensor, outer: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    return (weight * scale) * outer[:, None], (weight @ shift) * outer + last
