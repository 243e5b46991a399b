"""What fog, night, rain and snow change of a scene's light, of its surfaces and of the lidar's air.

The geometry stays, and with it every label. Particles in the image are in ``particles``, the lights
of the night in ``lamps``.

Numbers come from how such weather is defined and measured, rounded: fog is a visibility below some
100 m, which is three times the distance over which contrast falls by 1/e; water has a refractive
index of 1.33; fresh snow reflects nine tenths of the light and little of the infrared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lidarssl.datasets.world.appearance import Appearance, noise, sky_color
from lidarssl.datasets.world.classes import PartTable, Pattern
from lidarssl.datasets.world.config import Weather
from lidarssl.datasets.world.layout import Layout
from lidarssl.datasets.world.tracing import Hits, RayTracer

HORIZON_OF_DAY = 0.83
"""Mean colour of the horizon at brightness 1."""

SNOW_COLOR = np.array([0.90, 0.92, 0.95], np.float32)
FRESNEL_OF_WATER = 0.02
"""Share of the light that a water film reflects at right angles."""

WHEEL_TRACK = 0.75
"""Half the distance between the wheels of a vehicle, m."""


@dataclass(frozen=True)
class Air:
    """What weather does to a lidar.

    Attributes:
        extinction: 1/m; an echo passes the air twice.
        wet: factor on the reflectivity of surfaces, which water film or snow lowers at the
            lidar's wavelength.
        scatter: share of the beams to which drops or flakes return an echo.
        depth: mean distance of those echoes, m.
        brightness: mean intensity of those echoes.
    """

    extinction: float
    wet: float
    scatter: float
    depth: float
    brightness: float


WEAKEST_RETURN = 0.025
"""Intensity below which weather leaves no return that can be told from noise."""


def under(weather: Weather, clear: Appearance, rng: np.random.Generator) -> Appearance:
    """A scene's light and weather drawn anew under ``weather``."""
    if weather == "clear":
        return clear
    level = float(clear.horizon.mean()) / HORIZON_OF_DAY
    return {"fog": _fog, "night": _night, "rain": _rain, "snow": _snow}[weather](clear, level, rng)


def _overcast(
    clear: Appearance, tint: tuple[float, float, float], light: float, clouds: float
) -> Appearance:
    color = light * np.array(tint)
    return replace(
        clear,
        sun_light=np.zeros(3),
        sky_light=color * 1.05,
        zenith=color * 0.96,
        horizon=color,
        clouds=clouds,
    )


def _fog(clear: Appearance, level: float, rng: np.random.Generator) -> Appearance:
    light = level * rng.uniform(0.66, 0.84)
    gray = _overcast(clear, (0.97, 0.99, 1.0), light, clouds=0.0)
    return replace(gray, zenith=gray.horizon, fog_distance=rng.uniform(13, 34))


def _night(clear: Appearance, level: float, rng: np.random.Generator) -> Appearance:
    moon = level * rng.uniform(0.5, 1.0)
    city = level * rng.uniform(0.2, 1.0)
    return replace(
        clear,
        sun_light=np.zeros(3),
        sky_light=moon * np.array([0.095, 0.110, 0.145]),
        zenith=moon * np.array([0.006, 0.008, 0.016]),
        horizon=moon * np.array([0.012, 0.014, 0.022]) + city * np.array([0.030, 0.022, 0.014]),
        clouds=0.1,
        gain=clear.gain * 1.8,
        pixel_noise=clear.pixel_noise + rng.uniform(0.025, 0.045),
        lamps=level,
        lit_windows=rng.uniform(0.08, 0.3),
    )


def _rain(clear: Appearance, level: float, rng: np.random.Generator) -> Appearance:
    light = level * rng.uniform(0.55, 0.72)
    gray = _overcast(clear, (0.95, 0.99, 1.04), light, clouds=0.2)
    return replace(
        gray, fog_distance=rng.uniform(45, 90), wetness=1.0, rainfall=rng.uniform(0.6, 1.0)
    )


def _snow(clear: Appearance, level: float, rng: np.random.Generator) -> Appearance:
    light = level * rng.uniform(0.88, 1.02)
    gray = _overcast(clear, (0.97, 0.99, 1.02), light, clouds=0.05)
    return replace(
        gray,
        fog_distance=rng.uniform(40, 90),
        snow=rng.uniform(0.6, 1.0),
        snowfall=rng.uniform(0.6, 1.0),
    )


