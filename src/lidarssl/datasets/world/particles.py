"""Rain and snow between camera and scene, and drops on the lens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from lidarssl.datasets.world.appearance import Appearance
from lidarssl.datasets.world.config import CameraConfig

SHARPEST = 0.6
"""Smallest radius that is drawn, pixels; what is thinner is drawn as much fainter."""

FLAKES, STREAKS, DROPS = 500, 450, 12
"""At full strength, in one image of 90 degrees."""

NEAREST, FARTHEST = 0.7, 12.0
"""Distances at which single particles are drawn, m; what lies beyond is haze."""


@dataclass(frozen=True)
class Particles:
    """Soft short strokes in an image, N of them.

    Attributes:
        row, col: (N,) pixels, centre.
        length, slant: (N,) pixels down and to the right, from the centre to either end.
        radius: (N,) pixels.
        opacity: (N,) 0..1 at the centre.
        distance: (N,) m.
    """

    row: np.ndarray
    col: np.ndarray
    length: np.ndarray
    slant: np.ndarray
    radius: np.ndarray
    opacity: np.ndarray
    distance: np.ndarray


def falling(
    color: np.ndarray,
    distance: np.ndarray,
    config: CameraConfig,
    appearance: Appearance,
    rng: np.random.Generator,
) -> np.ndarray:
    """(H, W, 3) an image before exposure with the rain and snow that fall in front of it.

    Args:
        color: (H, W, 3).
        distance: (H, W) m to what each pixel shows.
        rng: where drops and flakes are.
    """
    result = color
    if appearance.snowfall:
        flakes = _flakes(round(FLAKES * appearance.snowfall), config, rng)
        result = draw(result, distance, flakes, appearance.sky_light)
    if appearance.rainfall:
        streaks = _streaks(round(STREAKS * appearance.rainfall), config, rng)
        result = draw(result, distance, streaks, appearance.horizon * 1.25)
        result = _through_drops(result, round(DROPS * appearance.rainfall), rng)
    return result


def _flakes(count: int, config: CameraConfig, rng: np.random.Generator) -> Particles:
    """Clumps of 1 to 3 cm, blurred by a fall of 1.5 m/s and the drive during the exposure."""
    distance = rng.uniform(NEAREST, FARTHEST, count)
    scale = config.focal_length / distance
    out_of_focus = 1 + 1.2 / distance
    return _place(
        distance,
        config,
        length=scale * 0.012 * rng.uniform(0.2, 1, count),
        slant=scale * 0.02 * rng.normal(0, 1, count),
        radius=scale * rng.uniform(0.007, 0.018, count) * out_of_focus,
        opacity=0.95 / out_of_focus,
        rng=rng,
    )


def _streaks(count: int, config: CameraConfig, rng: np.random.Generator) -> Particles:
    """Drops of 2 to 5 mm that fall at 8 m/s during an exposure of 1/60 s, in one wind."""
    distance = rng.uniform(NEAREST, FARTHEST, count)
    scale = config.focal_length / distance
    length = scale * 0.065 * rng.uniform(0.7, 1.3, count)
    wind = rng.normal(0, 0.15)
    return _place(
        distance,
        config,
        length=length,
        slant=length * (wind + rng.normal(0, 0.03, count)),
        radius=scale * rng.uniform(0.003, 0.006, count),
        opacity=np.full(count, 0.55),
        rng=rng,
    )


def _place(
    distance: np.ndarray,
    config: CameraConfig,
    *,
    length: np.ndarray,
    slant: np.ndarray,
    radius: np.ndarray,
    opacity: np.ndarray,
    rng: np.random.Generator,
) -> Particles:
    """Spread particles over the image; those too thin for a pixel become fainter instead."""
    row = rng.uniform(0, config.height, len(distance))
    col = rng.uniform(0, config.width, len(distance))
    faint = np.minimum(radius / SHARPEST, 1)
    return Particles(
        row, col, length, slant, np.maximum(radius, SHARPEST), opacity * faint, distance
    )


def draw(
    color: np.ndarray, distance: np.ndarray, particles: Particles, paint: np.ndarray
) -> np.ndarray:
    """Blend particles over an image where nothing nearer hides them."""
    result = color.copy()
    height, width = distance.shape
    reach = particles.radius + np.hypot(particles.length, particles.slant)
    rows = _window(particles.row, reach, height)
    cols = _window(particles.col, reach, width)
    for index in range(len(particles.row)):
        rows_here = slice(rows[0][index], rows[1][index])
        cols_here = slice(cols[0][index], cols[1][index])
        shape = result[rows_here, cols_here]
        if not shape.size:
            continue
        y = np.arange(rows_here.start, rows_here.stop)[:, None] - particles.row[index]
        x = np.arange(cols_here.start, cols_here.stop)[None] - particles.col[index]
        length, slant = particles.length[index], particles.slant[index]
        along = (y * length + x * slant) / max(length**2 + slant**2, 1e-6)
        along = np.clip(along, -1, 1)
        square = (y - along * length) ** 2 + (x - along * slant) ** 2
        cover = np.clip(1 - square / particles.radius[index] ** 2, 0, 1) * particles.opacity[index]
        cover = cover * (distance[rows_here, cols_here] > particles.distance[index])
        shape += (paint - shape) * cover[:, :, None]
    return result


def _window(center: np.ndarray, reach: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.clip(np.floor(center - reach), 0, size).astype(int)
    last = np.clip(np.ceil(center + reach) + 1, 0, size).astype(int)
    return first, last


def _through_drops(color: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Drops on the lens: each shows the scene upside down and far out of focus."""
    height, width = color.shape[:2]
    blurred = gaussian_filter(color, (0.035 * height, 0.035 * height, 0), mode="nearest")
    row, col = np.mgrid[:height, :width]
    result = color.copy()
    for _ in range(count):
        center = rng.uniform(0, height), rng.uniform(0, width)
        radius = height * rng.uniform(0.02, 0.075)
        squeezed = rng.uniform(0.8, 1.25)
        y, x = row - center[0], (col - center[1]) * squeezed
        off = np.hypot(y, x) / radius
        inside = off < 1.15
        turned = np.clip(np.rint(center[0] - 2.5 * y[inside]), 0, height - 1).astype(int)
        seen = blurred[turned, col[inside]] * (1.08 - 0.25 * off[inside, None] ** 3)
        cover = 0.9 * np.clip((1.15 - off[inside]) / 0.35, 0, 1)[:, None]
        result[inside] += (seen - result[inside]) * cover
    return result
