"""Things that line a street: buildings, fences, hedges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lidarssl.datasets.world.classes import ROOF_COLORS, Semantic, draw_color, draw_part
from lidarssl.datasets.world.meshes import Mesh, blobs, box, copies, gable, unit_box
from lidarssl.datasets.world.objects import Model

FOUNDATION = 2.5
Line = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
"""Distances along a line -> world x, y, z and heading there."""


def building(
    rng: np.random.Generator, length: float, depth: float, height: float, ground: float
) -> Model:
    """A house around the origin, its front towards -y.

    Args:
        length, depth, height: m; the foundation reaches below z = 0.
        ground: world height of z = 0, where the storeys start.
    """
    part = replace(draw_part(Semantic.BUILDING, rng), base=ground, top=ground + height)
    tall = height + FOUNDATION
    pieces = [(box((0, 0, height - tall / 2), (length, depth, tall)), part)]
    roof = part.painted(draw_color(ROOF_COLORS, rng, 0.04))
    if height < 9 and rng.random() < 0.65:
        size = np.array([length + 0.5, depth + 0.6, depth * rng.uniform(0.25, 0.5)])
        pieces.append((copies(gable(), np.array([0, 0, height]), size), roof))
    else:
        edge = box((0, 0, height + 0.1), (length + 0.24, depth + 0.24, 0.35))
        pieces.append((edge, roof))
    if rng.random() < 0.4:
        porch = rng.uniform(1.5, 2.5), rng.uniform(0.8, 1.4), rng.uniform(2.3, 2.8)
        center = (rng.uniform(-0.3, 0.3) * length, -depth / 2 - porch[1] / 2, porch[2] / 2 - 0.5)
        plain = part.painted(part.color)
        pieces.append((box(center, (porch[0], porch[1], porch[2] + 1.0)), plain))
    return Model(tuple(pieces))


def fence(rng: np.random.Generator, line: Line, start: float, stop: float) -> Model:
    """A fence along ``line``: 1 m panels, or pickets with two rails."""
    part = draw_part(Semantic.FENCE, rng)
    height = rng.uniform(0.8, 2.0)
    panels = np.arange(start + 0.5, stop, 1.0)
    if len(panels) == 0:
        return Model(())
    if rng.random() < 0.5:
        return Model(
            ((_upright(line, panels, (1.02, 0.08, height + 0.3), height / 2 - 0.15), part),)
        )
    pickets = np.arange(start, stop, 0.33)
    posts = _upright(line, pickets, (0.16, 0.05, height + 0.3), height / 2 - 0.15)
    low = _upright(line, panels, (1.02, 0.06, 0.1), height * 0.3)
    high = _upright(line, panels, (1.02, 0.06, 0.1), height * 0.8)
    return Model(((posts, part), (low, part), (high, part)))


def _upright(line: Line, along: np.ndarray, size: tuple[float, float, float], z: float) -> Mesh:
    world_x, world_y, ground, heading = line(along)
    return copies(unit_box(), np.c_[world_x, world_y, ground + z], np.array(size), heading)


def hedge(rng: np.random.Generator, line: Line, start: float, stop: float) -> Model:
    """A row of bushes grown together, as high and wide as a fence."""
    along = np.arange(start + 0.5, stop, 1.1)
    if len(along) == 0:
        return Model(())
    height = rng.uniform(0.6, 2.0)
    world_x, world_y, ground, heading = line(along)
    center = np.c_[world_x, world_y, ground + 0.45 * height]
    lengthwise, across = np.abs(np.cos(heading)), np.abs(np.sin(heading))
    high = np.full(len(along), 0.6 * height)
    radii = np.c_[0.45 + 0.4 * lengthwise, 0.45 + 0.4 * across, high]
    part = draw_part(Semantic.VEGETATION, rng)
    return Model(((blobs(center, radii, rng, 1), part),))
