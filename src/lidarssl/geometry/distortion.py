"""Lens distortion: the Brown-Conrady model, and images freed of it.

Coefficients stand in the order of the field's calibration files: k1, k2, p1, p2, then k3, then
k4, k5, k6 of the rational model; four, five or eight of them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor
from torch.nn.functional import grid_sample

from lidarssl.errors import ConfigError

COUNTS = (4, 5, 8)


def distort(rays: Tensor, coefficients: Tensor) -> Tensor:
    """Where the lens puts rays: (..., 2) x / z and y / z, before to after distortion.

    Args:
        rays: (..., 2).
        coefficients: (4,), (5,) or (8,).

    Raises:
        ConfigError: another number of coefficients.
    """
    k1, k2, p1, p2, k3, k4, k5, k6 = _padded(coefficients)
    x, y = rays.unbind(-1)
    s = x * x + y * y
    radial = (1 + s * (k1 + s * (k2 + s * k3))) / (1 + s * (k4 + s * (k5 + s * k6)))
    return torch.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (s + 2 * x * x),
            y * radial + p1 * (s + 2 * y * y) + 2 * p2 * x * y,
        ],
        -1,
    )


def largest_radius(coefficients: Tensor) -> float:
    """Radius x / z up to which the radial distortion grows; beyond it an image would fold over.

    Raises:
        ConfigError: another number of coefficients than 4, 5 or 8.
    """
    k1, k2, _, _, k3, k4, k5, k6 = _padded(coefficients)
    upper, lower = Polynomial([1, k1, k2, k3]), Polynomial([1, k4, k5, k6])
    squared = Polynomial([0, 1])
    # The sign of d(r upper / lower) / dr with squared = r^2, and the pole of the quotient.
    growth = upper * lower + 2 * squared * (upper.deriv() * lower - upper * lower.deriv())
    roots = np.concatenate([_positive_roots(growth), _positive_roots(lower)])
    return math.sqrt(roots.min()) if len(roots) else math.inf


def _positive_roots(polynomial: Polynomial) -> np.ndarray:
    roots = polynomial.trim(1e-15).roots()
    real = roots.real[np.abs(roots.imag) < 1e-9 * (1 + np.abs(roots.real))]
    return real[real > 0]


def _padded(coefficients: Tensor) -> list[float]:
    if len(coefficients) not in COUNTS:
        raise ConfigError(
            f"{len(coefficients)} distortion coefficients",
            field="distortion",
            remedy="give k1 k2 p1 p2, with k3, or with k3 k4 k5 k6",
        )
    values = [float(value) for value in coefficients]
    return values + [0.0] * (8 - len(values))


def undistort_image(image: Tensor, intrinsics: Tensor, coefficients: Tensor) -> Tensor:
    """The image that a pinhole camera of the same intrinsics would have taken.

    Args:
        image: (C, H, W) uint8, as the lens made it.
        intrinsics: (3, 3), pixels of ``image``.
        coefficients: (4,), (5,) or (8,).

    Returns:
        (C, H, W) uint8, bilinear; 0 where the lens saw nothing.

    Raises:
        ConfigError: another number of coefficients.
    """
    height, width = image.shape[1:]
    fx, skew, cx = intrinsics[0].tolist()
    _, fy, cy = intrinsics[1].tolist()
    # float32 is exact to ~1e-4 pixels here and several times faster.
    y = ((torch.arange(height, dtype=torch.float32) - cy) / fy)[:, None].expand(height, width)
    x = (torch.arange(width, dtype=torch.float32) - cx - skew * y) / fx
    seen = x * x + y * y < largest_radius(coefficients) ** 2
    x, y = distort(torch.stack([x, y], -1), coefficients).unbind(-1)
    u, v = fx * x + skew * y + cx, fy * y + cy
    # Pixel centres are integers: -1 is column 0, 1 is the last column.
    grid = torch.stack([2 * u / max(width - 1, 1) - 1, 2 * v / max(height - 1, 1) - 1], -1)
    grid = torch.where(seen[..., None], grid, 2.0).clamp(-3, 3)
    pixels = grid_sample(image[None].float(), grid[None], mode="bilinear", align_corners=True)
    return pixels[0].round().to(torch.uint8)
