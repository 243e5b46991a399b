"""Light, weather and the response of the cameras of one scene; sky, texture, painted detail."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from lidarssl.datasets.world.classes import GLASS, PartTable, Pattern
from lidarssl.datasets.world.config import AppearanceConfig
from lidarssl.datasets.world.layout import Layout

MARK_COLOR = (0.80, 0.80, 0.77)
STOREY = 3.0
BAY = 2.6
SIDEWALK_SLAB = 0.9
WINDOW_LIGHT = np.array([0.95, 0.72, 0.42], np.float32)


@dataclass(frozen=True)
class Appearance:
    """Drawn once per scene from an ``AppearanceConfig``.

    Attributes:
        sun: (3,) unit vector towards the sun, world frame.
        sun_light, sky_light: (3,) RGB of direct and of diffuse light.
        zenith, horizon: (3,) RGB of the sky; the fog has the horizon's colour.
        clouds: 0..1.
        fog_distance: m.
        gain: (3,) white balance times exposure.
        pixel_noise: standard deviation.
        lamps: brightness of street lamps and headlights, 0 = off.
        lit_windows: share of the windows with light behind them.
        wetness: of pavement and walls, 0..1.
        snow: depth of lying snow, 0..1.
        rainfall, snowfall: density of what falls, 0..1.
    """

    sun: np.ndarray
    sun_light: np.ndarray
    sky_light: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    fog_distance: float
    gain: np.ndarray
    pixel_noise: float
    lamps: float = 0.0
    lit_windows: float = 0.0
    wetness: float = 0.0
    snow: float = 0.0
    rainfall: float = 0.0
    snowfall: float = 0.0


def draw_appearance(config: AppearanceConfig, rng: np.random.Generator) -> Appearance:
    """Light and weather of one scene."""
    azimuth = rng.uniform(0, 2 * np.pi)
    elevation = np.radians(rng.uniform(*config.sun_elevation))
    level = np.cos(elevation)
    sun = np.array([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)])
    overcast = rng.random() < config.overcast
    brightness = rng.uniform(*config.brightness)
    ambient = rng.uniform(*config.ambient)
    warmth = np.clip((50 - np.degrees(elevation)) / 50, 0, 1)
    sunny = np.array([1.0, 1 - 0.08 * warmth, 1 - 0.22 * warmth])
    gray = np.array([0.74, 0.77, 0.80])
    blue = np.array([0.30, 0.50, 0.80]) + rng.normal(0, 0.02, 3)
    haze = np.array([0.76, 0.83, 0.90]) * (1 - 0.1 * warmth * np.array([0, 0.5, 1]))
    gain = rng.uniform(*config.exposure) * rng.normal(1, config.white_balance, 3)
    return Appearance(
        sun=sun,
        sun_light=brightness * sunny * (0.0 if overcast else 1.55 * (1 - ambient)),
        sky_light=brightness * np.array([0.92, 0.97, 1.06]) * (1.0 if overcast else ambient + 0.1),
        zenith=brightness * (gray * 0.92 if overcast else blue),
        horizon=brightness * (gray * 1.08 if overcast else haze),
        clouds=0.25 if overcast else float(rng.uniform(0.1, 0.9)),
        fog_distance=rng.uniform(*config.fog_distance),
        gain=gain,
        pixel_noise=config.pixel_noise,
    )


def sky_color(appearance: Appearance, directions: np.ndarray) -> np.ndarray:
    """(R, 3) colour of the sky in unit ``directions``: gradient, clouds, glow of the sun."""
    height = np.clip(directions[:, 2:3], 0, 1)
    color = appearance.horizon + (appearance.zenith - appearance.horizon) * height**0.55
    plane = directions[:, :2] / (height + 0.12)
    cover = noise(np.c_[plane, np.zeros(len(plane))], np.float32(0.9))
    cover += 0.5 * noise(np.c_[plane, np.ones(len(plane))], np.float32(0.3))
    share = appearance.clouds * np.clip(cover, 0, 1)[:, None] * np.clip(height * 6, 0, 1)
    color += (appearance.horizon * 1.08 - color) * share
    glow = np.clip(directions @ appearance.sun, 0, 1)[:, None]
    return np.asarray(color + appearance.sun_light * (0.25 * glow**40 + 0.8 * glow**900))


def surface_color(
    parts: PartTable,
    part: np.ndarray,
    where: np.ndarray,
    normal: np.ndarray,
    pixel_size: np.ndarray,
    layout: Layout,
) -> np.ndarray:
    """Colour of surface points before lighting.

    Args:
        part: (R,) rows of ``parts``.
        where, normal: (R, 3) world frame.
        pixel_size: (R,) m that one pixel covers there; finer detail fades.

    Returns:
        (R, 3) float32.
    """
    color = parts.color[part]
    cell = parts.texture_cell[part]
    strength = parts.texture_strength[part] * 0.5
    coarse = noise(where, cell) * np.clip(cell / (2 * pixel_size), 0, 1)
    fine = noise(where, cell / 3) * np.clip(cell / (6 * pixel_size), 0, 1)
    color = color * (1 + strength * (coarse + 0.7 * fine))[:, None]
    pattern = parts.pattern[part]
    _paint_roads(color, np.flatnonzero(pattern == Pattern.ROAD), where, pixel_size, layout)
    _paint_slabs(color, np.flatnonzero(pattern == Pattern.SLABS), where, pixel_size, layout)
    _paint_windows(color, where, normal, parts, part)
    return np.clip(color, 0, 1.2)


def _paint_roads(
    color: np.ndarray, rows: np.ndarray, where: np.ndarray, pixel_size: np.ndarray, layout: Layout
) -> None:
    x, y = layout.to_plan(where[rows, 0], where[rows, 1])
    marked = rows[layout.is_marked(x, y)]
    worn = 0.75 + 0.25 * noise(where[marked], np.float32(0.25))
    share = np.clip(worn * 0.2 / np.maximum(pixel_size[marked], 0.2), 0, 1)[:, None]
    color[marked] += (np.array(MARK_COLOR, np.float32) - color[marked]) * share
    gutter = rows[layout.edge_distance(x, y) > -0.12]
    color[gutter] *= 0.8


def _paint_slabs(
    color: np.ndarray, rows: np.ndarray, where: np.ndarray, pixel_size: np.ndarray, layout: Layout
) -> None:
    x, y = layout.to_plan(where[rows, 0], where[rows, 1])
    distance = layout.edge_distance(x, y)
    color[rows[distance < 0.16]] *= 1.18
    joint = (np.mod(x, SIDEWALK_SLAB) < 0.05) | (np.mod(y, SIDEWALK_SLAB) < 0.05)
    dark = joint & (distance > 0.16)
    fade = np.clip(0.05 / pixel_size[rows[dark]], 0, 1)
    color[rows[dark]] *= (1 - 0.3 * fade)[:, None]


def _paint_windows(
    color: np.ndarray, where: np.ndarray, normal: np.ndarray, parts: PartTable, part: np.ndarray
) -> None:
    """Rows of glazed windows with pale frames."""
    frame_rows, glass_rows, room = _windows(where, normal, parts, part)
    color[frame_rows] = color[frame_rows] * 0.35 + 0.5
    lit = noise(room * 7.3 + 0.5, np.float32(1.0))[:, None]
    glass = np.array(GLASS, np.float32) * 1.3 + 0.1 * np.clip(lit, -1, 1.5)
    color[glass_rows] = glass + np.array([0.0, 0.015, 0.04], np.float32)


def window_light(
    where: np.ndarray, normal: np.ndarray, parts: PartTable, part: np.ndarray, share: float
) -> np.ndarray:
    """(R, 3) float32 light from behind a ``share`` of the windows; arguments as surface_color."""
    light = np.zeros((len(where), 3), np.float32)
    _, glass_rows, room = _windows(where, normal, parts, part)
    # The noise is about normal: a share of it lies above the quantile.
    lit = noise(room * 11.9 + 0.5, np.float32(1.0)) > NormalDist().inv_cdf(1 - share)
    shade = 0.75 + 0.2 * noise(room * 5.1 + 0.5, np.float32(1.0))
    light[glass_rows[lit]] = np.clip(shade[lit], 0.3, 1.2)[:, None] * WINDOW_LIGHT
    return light


def _windows(
    where: np.ndarray, normal: np.ndarray, parts: PartTable, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of window frames and of glass, and (G, 3) which room is behind the glass.

    One window per bay and storey of a facade.
    """
    rows = np.flatnonzero((parts.pattern[part] == Pattern.FACADE) & (np.abs(normal[:, 2]) < 0.3))
    base, top = parts.base[part[rows]], parts.top[part[rows]]
    flat = normal[rows, :2] / np.maximum(np.linalg.norm(normal[rows, :2], axis=1), 1e-6)[:, None]
    along = (where[rows, 1] * flat[:, 0] - where[rows, 0] * flat[:, 1]) / BAY
    storey = (where[rows, 2] - base) / STOREY
    u, v = np.mod(along, 1) - 0.5, np.mod(storey, 1) - 0.58
    exists = (storey > 0) & ((np.floor(storey) + 0.95) * STOREY < top - base)
    framed = exists & (np.abs(u) < 0.25) & (np.abs(v) < 0.27)
    glazed = framed & (np.abs(u) < 0.22) & (np.abs(v) < 0.24) & (np.abs(u) > 0.015)
    room = np.stack([np.floor(along), np.floor(storey), base], -1)[glazed]
    return rows[framed], rows[glazed], room


@lru_cache
def _noise_table() -> np.ndarray:
    """(64, 64, 64) smooth periodic noise, zero mean, unit variance; a constant of the world."""
    table = np.random.default_rng(20240229).normal(size=(64, 64, 64)).astype(np.float32)
    for axis in range(3):
        for _ in range(6):
            table = table + np.roll(table, 1, axis) + np.roll(table, -1, axis)
    return np.asarray((table - table.mean()) / table.std(), np.float32)


def noise(where: np.ndarray, cell: np.ndarray | np.floating) -> np.ndarray:
    """(R,) smooth noise of about unit variance that varies over ``cell`` m."""
    scale = np.asarray(6.0 / cell, np.float32).reshape(-1, 1)
    index = (where.astype(np.float32) * scale).astype(np.int32) & 63
    return _noise_table()[index[:, 0], index[:, 1], index[:, 2]]