def air(weather: Weather, appearance: Appearance) -> Air | None:
    """The air between lidar and scene; None = clear, or night, which changes nothing of it."""
    extinction = 1 / appearance.fog_distance
    if weather == "fog":
        return Air(extinction, wet=0.9, scatter=0.05, depth=2.5, brightness=0.03)
    if weather == "rain":
        return Air(extinction, wet=0.65, scatter=0.015, depth=3.5, brightness=0.05)
    if weather == "snow":
        return Air(extinction, wet=0.7, scatter=0.07, depth=5.0, brightness=0.12)
    return None


def snow_on(
    color: np.ndarray,
    parts: PartTable,
    hits: Hits,
    where: np.ndarray,
    layout: Layout,
    amount: float,
) -> np.ndarray:
    """(R, 3) colour of surfaces with snow on what faces upwards; trodden and driven thin on roads.

    Args:
        color: (R, 3) without snow.
        where: (R, 3) m, world frame.
        amount: 0..1.
    """
    pattern = parts.pattern[hits.part]
    foliage = pattern == Pattern.FOLIAGE
    lying = np.clip((hits.normal[:, 2] - np.where(foliage, 0.0, 0.4)) / 0.4, 0, 1)
    depth = np.full(len(color), 1.3, np.float32)
    depth[foliage] = 0.65
    depth[pattern == Pattern.SLABS] = 0.85
    depth[pattern == Pattern.ROAD] = 0.5
    depth -= 0.45 * _in_wheel_tracks(where, layout) * (pattern == Pattern.ROAD)
    patches = 0.6 * noise(where, np.float32(2.2)) + 0.4 * noise(where, np.float32(0.5))
    share = lying * np.clip(depth * (0.5 + 0.5 * amount) + 0.3 * patches, 0, 1)
    white = SNOW_COLOR * (1 + 0.03 * noise(where, np.float32(0.7)))[:, None]
    return np.asarray(color + (white - color) * share[:, None], np.float32)


def _in_wheel_tracks(where: np.ndarray, layout: Layout) -> np.ndarray:
    """(R,) 0..1, whether points lie where wheels roll along the main street."""
    _, y = layout.to_plan(where[:, 0], where[:, 1])
    from_lane = np.abs(np.abs(y - layout.main.center) - layout.main.lane)
    return np.exp(-(((from_lane - WHEEL_TRACK) / 0.3) ** 2))


def darkened(color: np.ndarray, parts: PartTable, part: np.ndarray, wetness: float) -> np.ndarray:
    """(R, 3) colour of wet surfaces: light that is caught in the water film does not return."""
    ground = np.isin(parts.pattern[part], (Pattern.ROAD, Pattern.SLABS))
    loss = np.where(ground, np.float32(0.4), np.float32(0.15)) * np.float32(wetness)
    return np.asarray(color * (1 - loss)[:, None])


def mirrored(
    lit: np.ndarray,
    tracer: RayTracer,
    parts: PartTable,
    hits: Hits,
    where: np.ndarray,
    directions: np.ndarray,
    appearance: Appearance,
) -> np.ndarray:
    """(R, 3) light from surfaces, with what wet pavement mirrors, more so at grazing angles.

    The share is Schlick's approximation of Fresnel's equations; ripples and grain blur it.

    Args:
        lit: (R, 3) without reflections.
        where, directions: (R, 3) points, and unit view rays towards them, world frame.
    """
    pavement = np.isin(parts.pattern[hits.part], (Pattern.ROAD, Pattern.SLABS))
    rows = np.flatnonzero(pavement & (hits.normal[:, 2] > 0.8))
    normal, ray, start = hits.normal[rows], directions[rows], where[rows]
    ripples = np.stack([noise(start + shift, np.float32(0.35)) for shift in (0, 31)], -1)
    normal = normal + np.c_[0.02 * ripples, np.zeros(len(rows))]
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    toward = np.einsum("ij,ij->i", ray, normal)
    reflected = ray - 2 * toward[:, None] * normal
    seen = tracer.cast(start + 0.02 * hits.normal[rows], reflected)
    color = sky_color(appearance, reflected.astype(np.float32))
    solid = np.flatnonzero(seen.met)
    shaded = parts.color[seen.part[solid]] * (0.62 * appearance.sky_light)
    haze = np.exp(-seen.distance[solid] / appearance.fog_distance)[:, None]
    color[solid] = shaded * haze + appearance.horizon * (1 - haze)
    grazing = (1 - np.clip(-toward, 0, 1)) ** 5
    puddles = np.clip(0.7 + 0.4 * noise(start, np.float32(2.5)), 0.15, 1)
    share = (FRESNEL_OF_WATER + (1 - FRESNEL_OF_WATER) * grazing) * puddles * appearance.wetness
    result = lit.copy()
    result[rows] += (color - lit[rows]) * share[:, None]
    return result
