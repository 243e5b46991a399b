"""Classes as von Mises-Fisher distributions of features on the unit sphere (OLIVINE, NeurIPS 2024).

A class k has a mean direction mu_k and a concentration kappa_k >= 0. The density of a unit feature
g of C channels is C_p(kappa) exp(kappa g . mu), p = C, with
log C_p(kappa) = (p/2 - 1) log kappa - (p/2) log 2 pi - log I_{p/2 - 1}(kappa).

Bessel functions are evaluated in float64 on the CPU, for a few numbers per step; not every device
has float64.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import Polynomial
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lidarssl.distributed import all_reduce_sum

Bessel = Literal["exact", "order_zero", "large_argument"]
"""What stands for log I_{p/2 - 1}(kappa). "exact": itself. "order_zero": log I_0(kappa), as the
published code has it. "large_argument": kappa - log(sqrt(2 pi kappa) (1 + 1 / (8 kappa) +
9 / (128 kappa^2))), as a second loss of it has it: the expansion of log I_0 but for the sign of the
logarithm of the last factor. Only the value of a loss and its gradient to kappa differ.
"""

LONGEST = 1 - 1e-6
"""Longest mean of unit features; of longer ones the concentration is that of this length."""

LARGE = 100.0
"""From this length of (order, x) on, the uniform expansion is exact to float64."""

SERIES_TERMS, EXPANSION_TERMS = 160, 5


def log_bessel(order: float, x: Tensor) -> Tensor:
    """log I_order(x), the modified Bessel function of the first kind.

    Args:
        order: >= 0.
        x: >= 0, any shape.

    Returns:
        Like x, with a first derivative; -inf at x = 0 where the order is positive.

    Raises:
        ValueError: the order is negative.
    """
    scaled = _log_scaled_bessel(order, x)
    return scaled + order * x.log() if order > 0 else scaled


def concentration(length: Tensor, channels: int) -> Tensor:
    """Estimate of kappa from the length R of the mean of unit features: R (p - R^2) / (1 - R^2).

    Source: Banerjee et al., "Clustering on the Unit Hypersphere using von Mises-Fisher
    Distributions", JMLR 2005.

    Args:
        length: any shape; clamped to [0, 1 - 1e-6], so that kappa is below 500 000 p.
        channels: p.

    Returns:
        Like the lengths.
    """
    length = length.clamp(0, LONGEST)
    return length * (channels - length**2) / ((1 - length) * (1 + length))


def log_normalizer(kappa: Tensor, channels: int, bessel: Bessel = "exact") -> Tensor:
    """log C_p(kappa), the logarithm of the density's factor in front of the exponential.

    Args:
        kappa: >= 0, any shape.
        channels: p, >= 2.
        bessel: see :data:`Bessel`.

    Returns:
        Like kappa, at least float32. At kappa = 0, "exact" gives the uniform density on the
        sphere; the other two have no finite value there.

    Raises:
        ValueError: fewer than 2 channels, or an unknown ``bessel``.
    """
    if channels < 2:
        raise ValueError(f"a sphere needs 2 channels or more, not {channels}")
    if bessel not in get_args(Bessel):
        raise ValueError(f"bessel must be one of {get_args(Bessel)}, not {bessel!r}")
    kappa = kappa.to(torch.promote_types(kappa.dtype, torch.float32))
    order = channels / 2 - 1
    constant = channels / 2 * math.log(2 * math.pi)
    if bessel == "exact":
        return -_log_scaled_bessel(order, kappa) - constant
    logarithm = log_bessel(0, kappa) if bessel == "order_zero" else _large_argument(kappa)
    return (order * kappa.log() if order > 0 else 0) - constant - logarithm


def negative_log_likelihood(
    features: Tensor, direction: Tensor, kappa: Tensor, bessel: Bessel = "exact"
) -> Tensor:
    """Mean negative log-likelihood of features under one von Mises-Fisher distribution.

    Args:
        features: (N, C) unit vectors, N > 0.
        direction: (C,), divided by its length, or by 1e-12 where that is smaller.
        kappa: scalar.
        bessel: see :data:`Bessel`.

    Returns:
        Scalar, at least float32, with gradients to all three.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    cosine = (features @ F.normalize(direction.to(features.dtype), dim=0)).mean()
    return -log_normalizer(kappa, features.shape[1], bessel) - kappa * cosine


