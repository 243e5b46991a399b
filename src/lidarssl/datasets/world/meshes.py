"""Triangle meshes: primitives, and many scaled, turned and moved copies of one at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lidarssl.errors import require

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Mesh:
    """Indexed triangles.

    Attributes:
        vertices: (V, 3) float64 m.
        faces: (F, 3) int64 rows of ``vertices``.
    """

    vertices: np.ndarray
    faces: np.ndarray


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of the triangles of all, in order."""
    counts = [len(mesh.vertices) for mesh in meshes]
    first = np.cumsum([0, *counts[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, first, strict=True)]),
    )


def copies(
    template: Mesh, center: np.ndarray, size: np.ndarray, yaw: np.ndarray | float = 0.0
) -> Mesh:
    """Copies of ``template``, scaled, then turned about z, then moved.

    Args:
        template: a mesh of about unit size around the origin.
        center, size: (B, 3) m, or (3,) for a single copy.
        yaw: (B,) or one for all, rad.
    """
    center, size = np.atleast_2d(center), np.atleast_2d(size)
    count, vertex_count = max(len(center), len(size)), len(template.vertices)
    vertices = template.vertices[None] * size[:, None]
    turn = np.broadcast_to(np.asarray(yaw, float), (count,))
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    x, y, z = np.moveaxis(np.broadcast_to(vertices, (count, vertex_count, 3)), -1, 0)
    turned = np.stack([cos * x - sin * y, sin * x + cos * y, z], -1) + center[:, None]
    faces = template.faces[None] + (np.arange(count) * vertex_count)[:, None, None]
    return Mesh(turned.reshape(-1, 3), faces.reshape(-1, 3))


def box(center: Vector, size: Vector, yaw: float = 0.0) -> Mesh:
    """One box; ``size`` along its own axes."""
    return copies(unit_box(), np.array(center), np.array(size), yaw)


@lru_cache
def unit_box() -> Mesh:
    return frustum((1.0, 1.0), (1.0, 1.0), -0.5, 0.5)


def frustum(
    lower: tuple[float, float],
    upper: tuple[float, float],
    bottom: float,
    top: float,
    shift: float = 0.0,
) -> Mesh:
    """A box whose top differs from its base in (length, width), moved by ``shift`` along x."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2
    vertices = np.concatenate(
        [
            np.c_[corners * lower, np.full(4, bottom)],
            np.c_[corners * upper + (shift, 0), np.full(4, top)],
        ]
    )
    quads = ((3, 2, 1, 0), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))
    faces = [(a, b, c) for a, b, c, _ in quads] + [(a, c, d) for a, _, c, d in quads]
    return Mesh(vertices, np.array(faces))


@lru_cache
def gable() -> Mesh:
    """A roof over the unit square: ridge along x at height 1."""
    vertices = [(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0), (-1, 0, 2), (1, 0, 2)]
    faces = [(0, 1, 5), (0, 5, 4), (2, 3, 4), (2, 4, 5), (1, 2, 5), (3, 0, 4), (0, 2, 1), (0, 3, 2)]
    return Mesh(np.array(vertices) / 2, np.array(faces))


@lru_cache
def cylinder(sides: int = 8) -> Mesh:
    """Upright, radius 1, z from 0 to 1, closed."""
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = np.c_[np.cos(angle), np.sin(angle)]
    vertices = np.concatenate(
        [np.c_[ring, np.zeros(sides)], np.c_[ring, np.ones(sides)], [(0, 0, 0), (0, 0, 1)]]
    )
    i = np.arange(sides)
    j = (i + 1) % sides
    faces = [
        np.c_[i, j, j + sides],
        np.c_[i, j + sides, i + sides],
        np.c_[j, i, np.full(sides, 2 * sides)],
        np.c_[i + sides, j + sides, np.full(sides, 2 * sides + 1)],
    ]
    return Mesh(vertices, np.concatenate(faces))


@lru_cache
def wheel(sides: int = 10) -> Mesh:
    """Radius 1 about the y axis, width 1, standing on z = 0."""
    upright = cylinder(sides)
    x, y, z = upright.vertices.T
    return Mesh(np.c_[x, z - 0.5, 1 - y], upright.faces)


@lru_cache
def sphere(subdivisions: int) -> Mesh:
    """Radius 1, of 20 * 4**subdivisions triangles."""
    creation = require("trimesh.creation", "synthetic")
    mesh = creation.icosphere(subdivisions=subdivisions)
    return Mesh(np.asarray(mesh.vertices, float), np.asarray(mesh.faces, np.int64))


def blobs(
    center: np.ndarray, radii: np.ndarray, rng: np.random.Generator, subdivisions: int = 2
) -> Mesh:
    """Ellipsoids whose vertices are moved by up to a quarter of the radius: foliage.

    Args:
        center, radii: (B, 3) m.
    """
    ball = sphere(subdivisions)
    scale = rng.uniform(0.75, 1.25, (len(center), len(ball.vertices), 1))
    vertices = center[:, None] + ball.vertices[None] * radii[:, None] * scale
    faces = ball.faces[None] + (np.arange(len(center)) * len(ball.vertices))[:, None, None]
    return Mesh(vertices.reshape(-1, 3), faces.reshape(-1, 3))
