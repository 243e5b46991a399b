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
    if first.training:
        mean, covariance, count = _moments(values, neighbours)
        enough = count > 1
    if not first.training or not enough:
        assert first.running_mean is not None
        assert first.running_var is not None
        scale, shift = _affine(first, first.running_mean, first.running_var)
        outer, last = _affine(second, *_running(second))
        return _joined(linear.weight, scale, shift, outer, last)
    variance = covariance.diagonal()
    scale, shift = _affine(first, mean, variance)
    wide = linear.weight.to(mean.dtype)
    inner = wide * scale
    wide_mean = wide @ (mean * scale + shift)
    wide_variance = ((inner @ covariance) * inner).sum(1)
    unbiased = count / (count - 1)
    _track(first, mean, variance * unbiased)
    _track(second, wide_mean, wide_variance * unbiased)
    outer, last = _affine(second, wide_mean, wide_variance)
    matrix, bias = _joined(wide, scale, shift, outer, last)
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


def _affine(norm: RowNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return scale, norm.bias - mean * scale


def _running(norm: RowNorm) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _joined(
    weight: Tensor, scale: Tensor, shift: Tensor, outer: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    return (weight * scale) * outer[:, None], (weight @ shift) * outer + last


@torch.no_grad()
def _track(norm: RowNorm, mean: Tensor, variance: Tensor) -> None:
    running_mean, running_var = _running(norm)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    running_mean.lerp_(mean.to(running_mean), momentum)
    running_var.lerp_(variance.to(running_var), momentum)