class ClassPrototypes(nn.Module):
    """A von Mises-Fisher distribution of every class, from a moving average of its features.

    Args:
        classes: K.
        channels: C.
        decay: share of a new mean in the moving average, in (0, 1].
        bias_correction: divide the moving average, which starts at 0, by the weight that data has
            in it. Without, as published, its length, and with it kappa, grows with the number of
            updates, whatever the features.

    Attributes:
        mean: (K, C) buffer, moving average.
        weight: (K,) buffer, weight of data in it: 0 for a class not seen, towards 1.
    """

    mean: Tensor
    weight: Tensor

    def __init__(
        self, classes: int, channels: int, decay: float = 1e-4, bias_correction: bool = True
    ) -> None:
        super().__init__()
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1], not {decay}")
        self.decay, self.bias_correction = decay, bias_correction
        self.register_buffer("mean", torch.zeros(classes, channels))
        self.register_buffer("weight", torch.zeros(classes))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Move the classes that are present towards their mean, over the batch of all processes.

        Args:
            features: (M, C) unit vectors.
            labels: (M,) int64 in 0 .. K-1.
        """
        means, counts = self._class_means(features, labels)
        present = counts > 0
        moved = torch.lerp(self.mean, means.to(self.mean.dtype), self.decay)
        self.mean.copy_(torch.where(present[:, None], moved, self.mean))
        weight = torch.lerp(self.weight, torch.ones_like(self.weight), self.decay)
        self.weight.copy_(torch.where(present, weight, self.weight))

    def directions(self) -> Tensor:
        """(K, C) unit vectors, 0 for a class not seen."""
        return F.normalize(self.mean, dim=1)

    def kappas(self) -> Tensor:
        """(K,) concentrations, 0 for a class not seen."""
        length = torch.linalg.vector_norm(self.mean, dim=1)
        if self.bias_correction:
            length = torch.where(self.seen(), length / self.weight, length)
        return concentration(length, self.mean.shape[1])

    def seen(self) -> Tensor:
        """(K,) bool: classes that had data in an update."""
        return self.weight > 0

    def loss(
        self, features: Tensor, labels: Tensor, shares: bool = False, bessel: Bessel = "exact"
    ) -> Tensor:
        """Negative log-likelihood of features under their classes, as they are: no gradient there.

        The batch is that of all processes; every one returns the value of the whole batch.

        Args:
            features: (M, C) unit vectors.
            labels: (M,) int64 in 0 .. K-1.
            shares: weight each class by its share of the matches, as the first release did,
                rather than equally.
            bessel: see :data:`Bessel`.

        Returns:
            Scalar, at least float32, over the classes that are present and seen; 0, with zero
            gradients, without any.
        """
        means, counts = self._class_means(features, labels)
        kept = (counts > 0) & self.seen()
        kappa = self.kappas()[kept].to(means.dtype)
        cosine = (means[kept] * self.directions()[kept].to(means.dtype)).sum(dim=1)
        surprise = -log_normalizer(kappa, means.shape[1], bessel) - kappa * cosine
        weight = counts[kept] if shares else torch.ones_like(surprise)
        return (surprise * weight).sum() / weight.sum().clamp(min=1)

    def _class_means(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(K, C) means and (K,) counts over the batch of all processes, at least float32."""
        if features.ndim != 2 or features.shape != (labels.numel(), self.mean.shape[1]):
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} must be "
                f"(M, {self.mean.shape[1]}) and (M,)"
            )
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        sums = features.new_zeros(self.mean.shape).index_add(0, labels, features)
        ones = features.new_ones(labels.shape)
        counts = features.new_zeros(self.weight.shape).index_add(0, labels, ones)
        sums, counts = all_reduce_sum(sums), all_reduce_sum(counts)
        return sums / counts.clamp(min=1)[:, None], counts


