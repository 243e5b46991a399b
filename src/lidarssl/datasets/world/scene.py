"""A scene: static triangles, agents that move, the drive of the ego vehicle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidarssl.datasets.world.classes import PartTable, Semantic
from lidarssl.datasets.world.ground import Ground
from lidarssl.datasets.world.layout import Layout, Street
from lidarssl.datasets.world.objects import Model

BOX_MARGIN = 0.06
"""How far a box reaches beyond the surface of its object: covers the lidar's range noise, m."""


@dataclass(frozen=True)
class Triangles:
    """Triangles of the world.

    Attributes:
        vertices: (V, 3) float32 m.
        faces: (F, 3) int32.
        part: (F,) int32 row of the scene's ``PartTable``.
    """

    vertices: np.ndarray
    faces: np.ndarray
    part: np.ndarray


@dataclass(frozen=True)
class Agent:
    """A vehicle or person on a street.

    Attributes:
        model: its shape.
        street: where it moves.
        along, left: place on the street at time 0, m.
        turn: heading relative to the street, rad.
        speed: m/s in its heading; 0 = parked, standing.
        first_part: row of its first piece in the ``PartTable``.
    """

    model: Model
    street: Street
    along: float
    left: float
    turn: float
    speed: float
    first_part: int

    def plan(self, time: float) -> tuple[float, float]:
        """Plan coordinates; what leaves the street at one end enters at the other."""
        reach = self.street.half_length
        moved = self.along + np.cos(self.turn) * self.speed * time
        along = np.mod(moved + reach, 2 * reach) - reach
        x, y = self.street.plan(np.array(along), np.array(self.left))
        return float(x), float(y)


@dataclass(frozen=True)
class Box3D:
    """A box in the world frame.

    Attributes:
        semantic, instance: labels.
        center: (3,) m.
        size: (3,) length, width, height, m.
        yaw: rad, counter-clockwise.
    """

    semantic: Semantic
    instance: int
    center: np.ndarray
    size: np.ndarray
    yaw: float


@dataclass(frozen=True)
class Drive:
    """The ego vehicle's path: along the main street's right lane at constant speed.

    Attributes:
        start: plan x at time 0, m.
        left: offset from the street's axis, m.
        speed: m/s.
        yaw, pitch, roll: constant attitude on top of the street's heading, rad.
    """

    start: float
    left: float
    speed: float
    yaw: float
    pitch: float
    roll: float


@dataclass(frozen=True)
class Scene:
    """Everything the sensors can see."""

    layout: Layout
    ground: Ground
    static: Triangles
    agents: tuple[Agent, ...]
    parts: PartTable
    drive: Drive

    def world_from_ego(self, time: float) -> np.ndarray:
        """(4, 4) pose; ego frame x ahead, y left, z up, origin on the ground below the lidar."""
        x = self.drive.start + self.drive.speed * time
        y = self.layout.main.center + self.drive.left
        world_x, world_y = self.layout.to_world(np.array(x), np.array(y))
        yaw = float(self.layout.heading(np.array(x))) + self.drive.yaw
        pose = np.eye(4)
        pose[:3, :3] = rotation(yaw, self.drive.pitch, self.drive.roll)
        pose[:3, 3] = world_x, world_y, self.ground.height(x, y)
        return pose

    def moving(self, time: float) -> Triangles:
        """Triangles of the agents that move, at ``time``."""
        moving = [agent for agent in self.agents if agent.speed > 0]
        return join([self.place(agent, time) for agent in moving])

    def place(self, agent: Agent, time: float) -> Triangles:
        """An agent's triangles in the world, following the slope of the ground."""
        x, y, yaw = self._where(agent, time)
        ground = self._ground_plane(agent.model, x, y, yaw)
        whole = agent.model.whole
        return Triangles(
            _stand(whole.vertices, x, y, yaw, ground).astype(np.float32),
            whole.faces.astype(np.int32),
            agent.first_part + agent.model.piece_of_face,
        )

    def boxes(self, time: float) -> list[Box3D]:
        """Upright boxes of all agents at ``time``."""
        return [self._box(agent, time) for agent in self.agents]

    def _where(self, agent: Agent, time: float) -> tuple[float, float, float]:
        plan_x, plan_y = agent.plan(time)
        x, y = self.layout.to_world(np.array(plan_x), np.array(plan_y))
        bend = float(self.layout.heading(np.array(plan_x)))
        return float(x), float(y), agent.street.heading + agent.turn + bend

    def _ground_plane(self, model: Model, x: float, y: float, yaw: float) -> np.ndarray:
        """(3,) height and slope ahead and to the left of the ground under a model."""
        low, high = model.bounds()
        half_length, half_width = (high - low)[:2] / 2 * 0.7
        ahead = np.array([half_length, -half_length, 0, 0])
        left = np.array([0, 0, half_width, -half_width])
        world_x = x + np.cos(yaw) * ahead - np.sin(yaw) * left
        world_y = y + np.sin(yaw) * ahead + np.cos(yaw) * left
        front, back, port, starboard = self.ground.height(*self.layout.to_plan(world_x, world_y))
        height = (front + back + port + starboard) / 4
        slope = (front - back) / (2 * half_length), (port - starboard) / (2 * half_width)
        return np.array([height, *slope])

    def _box(self, agent: Agent, time: float) -> Box3D:
        x, y, yaw = self._where(agent, time)
        plane = self._ground_plane(agent.model, x, y, yaw)
        local = _stand(agent.model.whole.vertices, 0, 0, 0, plane)
        low, high = local.min(0), local.max(0)
        middle = ((low + high) / 2)[None]
        center = _stand(middle, x, y, yaw, np.zeros(3))[0]
        semantic, instance = agent.model.semantic, agent.model.instance
        return Box3D(semantic, instance, center, high - low + 2 * BOX_MARGIN, yaw)


def _stand(local: np.ndarray, x: float, y: float, yaw: float, plane: np.ndarray) -> np.ndarray:
    """Turn and move vertices to their place; lift each by the ground plane below it."""
    height, ahead, left = plane
    cos, sin = np.cos(yaw), np.sin(yaw)
    placed = np.empty_like(local)
    placed[:, 0] = cos * local[:, 0] - sin * local[:, 1] + x
    placed[:, 1] = sin * local[:, 0] + cos * local[:, 1] + y
    placed[:, 2] = local[:, 2] + height + ahead * local[:, 0] + left * local[:, 1]
    return placed


def join(parts: list[Triangles]) -> Triangles:
    """Triangles of all ``parts``, in order."""
    if not parts:
        empty = np.zeros((0, 3))
        return Triangles(empty.astype(np.float32), empty.astype(np.int32), np.zeros(0, np.int32))
    first = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]], dtype=np.int32)
    return Triangles(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, first, strict=True)]),
        np.concatenate([part.part for part in parts]),
    )


def rotation(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """(3, 3) turn about z, then the new y (nose down for positive pitch), then the new x."""
    cz, sz, cy, sy = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cx, sx = np.cos(roll), np.sin(roll)
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    return np.asarray(about_z @ about_y @ about_x)
