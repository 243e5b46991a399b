"""The lidar: one turn, with range noise, intensity and lost returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lidarssl.datasets.world.classes import PartTable, Pattern, Semantic
from lidarssl.datasets.world.config import LidarConfig
from lidarssl.datasets.world.layout import Layout
from lidarssl.datasets.world.tracing import Hits, RayTracer
from lidarssl.datasets.world.weather import WEAKEST_RETURN, Air

MARK_REFLECTIVITY = 0.55
"""Of road paint."""

NEAREST_ECHO = 0.8
"""Distance below which the lidar is blind to what floats in the air, m."""


@dataclass(frozen=True)
class Sweep:
    """Returns of one turn, N points, firing after firing.

    Attributes:
        points: (N, 3) float64 m, lidar frame x ahead, y left, z up.
        intensity: (N,) float64 in [0, 1].
        ring: (N,) int64, 0 = lowest beam.
        semantic, instance: (N,) int64.
    """

    points: np.ndarray
    intensity: np.ndarray
    ring: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray

    def take(self, rows: np.ndarray) -> Sweep:
        """The points of a mask or of row numbers."""
        return Sweep(*(column[rows] for column in vars(self).values()))

    def joined(self, other: Sweep) -> Sweep:
        """These points, then those of another sweep."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Sweep(*(np.concatenate(pair) for pair in pairs))


def scan(
    tracer: RayTracer,
    parts: PartTable,
    layout: Layout,
    world_from_lidar: np.ndarray,
    config: LidarConfig,
    rng: np.random.Generator,
    air: Air | None = None,
    air_rng: np.random.Generator | None = None,
) -> Sweep:
    """One turn of the lidar.

    Args:
        world_from_lidar: (4, 4).
        rng: azimuth offset, noise and drop-out.
        air: fog, rain or snow; the same ``rng`` then gives a part of the returns in clear air, and
            echoes of what floats in it.
        air_rng: where that floats; needed with ``air``.
    """
    directions, ring = beams = _beams(config, rng)
    world_directions = directions @ world_from_lidar[:3, :3].T
    origins = np.broadcast_to(world_from_lidar[:3, 3], directions.shape)
    hits = tracer.cast(origins, world_directions)
    seen = np.flatnonzero(hits.met & (hits.distance < config.max_range))
    hits = Hits(hits.distance[seen], hits.part[seen], hits.normal[seen])
    directions, world_directions, ring = directions[seen], world_directions[seen], ring[seen]
    distance = hits.distance.astype(float)
    where = origins[seen] + distance[:, None] * world_directions
    intensity = _intensity(hits, where, world_directions, parts, layout, config, rng)
    kept = rng.random(len(seen)) >= _loss(intensity, distance, config)
    semantic = parts.semantic[hits.part]
    foliage = rng.exponential(config.foliage_depth, len(seen)) * (semantic == Semantic.VEGETATION)
    distance = distance + foliage + rng.normal(0, config.range_noise, len(seen))
    points = directions * distance[:, None]
    sweep = Sweep(points, intensity, ring, semantic, parts.instance[hits.part])
    if air is None or air_rng is None:
        return sweep.take(kept)
    return _through_air(sweep, distance, seen, kept, beams, config, air, air_rng)


def _through_air(
    clear: Sweep,
    distance: np.ndarray,
    beam: np.ndarray,
    kept: np.ndarray,
    beams: tuple[np.ndarray, np.ndarray],
    config: LidarConfig,
    air: Air,
    rng: np.random.Generator,
) -> Sweep:
    """What is left of a sweep in fog, rain or snow, and the echoes of drops and flakes.

    A beam gives one return, that of what it meets first. Echoes of the air have class 0.

    Args:
        clear: all returns that the surfaces would give.
        distance, beam, kept: (N,) m; row of ``beams``; whether clear air lets the return through.
        beams: unit directions (R, 3), and rings.
    """
    directions, ring = beams
    weakened = clear.intensity * air.wet * np.exp(-2 * air.extinction * distance)
    met = np.full(len(directions), config.max_range)
    met[beam] = distance
    depth = NEAREST_ECHO + rng.exponential(air.depth, len(directions))
    echo = np.flatnonzero((rng.random(len(directions)) < air.scatter) & (depth < met))
    kept = kept & (weakened >= WEAKEST_RETURN) & ~np.isin(beam, echo)
    strength = np.clip(rng.exponential(air.brightness, len(echo)) + WEAKEST_RETURN, 0, 1)
    nothing = np.zeros(len(echo), np.int64)
    points = directions[echo] * depth[echo, None]
    floating = Sweep(points, strength, ring[echo], nothing, nothing)
    surfaces = replace(clear, intensity=weakened).take(kept)
    order = np.argsort(np.r_[beam[kept], echo], kind="stable")
    return surfaces.joined(floating).take(order)


def _beams(config: LidarConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Unit directions (R, 3) in the lidar frame, clockwise from behind, and their beams."""
    elevation = np.radians(np.linspace(*config.elevation, config.beams))
    steps = np.arange(config.azimuth_steps) + rng.random()
    azimuth = np.pi - 2 * np.pi * steps / config.azimuth_steps
    azimuth, elevation = np.meshgrid(azimuth, elevation, indexing="ij")
    level = np.cos(elevation)
    directions = np.stack([level * np.cos(azimuth), level * np.sin(azimuth), np.sin(elevation)], -1)
    ring = np.tile(np.arange(config.beams), config.azimuth_steps)
    return directions.reshape(-1, 3), ring


def _intensity(
    hits: Hits,
    where: np.ndarray,
    directions: np.ndarray,
    parts: PartTable,
    layout: Layout,
    config: LidarConfig,
    rng: np.random.Generator,
) -> np.ndarray:
    """Reflectivity x incidence x attenuation x speckle, (R,) in [0, 1]."""
    reflectivity = parts.reflectivity[hits.part].astype(float)
    road = np.flatnonzero(parts.pattern[hits.part] == Pattern.ROAD)
    marked = road[layout.is_marked(*layout.to_plan(where[road, 0], where[road, 1]))]
    reflectivity[marked] = MARK_REFLECTIVITY
    incidence = np.abs(np.einsum("ij,ij->i", hits.normal, directions))
    strength = reflectivity * (0.35 + 0.65 * incidence)
    strength *= np.exp(-hits.distance / config.attenuation)
    strength *= rng.lognormal(0, config.intensity_spread, len(strength))
    return np.clip(strength, 0, 1)


def _loss(intensity: np.ndarray, distance: np.ndarray, config: LidarConfig) -> np.ndarray:
    """Probability that a return is lost, (R,)."""
    weakness = 1 - np.clip(intensity / config.weak_intensity, 0, 1)
    far = config.far_dropout * (distance > config.far)
    return np.asarray(config.dropout + config.weak_dropout * weakness + far)
