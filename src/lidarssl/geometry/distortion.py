"""Lens distortion: the Brown-Conrady and the fisheye model, and images freed of it.

Coefficients stand in the order of the field's calibration files: k1, k2, p1, p2, then k3, then
k4, k5, k6 of the rational model; four, five or eight of them. Those of a fisheye are k1 to k4.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor
from torch.nn.functional import grid_sample

from lidarssl.errors import ConfigError

COUNTS = (4, 5, 8)
Lens = Literal["brown", "fisheye"]
# How many coefficients each has.
LENSES: dict[Lens, tuple[int, ...]] = {"brown": COUNTS, "fisheye": (4,)}


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


def distort_fisheye(rays: Tensor, coefficients: Tensor) -> Tensor:
    """Where a fisheye lens puts rays: (..., 2) x / z and y / z, before to after distortion.

    A ray at the angle a from the axis lands at a (1 + k1 a^2 + k2 a^4 + k3 a^6 + k4 a^8) from it
    (Kannala and Brandt, TPAMI 2006, as calibration tools write it).

    Args:
        rays: (..., 2).
        coefficients: (4,) k1 k2 k3 k4.

    Raises:
        ConfigError: another number of coefficients.
    """
    k1, k2, k3, k4 = _fisheye(coefficients)
    radius = rays.norm(dim=-1, keepdim=True)
    angle = torch.atan(radius)
    s = angle * angle
    landed = angle * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    return rays * torch.where(radius > 0, landed / radius, 1.0)


def largest_fisheye_radius(coefficients: Tensor) -> float:
    """Radius x / z up to which a fisheye image grows; beyond it the image would fold over.

    Raises:
        ConfigError: another number of coefficients than 4.
    """
    k1, k2, k3, k4 = _fisheye(coefficients)
    # d landed / d angle over the square of the angle.
    squares = _positive_roots(Polynomial([1, 3 * k1, 5 * k2, 7 * k3, 9 * k4]))
    angle = math.sqrt(squares.min()) if len(squares) else math.inf
    return math.tan(angle) if angle < math.pi / 2 else math.inf


def _fisheye(coefficients: Tensor) -> list[float]:
    if len(coefficients) not in LENSES["fisheye"]:
        raise ConfigError(
            f"{len(coefficients)} coefficients of a fisheye lens",
            field="distortion",
            remedy="give k1 k2 k3 k4",
        )
    return [float(value) for value in coefficients]


def undistort_image(
    image: Tensor,
    intrinsics: Tensor,
    coefficients: Tensor,
    new_intrinsics: Tensor | None = None,
    lens: Lens = "brown",
) -> Tensor:
    """The image that a pinhole camera in the same place would have taken.

    Args:
        image: (C, H, W) uint8, as the lens made it.
        intrinsics: (3, 3), pixels of ``image``.
        coefficients: (4,), (5,) or (8,); (4,) of a fisheye.
        new_intrinsics: (3, 3) of the image that is returned; None = the same.
        lens: what the coefficients mean.

    Returns:
        (C, H, W) uint8, bilinear; 0 where the lens saw nothing.

    Raises:
        ConfigError: another number of coefficients.
    """
    height, width = image.shape[1:]
    grid = undistortion_grid(height, width, intrinsics, coefficients, new_intrinsics, lens)
    return sample_image(image, grid)


def undistortion_grid(
    height: int,
    width: int,
    intrinsics: Tensor,
    coefficients: Tensor,
    new_intrinsics: Tensor | None = None,
    lens: Lens = "brown",
) -> Tensor:
    """Where each pixel of the pinhole image lies in the image of the lens; see ``undistort_image``.

    Returns:
        (height, width, 2) float32 column and row for ``sample_image``.
    """
    fx, skew, cx = intrinsics[0].tolist()
    _, fy, cy = intrinsics[1].tolist()
    rays = _rays(height, width, intrinsics if new_intrinsics is None else new_intrinsics)
    if lens == "fisheye":
        moved, limit = distort_fisheye(rays, coefficients), largest_fisheye_radius(coefficients)
    else:
        moved, limit = distort(rays, coefficients), largest_radius(coefficients)
    x, y = moved.unbind(-1)
    u, v = fx * x + skew * y + cx, fy * y + cy
    # Pixel centres are integers: -1 is column 0, 1 is the last column.
    grid = torch.stack([2 * u / max(width - 1, 1) - 1, 2 * v / max(height - 1, 1) - 1], -1)
    seen = rays.square().sum(-1, keepdim=True) < limit**2
    return torch.where(seen, grid, 2.0).clamp(-3, 3)


def sample_image(image: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples of a (C, H, W) uint8 image at an ``undistortion_grid``; 0 outside it."""
    pixels = grid_sample(image[None].float(), grid[None], mode="bilinear", align_corners=True)
    return pixels[0].round().to(torch.uint8)


def _rays(height: int, width: int, intrinsics: Tensor) -> Tensor:
    """(H, W, 2) float32 x / z and y / z of the pixels of a pinhole camera."""
    fx, skew, cx = intrinsics[0].tolist()
    _, fy, cy = intrinsics[1].tolist()
    # float32 is exact to ~1e-4 pixels here and several times faster.
    y = ((torch.arange(height, dtype=torch.float32) - cy) / fy)[:, None].expand(height, width)
    x = (torch.arange(width, dtype=torch.float32) - cx - skew * y) / fx
    return torch.stack([x, y], -1)
