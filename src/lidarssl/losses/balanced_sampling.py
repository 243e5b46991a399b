"""Density- and category-aware sampling of matches (OLIVINE, NeurIPS 2024).

Near ranges and frequent classes own most matches. Drawing a match with a probability inverse to
the density of its range and to the size of its class evens both out.

Everything here is float64, and small next to a forward pass: it runs on the CPU.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Rounding = Literal["floor", "round"]

COUNTED = 2**20
"""Largest integer among values that are counted instead of sorted."""

KERNEL_VALUES = 2**22
"""Most values of the kernel between bins that are held at a time (32 MiB)."""


def range_bins(points: Tensor, size: float, rounding: Rounding) -> Tensor:
    """Number of the ring around the sensor that each point lies in.

    Args:
        points: (M, 3 or more) x, y, ... in metres.
        size: width of a ring in metres, > 0.
        rounding: of horizontal distance / size; "round" takes halves to the even number.

    Returns:
        (M,) int64, on the device of the points.

    Raises:
        ValueError: the size is not positive, or the rounding is not known.
    """
    if not size > 0:
        raise ValueError(f"size must be positive, not {size}")
    if rounding not in ("floor", "round"):
        raise ValueError(f"rounding must be 'floor' or 'round', not {rounding!r}")
    x, y = points[:, 0], points[:, 1]
    # Tensor by tensor, as of cylindrical voxels: by a number, rings could differ in the last bit.
    rings = torch.sqrt(x * x + y * y) / points.new_tensor(size)
    return (rings.floor() if rounding == "floor" else rings.round()).long()


def bandwidth(bins: Tensor) -> Tensor:
    """Silverman's rule for a Gaussian kernel: 1.06 * std * M^(-1/5), std unbiased.

    Args:
        bins: (M,).

    Returns:
        Scalar, float64, in units of a bin; 0 when M < 2.
    """
    if bins.numel() < 2:
        return torch.zeros((), dtype=torch.float64)
    values = bins.cpu().double()
    return 1.06 * values.std() * values.numel() ** -0.2


def range_density(bins: Tensor) -> Tensor:
    """Gaussian kernel density of the bins, at the bins.

    density_i = mean_j N(bin_i - bin_j; h), h the :func:`bandwidth`. Equal bins have equal
    densities, so the sum runs over distinct bins with their counts, which is exact.

    Args:
        bins: (M,).

    Returns:
        (M,) float64 on the CPU, per unit of a bin; 1 everywhere when no two bins differ, where
        the bandwidth is 0 and a density is not defined.
    """
    width = float(bandwidth(bins))
    if not width > 0:
        return torch.ones(bins.numel(), dtype=torch.float64)
    values, place, counts = _distinct(bins.cpu())
    values = values.double() / width
    shares = counts.double() / (bins.numel() * width * math.sqrt(2 * math.pi))
    rows = max(1, KERNEL_VALUES // values.numel())
    density = [
        torch.exp(-0.5 * (some[:, None] - values) ** 2) @ shares for some in values.split(rows)
    ]
    return torch.cat(density)[place]


def balanced_weights(
    bins: Tensor, labels: Tensor, by_range: bool = True, by_class: bool = True
) -> Tensor:
    """Weight with which each match should be drawn: 1 / (density of its range * size of its class).

    Args:
        bins: (M,), as of :func:`range_bins`.
        labels: (M,) int64.
        by_range: divide by the density.
        by_class: divide by the number of matches that have the same label.

    Returns:
        (M,) float64 on the CPU, positive, not normalised.

    Raises:
        ValueError: bins and labels differ in shape.
    """
    if bins.ndim != 1 or bins.shape != labels.shape:
        raise ValueError(
            f"bins {tuple(bins.shape)} and labels {tuple(labels.shape)} must have one shape (M,)"
        )
    weights = torch.ones(bins.numel(), dtype=torch.float64)
    if by_range:
        weights = weights / range_density(bins)
    if by_class:
        _, place, counts = _distinct(labels.cpu())
        weights = weights / counts[place]
    return weights


def _distinct(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct values, where each of ``values`` is among them, and how often each occurs.

    Counting small numbers is linear in them; ``torch.unique`` sorts, ten times slower.
    """
    small = not values.is_floating_point() and values.numel() > 0
    if not small or int(values.min()) < 0 or int(values.max()) > COUNTED:
        return torch.unique(values, return_inverse=True, return_counts=True)
    counts = torch.bincount(values)
    found = counts.nonzero()[:, 0]
    place = torch.empty_like(counts)
    place[found] = torch.arange(len(found))
    return found, place[values], counts[found]


def weighted_choice(weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Rows drawn without replacement, at every draw in proportion to the weights that are left.

    An exponential race: row i arrives after a time of rate w_i, and the first arrivals win
    (Efraimidis & Spirakis, 2006). Unlike ``torch.multinomial`` it takes any number of rows.

    Args:
        weights: (M,), >= 0, not necessarily normalised.
        number: rows to draw, >= 0.
        generator: source of the draws.

    Returns:
        (min(number, M),) int64, in the order of the draws, on the generator's device. Rows of
        weight 0 come last, uniformly, when no others are left.

    Raises:
        ValueError: a weight is negative or not finite, or the number is negative.
    """
    weights = weights.to(generator.device, torch.float64)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("weights must be finite and not negative")
    if number < 0:
        raise ValueError(f"number must not be negative, but is {number}")
    time = torch.empty_like(weights).exponential_(generator=generator)
    # Logarithms, since a time over a tiny weight overflows. None of them reaches 1e4.
    arrival = torch.where(weights > 0, time.log() - weights.log(), 1e4 + time)
    return torch.topk(arrival, min(number, weights.numel()), largest=False).indices
