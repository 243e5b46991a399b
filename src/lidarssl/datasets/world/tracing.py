"""Ray casting by Embree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lidarssl.datasets.world.scene import Triangles
from lidarssl.errors import require


@dataclass(frozen=True)
class Hits:
    """What rays met first; R rays.

    Attributes:
        distance: (R,) float32 m, inf where nothing was met.
        part: (R,) int64 row of the ``PartTable``, -1 where nothing was met.
        normal: (R, 3) float32 unit normal of the surface, towards the sensor.
    """

    distance: np.ndarray
    part: np.ndarray
    normal: np.ndarray

    @property
    def met(self) -> np.ndarray:
        return self.part >= 0


class Layer:
    """Triangles ready for ray casting; scenes share the layer of what does not move."""

    def __init__(self, triangles: Triangles) -> None:
        scene = require("embreex.rtcore_scene", "synthetic")
        construction = require("embreex.mesh_construction", "synthetic")
        self.part = triangles.part
        self._scene: Any = scene.EmbreeScene()
        vertices = np.ascontiguousarray(triangles.vertices, np.float32)
        faces = np.ascontiguousarray(triangles.faces, np.int32)
        construction.TriangleMesh(self._scene, vertices, faces)

    def intersect(self, origins: np.ndarray, directions: np.ndarray) -> dict[str, np.ndarray]:
        result: dict[str, np.ndarray] = self._scene.run(
            origins, directions, query="INTERSECT", output=1
        )
        return result

    def blocks(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(R,) whether anything lies along each ray."""
        hit = self._scene.run(origins, directions, query="OCCLUDED")
        return np.asarray(hit) != -1


class RayTracer:
    """Casts rays into several layers at once."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hit of each ray.

        Args:
            origins, directions: (R, 3) m, world frame; directions of unit length.
        """
        origins = np.ascontiguousarray(origins, np.float32)
        directions = np.ascontiguousarray(directions, np.float32)
        distance = np.full(len(origins), np.inf, np.float32)
        part = np.full(len(origins), -1, np.int64)
        normal = np.zeros_like(origins)
        for layer in self.layers:
            found = layer.intersect(origins, directions)
            nearer = np.flatnonzero((found["primID"] >= 0) & (found["tfar"] < distance))
            distance[nearer] = found["tfar"][nearer]
            part[nearer] = layer.part[found["primID"][nearer]]
            normal[nearer] = found["Ng"][nearer]
        length = np.sqrt(np.einsum("ij,ij->i", normal, normal))
        towards = np.where(np.einsum("ij,ij->i", normal, directions) > 0, -1, 1)
        normal *= (towards / np.maximum(length, 1e-20)).astype(np.float32)[:, None]
        return Hits(distance, part, normal)

    def shadowed(self, origins: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """(R,) whether something stands between each point and a far light in ``direction``."""
        origins = np.ascontiguousarray(origins, np.float32)
        rays = np.ascontiguousarray(np.broadcast_to(direction, origins.shape), np.float32)
        blocked = np.zeros(len(origins), bool)
        for layer in self.layers:
            blocked |= layer.blocks(origins, rays)
        return blocked
