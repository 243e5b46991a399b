"""The ground: a height field whose grid lines follow kerbs, so that class borders are exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lidarssl.datasets.world.classes import Semantic
from lidarssl.datasets.world.layout import REACH, Layout, Street
from lidarssl.datasets.world.meshes import Mesh

CELL = 0.5
KERB_WIDTH = 0.03
SKIRT = np.array([4.0, 10.0, 20.0, 38.0, 70.0, 130.0])
"""Grid lines beyond the detailed square, so that cameras see land up to the horizon."""


@dataclass(frozen=True)
class Ground:
    """A height field over the plan.

    Attributes:
        x, y: (X,), (Y,) ascending grid lines, m.
        z: (X, Y) heights of the grid points, m.
        semantic: (X - 1, Y - 1) class of each cell.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    semantic: np.ndarray

    def height(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """Height at plan coordinates, linear between the grid points, m."""
        x = np.clip(x, self.x[0], self.x[-1])
        y = np.clip(y, self.y[0], self.y[-1])
        i = np.clip(np.searchsorted(self.x, x, "right") - 1, 0, len(self.x) - 2)
        j = np.clip(np.searchsorted(self.y, y, "right") - 1, 0, len(self.y) - 2)
        u = (x - self.x[i]) / (self.x[i + 1] - self.x[i])
        v = (y - self.y[j]) / (self.y[j + 1] - self.y[j])
        z = self.z
        low = (1 - u) * z[i, j] + u * z[i + 1, j]
        high = (1 - u) * z[i, j + 1] + u * z[i + 1, j + 1]
        return np.asarray((1 - v) * low + v * high)

    def mesh(self, layout: Layout) -> tuple[Mesh, np.ndarray]:
        """Triangles in the world and the (F,) class of each."""
        grid_x, grid_y = np.meshgrid(self.x, self.y, indexing="ij")
        world_x, world_y = layout.to_world(grid_x, grid_y)
        vertices = np.stack([world_x, world_y, self.z], -1).reshape(-1, 3)
        columns = len(self.y)
        first = (np.arange(len(self.x) - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
        lower = np.c_[first, first + columns, first + columns + 1]
        upper = np.c_[first, first + columns + 1, first + 1]
        faces = np.concatenate([lower, upper])
        return Mesh(vertices, faces), np.tile(self.semantic.ravel(), 2)


def build_ground(layout: Layout, rng: np.random.Generator) -> Ground:
    """Slope, waves, kerbs, banks and rough terrain for a plan."""
    kerb_lines_x = [] if layout.cross is None else _kerbs(layout.cross, layout.sidewalk)
    x = _grid_lines(layout.half_length, kerb_lines_x)
    y = _grid_lines(REACH, _kerbs(layout.main, layout.sidewalk))
    distance = layout.edge_distance(x[:, None], y[None, :])
    on_terrain = distance > layout.sidewalk + 1e-6
    z = _elevation(x[:, None], y[None, :], rng)
    z = z + rng.uniform(0.06, 0.18) * (distance > KERB_WIDTH / 2)
    if rng.random() < 0.6:
        z = z + rng.uniform(-0.5, 2) * np.clip((distance - layout.sidewalk) / 6, 0, 1)
    z = z + rng.uniform(0.02, 0.1) * rng.uniform(-1, 1, z.shape) * on_terrain
    middle = layout.edge_distance(
        (x[:-1, None] + x[1:, None]) / 2, (y[None, :-1] + y[None, 1:]) / 2
    )
    semantic = np.select(
        [middle < 0, middle < layout.sidewalk], [Semantic.ROAD, Semantic.SIDEWALK], Semantic.TERRAIN
    )
    return Ground(x, y, z, semantic)


def _kerbs(street: Street, sidewalk: float) -> list[float]:
    """Foot and top of both kerbs and the far edges of both sidewalks."""
    offsets = street.width / 2 + np.array([0.0, KERB_WIDTH, sidewalk])
    return [float(street.center + side * offset) for side in (-1, 1) for offset in offsets]


def _grid_lines(half: float, fixed: Iterable[float]) -> np.ndarray:
    """Even lines over [-half, half] and the skirt; lines close to a ``fixed`` one give way."""
    even = np.arange(-half, half + CELL / 2, CELL)
    lines = np.concatenate([-half - SKIRT, even, half + SKIRT])
    kept = np.array(list(fixed), float)
    if len(kept):
        lines = lines[np.abs(lines[:, None] - kept).min(1) > CELL / 4]
    return np.sort(np.concatenate([lines, kept]))


def _elevation(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    slope = rng.uniform(-0.04, 0.04, 2)
    z = slope[0] * x + slope[1] * y
    for _ in range(3):
        direction, phase = rng.uniform(0, 2 * np.pi, 2)
        wave_number = 2 * np.pi / rng.uniform(25, 80)
        along = np.cos(direction) * x + np.sin(direction) * y
        z = z + rng.uniform(0.1, 0.5) * np.sin(wave_number * along + phase)
    return np.asarray(z)
