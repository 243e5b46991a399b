"""Batch norm whose statistics are those of the whole batch, on however many processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lidarssl.distributed import all_reduce_sum, world_size


class _SharedStatistics(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all axes but the second and, in training, over all ranks.

    Several processes compute what one would on their values together, running statistics
    included. When these are fewer than two per channel there is no variance to learn from: the
    running statistics are used and stay as they are.
    """

    def forward(self, values: Tensor) -> Tensor:
        self._check_input_dim(values)
        if not self.training:
            return super().forward(values)
        if world_size() > 1:
            return self._across_ranks(values)
        if values.numel() < 2 * values.shape[1]:
            return self._normalize(values, *self.running())
        return super().forward(values)

    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean, self.running_var

    def scale_and_shift(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and summand that the norm is for values of these statistics."""
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return scale, self.bias - mean * scale

    def _normalize(self, values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(variance + self.eps)
        mean, scale, shift = (
            vector.view(-1, *(1,) * (values.dim() - 2)) for vector in (mean, scale, self.bias)
        )
        return ((values - mean) * scale + shift).to(values.dtype)

    def _across_ranks(self, values: Tensor) -> Tensor:
        """Every rank takes part, with values or without; no branch depends on their number."""
        wide = values.to(self.weight.dtype)
        axes = [axis for axis in range(wide.dim()) if axis != 1]
        own = wide.new_full((1,), wide.numel() // wide.shape[1])
        total = all_reduce_sum(torch.cat([wide.sum(axes), own]))
        count = total[-1].detach()
        mean = total[:-1] / count.clamp(min=1)
        centred = wide - mean.view(-1, *(1,) * (wide.dim() - 2))
        variance = all_reduce_sum(centred.square().sum(axes)) / count.clamp(min=1)
        enough = count > 1
        old_mean, old_variance = (value.clone() for value in self.running())
        self.track(mean, variance * count / (count - 1).clamp(min=1), enough)
        mean = torch.where(enough, mean, old_mean)
        variance = torch.where(enough, variance, old_variance)
        return self._normalize(wide, mean, variance).to(values.dtype)

    @torch.no_grad()
    def track(self, mean: Tensor, variance: Tensor, enough: Tensor | None = None) -> None:
        """Let the running statistics follow those of a batch.

        Args:
            mean, variance: of the batch, the variance unbiased.
            enough: () bool, False changes nothing; None = True.
        """
        running_mean, running_var = self.running()
        assert self.num_batches_tracked is not None
        counted = running_mean.new_ones(()) if enough is None else enough.to(running_mean.dtype)
        self.num_batches_tracked += counted.bool()
        momentum = counted * (self.momentum or 0.0)
        if self.momentum is None:  # the mean of all batches
            momentum = counted / self.num_batches_tracked.clamp(min=1)
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_(variance.to(running_var), momentum)


class RowNorm(_SharedStatistics, nn.BatchNorm1d):
    """Of (N, C) rows; keys and arguments of ``nn.BatchNorm1d``."""


class MapNorm(_SharedStatistics, nn.BatchNorm2d):
    """Of (B, C, H, W) maps; keys and arguments of ``nn.BatchNorm2d``."""
