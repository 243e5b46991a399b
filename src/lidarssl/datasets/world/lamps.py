"""The lights of the night: street lamps and the ego vehicle's own, what they light, their glow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidarssl.datasets.world.classes import Semantic
from lidarssl.datasets.world.scene import Scene

LAMP_HEIGHT = 4.5
"""Posts whose arm hangs higher above their foot carry a lamp, m."""

NEAREST = 12
"""Lamps that are taken into account around a camera."""

SODIUM = np.array([1.0, 0.72, 0.38])
LED = np.array([0.92, 0.97, 1.0])
AHEAD, HEIGHT, HALF_WIDTH = 1.9, 0.7, 0.65
"""Where the headlights of the ego vehicle are, ego frame, m; the rear lights as far behind."""


@dataclass(frozen=True)
class Lamps:
    """L sources of light.

    Attributes:
        position: (L, 3) m, world frame.
        axis: (L, 3) unit, where the lamp points.
        color: (L, 3) light at the lamp, on a surface that faces it.
        focus: (L,) exponent of the cosine off the axis.
        reach: (L,) distance at which the light has fallen to a half, m.
        seen: (L,) whether the lamp itself can be in the picture.
    """

    position: np.ndarray
    axis: np.ndarray
    color: np.ndarray
    focus: np.ndarray
    reach: np.ndarray
    seen: np.ndarray

    def nearest(self, where: np.ndarray, count: int = NEAREST) -> Lamps:
        """The ``count`` lamps nearest to a point."""
        distance = np.linalg.norm(self.position - where, axis=1)
        rows = np.sort(np.argsort(distance, kind="stable")[:count])
        return Lamps(*(column[rows] for column in vars(self).values()))


def street_lamps(scene: Scene) -> np.ndarray:
    """(L, 3) m, world frame: the ends of the arms of lamp posts."""
    found = []
    triangles = scene.static
    posts = np.flatnonzero(scene.parts.semantic == Semantic.POLE)
    order = np.argsort(triangles.part, kind="stable")
    starts = np.searchsorted(triangles.part[order], [posts, posts + 1])
    for first, last in starts.T:
        rows = np.unique(triangles.faces[order[first:last]])
        if not len(rows):
            continue
        vertices = triangles.vertices[rows]
        foot = vertices[vertices[:, 2] < vertices[:, 2].min() + 0.1].mean(0)
        arm = vertices[np.linalg.norm(vertices[:, :2] - foot[:2], axis=1) > 0.9]
        if len(arm) and arm[:, 2].max() - foot[2] > LAMP_HEIGHT:
            found.append(arm.mean(0) - (0, 0, 0.1))
    return np.array(found, float).reshape(-1, 3)


def night_lamps(
    posts: np.ndarray, world_from_ego: np.ndarray, brightness: float, rng: np.random.Generator
) -> Lamps:
    """Street lamps at ``posts`` and the lights of the ego vehicle.

    Args:
        posts: (L, 3) m, world frame.
        world_from_ego: (4, 4).
        brightness: of all.
        rng: the colour of the street lamps.
    """
    street = SODIUM + (LED - SODIUM) * (rng.random() < 0.5)
    turn, origin = world_from_ego[:3, :3], world_from_ego[:3, 3]
    own = np.array([(s * AHEAD, y, HEIGHT) for s in (1, -1) for y in (HALF_WIDTH, -HALF_WIDTH)])
    aim = np.array([(1, 0, -0.04)] * 2 + [(-1, 0, -0.1)] * 2)
    aim /= np.linalg.norm(aim, axis=1, keepdims=True)
    count = len(posts)
    white, red = np.array([1.5, 1.45, 1.3]), np.array([0.30, 0.05, 0.04])
    return Lamps(
        position=np.r_[own @ turn.T + origin, posts],
        axis=np.r_[aim @ turn.T, np.tile((0.0, 0.0, -1.0), (count, 1))],
        color=brightness * np.r_[[white, white, red, red], np.tile(1.5 * street, (count, 1))],
        focus=np.r_[14.0, 14.0, 3.0, 3.0, np.full(count, 1.2)],
        reach=np.r_[9.0, 9.0, 4.0, 4.0, np.full(count, 5.0)],
        seen=np.r_[[False] * 4, np.ones(count, bool)],
    )


def lamp_light(
    lamps: Lamps, where: np.ndarray, normal: np.ndarray, foliage: np.ndarray
) -> np.ndarray:
    """(R, 3) light on surface points. Lamps cast no shadows.

    Args:
        where, normal: (R, 3) world frame.
        foliage: (R,) bool; leaves turn every way.
    """
    total = np.zeros((len(where), 3), np.float32)
    for position, axis, color, focus, reach in zip(
        lamps.position, lamps.axis, lamps.color, lamps.focus, lamps.reach, strict=True
    ):
        away = where - position.astype(np.float32)
        distance = np.maximum(np.sqrt(np.einsum("ij,ij->i", away, away)), 0.1)
        cone = np.clip(away @ axis.astype(np.float32) / distance, 0, 1) ** focus
        facing = -np.einsum("ij,ij->i", away, normal) / distance
        # Rough ground sends back more light at grazing angles than the cosine says.
        facing = np.where(foliage, 0.5, np.clip(0.2 + 0.8 * facing, 0, 1) * (facing > 0))
        strength = cone * facing / (1 + (distance / reach) ** 2)
        total += strength[:, None].astype(np.float32) * color.astype(np.float32)
    return total


def add_glow(
    color: np.ndarray,
    lamps: Lamps,
    distance: np.ndarray,
    world_from_camera: np.ndarray,
    intrinsics: np.ndarray,
) -> None:
    """Add the lamps themselves and the halo that lens and air give them, in place.

    Args:
        color: (H, W, 3).
        distance: (H, W) m to what each pixel shows, inf = sky: lamps behind it are hidden.
        world_from_camera: (4, 4).
        intrinsics: (3, 3).
    """
    inside = (lamps.position - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
    height, width = distance.shape
    row, col = np.mgrid[:height, :width].astype(np.float32)
    for place, light in zip(inside[lamps.seen], lamps.color[lamps.seen], strict=True):
        if place[2] < 1:
            continue
        u, v = (intrinsics @ (place / place[2]))[:2]
        at = round(float(v)), round(float(u))
        if not (0 <= at[0] < height and 0 <= at[1] < width):
            continue
        far = float(np.linalg.norm(place))
        if distance[at] < far - 1:
            continue
        size = max(0.2 * intrinsics[0, 0] / far, 0.005 * width)
        square = ((row - v) ** 2 + (col - u) ** 2) / size**2
        halo = 1.2 * np.exp(-square) + 0.25 / (1 + square / 6) ** 1.5
        color += (halo[:, :, None] * light).astype(np.float32)
