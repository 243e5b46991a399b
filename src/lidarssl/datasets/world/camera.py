"""The cameras: images and the class of every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidarssl.datasets.world.appearance import (
    Appearance,
    sky_color,
    surface_color,
    window_light,
)
from lidarssl.datasets.world.classes import PartTable, Pattern
from lidarssl.datasets.world.config import CameraConfig
from lidarssl.datasets.world.lamps import Lamps, add_glow, lamp_light
from lidarssl.datasets.world.layout import Layout
from lidarssl.datasets.world.particles import falling
from lidarssl.datasets.world.scene import rotation
from lidarssl.datasets.world.tracing import Hits, RayTracer
from lidarssl.datasets.world.weather import darkened, mirrored, snow_on

AHEAD = 0.5
BELOW = 0.25
"""Where a camera sits relative to the lidar: along its own axis, and down, m."""

EGO_FROM_CAMERA_AXES = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
"""Camera axes (x right, y down, z ahead) in a frame with x ahead, y left, z up."""


@dataclass(frozen=True)
class Image:
    """One exposure.

    Attributes:
        rgb: (H, W, 3) uint8.
        semantic: (H, W) uint8 class of what each pixel shows; 0 = sky.
    """

    rgb: np.ndarray
    semantic: np.ndarray


def intrinsics(config: CameraConfig) -> np.ndarray:
    """(3, 3); pixel centres are at integer coordinates."""
    focal = config.focal_length
    return np.array(
        [
            [focal, 0, config.width / 2 - 0.5],
            [0, focal, config.height * config.horizon - 0.5],
            [0, 0, 1],
        ]
    )


def ego_from_camera(config: CameraConfig, lidar_position: np.ndarray) -> np.ndarray:
    """(4, 4) mounting of a camera beside a lidar at ``lidar_position`` of the ego frame."""
    yaw = np.radians(config.yaw)
    pose = np.eye(4)
    pose[:3, :3] = rotation(yaw) @ EGO_FROM_CAMERA_AXES
    offset = np.array([AHEAD * np.cos(yaw), AHEAD * np.sin(yaw), -BELOW])
    pose[:3, 3] = lidar_position + offset
    return pose


def photograph(
    tracer: RayTracer,
    parts: PartTable,
    layout: Layout,
    world_from_camera: np.ndarray,
    config: CameraConfig,
    appearance: Appearance,
    rng: np.random.Generator,
    lamps: Lamps | None = None,
    particles: np.random.Generator | None = None,
) -> Image:
    """Render one image.

    Args:
        world_from_camera: (4, 4).
        rng: pixel noise.
        lamps: lights beside sun and sky.
        particles: where rain and snow fall; needed if the appearance has any.
    """
    directions = _pixel_rays(config) @ world_from_camera[:3, :3].T.astype(np.float32)
    origin = world_from_camera[:3, 3].astype(np.float32)
    hits = tracer.cast(np.broadcast_to(origin, directions.shape), directions)
    seen = np.flatnonzero(hits.met)
    sky = np.flatnonzero(~hits.met)
    flat = np.empty((len(directions), 3), np.float32)
    flat[sky] = sky_color(appearance, directions[sky])
    surface = Hits(hits.distance[seen], hits.part[seen], hits.normal[seen])
    near = None if lamps is None else lamps.nearest(origin)
    rays = origin, directions[seen], config.focal_length
    lit = _lit_surfaces(tracer, parts, layout, surface, rays, appearance, near)
    haze = np.exp(-surface.distance / appearance.fog_distance)[:, None]
    flat[seen] = lit * haze + appearance.horizon * (1 - haze)
    semantic = np.zeros(len(directions), np.uint8)
    semantic[seen] = parts.semantic[surface.part]
    shape = config.height, config.width
    color, distance = flat.reshape(*shape, 3), hits.distance.reshape(shape)
    if near is not None:
        add_glow(color, near, distance, world_from_camera, intrinsics(config))
    if particles is not None:
        color = falling(color, distance, config, appearance, particles)
    return Image(_develop(color, appearance, rng), semantic.reshape(shape))


def _lit_surfaces(
    tracer: RayTracer,
    parts: PartTable,
    layout: Layout,
    hits: Hits,
    rays: tuple[np.ndarray, np.ndarray, float],
    appearance: Appearance,
    lamps: Lamps | None,
) -> np.ndarray:
    """(R, 3) light that leaves what is seen towards the camera.

    Args:
        rays: (3,) position of the camera, (R, 3) unit directions, focal length in pixels.
    """
    origin, directions, focal_length = rays
    where = origin + hits.distance[:, None] * directions
    pixel_size = hits.distance / np.float32(focal_length)
    pixel_size /= np.maximum(-np.einsum("ij,ij->i", hits.normal, directions), 0.15)
    base = surface_color(parts, hits.part, where, hits.normal, pixel_size, layout)
    if appearance.wetness:
        base = darkened(base, parts, hits.part, appearance.wetness)
    if appearance.snow:
        base = snow_on(base, parts, hits, where, layout, appearance.snow)
    lit = base * _light(tracer, parts, hits, where, appearance)
    if lamps is not None:
        foliage = parts.pattern[hits.part] == Pattern.FOLIAGE
        lit += base * lamp_light(lamps, where, hits.normal, foliage)
    if appearance.lit_windows:
        lit += window_light(where, hits.normal, parts, hits.part, appearance.lit_windows)
    if appearance.wetness:
        lit = mirrored(lit, tracer, parts, hits, where, directions, appearance)
    return np.asarray(lit)


def _pixel_rays(config: CameraConfig) -> np.ndarray:
    """(H * W, 3) float32 unit rays through pixel centres, camera frame."""
    matrix = intrinsics(config)
    col = (np.arange(config.width) - matrix[0, 2]) / matrix[0, 0]
    row = (np.arange(config.height) - matrix[1, 2]) / matrix[1, 1]
    y, x = np.meshgrid(row, col, indexing="ij")
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    return np.asarray(rays / np.linalg.norm(rays, axis=1, keepdims=True), np.float32)


def _light(
    tracer: RayTracer, parts: PartTable, hits: Hits, where: np.ndarray, appearance: Appearance
) -> np.ndarray:
    """(R, 3) light that falls on surface points: sun where unshadowed, and sky."""
    facing = hits.normal @ appearance.sun.astype(np.float32)
    foliage = parts.pattern[hits.part] == Pattern.FOLIAGE
    direct = np.clip(facing, 0, 1)
    direct[foliage] = np.clip(0.25 + 0.55 * facing[foliage], 0.05, 1)
    if appearance.sun_light.any():
        exposed = np.flatnonzero(direct > 0)
        away = where[exposed] + 0.02 * hits.normal[exposed]
        away += np.where(foliage[exposed], np.float32(0.6), 0)[:, None] * appearance.sun
        direct[exposed[tracer.shadowed(away, appearance.sun)]] *= 0.08
    diffuse = 0.62 + 0.38 * hits.normal[:, 2]
    sun, sky = appearance.sun_light.astype(np.float32), appearance.sky_light.astype(np.float32)
    return np.asarray(direct[:, None] * sun + diffuse[:, None] * sky)


def _develop(color: np.ndarray, appearance: Appearance, rng: np.random.Generator) -> np.ndarray:
    """White balance, exposure, soft highlights, sensor noise, 8 bits."""
    exposed = color * appearance.gain.astype(np.float32)
    toned = np.where(exposed < 0.7, exposed, 1 - 0.3 * np.exp(-(exposed - 0.7) / 0.3))
    noisy = toned + rng.normal(0, appearance.pixel_noise, color.shape)
    return np.asarray(np.clip(np.rint(noisy * 255), 0, 255), np.uint8)
