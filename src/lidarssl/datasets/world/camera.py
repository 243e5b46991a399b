"""The cameras: images and the class of every pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidarssl.datasets.world.appearance import Appearance, sky_color, surface_color
from lidarssl.datasets.world.classes import PartTable, Pattern
from lidarssl.datasets.world.config import CameraConfig
from lidarssl.datasets.world.layout import Layout
from lidarssl.datasets.world.scene import rotation
from lidarssl.datasets.world.tracing import Hits, RayTracer

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
) -> Image:
    """Render one image.

    Args:
        world_from_camera: (4, 4).
        rng: pixel noise.
    """
    directions = _pixel_rays(config) @ world_from_camera[:3, :3].T.astype(np.float32)
    origin = world_from_camera[:3, 3].astype(np.float32)
    hits = tracer.cast(np.broadcast_to(origin, directions.shape), directions)
    seen = np.flatnonzero(hits.met)
    sky = np.flatnonzero(~hits.met)
    color = np.empty((len(directions), 3), np.float32)
    color[sky] = sky_color(appearance, directions[sky])
    surface = Hits(hits.distance[seen], hits.part[seen], hits.normal[seen])
    where = origin + surface.distance[:, None] * directions[seen]
    pixel_size = surface.distance / np.float32(config.focal_length)
    pixel_size /= np.maximum(-np.einsum("ij,ij->i", surface.normal, directions[seen]), 0.15)
    base = surface_color(parts, surface.part, where, surface.normal, pixel_size, layout)
    lit = base * _light(tracer, parts, surface, where, appearance)
    haze = np.exp(-surface.distance / appearance.fog_distance)[:, None]
    color[seen] = lit * haze + appearance.horizon * (1 - haze)
    semantic = np.zeros(len(directions), np.uint8)
    semantic[seen] = parts.semantic[surface.part]
    shape = config.height, config.width
    return Image(_develop(color, appearance, rng).reshape(*shape, 3), semantic.reshape(shape))


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