def _large_argument(x: Tensor) -> Tensor:
    """What the published code takes for log I_0(x): see :data:`Bessel`."""
    terms = 1 + 1 / (8 * x) + 9 / (128 * x**2)
    return x - (torch.sqrt(2 * math.pi * x) * terms).log()


class _LogScaledBessel(torch.autograd.Function):
    """log(I_order(x) / x^order), whose derivative is I_{order + 1}(x) / I_order(x)."""

    @staticmethod
    def forward(ctx: Any, order: float, x: Tensor) -> Tensor:
        wide = x.detach().cpu().double().numpy()
        large = np.hypot(order, wide) >= LARGE
        ctx.save_for_backward(x)
        ctx.order = order
        # Each branch gets harmless numbers where the other one is taken.
        small, big = np.where(large, 1.0, wide), np.where(large, wide, LARGE)
        values = np.where(large, _expansion(order, big), _series(order, small))
        return torch.from_numpy(values).to(x.dtype).to(x.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        wide, order = x.detach().cpu().double().numpy(), ctx.order
        large = np.hypot(order, wide) >= LARGE
        small, big = np.where(large, 1.0, wide), np.where(large, wide, LARGE)
        ratio = np.where(
            large,
            _expansion_ratio(order, big),
            small * np.exp(_series(order + 1, small) - _series(order, small)),
        )
        return None, grad * torch.from_numpy(ratio).to(grad.dtype).to(grad.device)


def _log_scaled_bessel(order: float, x: Tensor) -> Tensor:
    """log(I_order(x) / x^order), finite at 0."""
    if not order >= 0:
        raise ValueError(f"order must not be negative, but is {order}")
    return _LogScaledBessel.apply(order, x)


def _series(order: float, x: np.ndarray) -> np.ndarray:
    """log(I_order(x) / x^order) by the power series, whose terms are all positive.

    Term k is (x^2 / 4)^k / (k! (order + 1) ... (order + k)), relative to the first one.
    """
    steps = np.arange(1, SERIES_TERMS + 1)
    ratios = (x[..., None] / 2) ** 2 / (steps * (order + steps))
    rest = np.cumprod(ratios, axis=-1)[..., ::-1].sum(axis=-1)
    return np.log1p(rest) - order * math.log(2) - math.lgamma(order + 1)


def _expansion(order: float, x: np.ndarray) -> np.ndarray:
    """log(I_order(x) / x^order) by the uniform expansion (DLMF 10.41.3)."""
    s = np.hypot(order, x)
    leading = s - order * np.log(order + s) - np.log(2 * math.pi * s) / 2
    return leading + np.log(_corrections(order, s))


def _expansion_ratio(order: float, x: np.ndarray) -> np.ndarray:
    """I_{order + 1}(x) / I_order(x) by the uniform expansion, without cancellation."""
    s, s_next = np.hypot(order, x), np.hypot(order + 1, x)
    step = (2 * order + 1) / (s + s_next)
    exponent = step - order * np.log1p((1 + step) / (order + s)) - np.log1p(step / s) / 2
    corrections = _corrections(order + 1, s_next) / _corrections(order, s)
    return x / (order + 1 + s_next) * np.exp(exponent) * corrections


def _corrections(order: float, s: np.ndarray) -> np.ndarray:
    """sum_k U_k(order / s) / order^k, with the powers of the order divided out."""
    total = np.ones_like(s)
    for k, polynomial in enumerate(_debye_polynomials(), start=1):
        total += polynomial((order / s) ** 2) / s**k
    return total


@lru_cache(maxsize=1)
def _debye_polynomials() -> tuple[Polynomial, ...]:
    """U_k(t) / t^k as polynomials of t^2, k = 1, 2, ... (recurrence: DLMF 10.41.9)."""
    t = Polynomial([0.0, 1.0])
    u, result = Polynomial([1.0]), []
    for k in range(1, EXPANSION_TERMS + 1):
        u = (t**2 - t**4) * u.deriv() / 2 + ((1 - 5 * t**2) * u).integ() / 8
        result.append(Polynomial(u.coef[k::2]))
    return tuple(result)
