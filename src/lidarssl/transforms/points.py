"""Transforms of the points of a frame.

A change of the lidar frame (rotation, translation, mirroring, scaling) also changes
``camera_from_lidar``, ``pose``, ``boxes`` and ``queries``, so that transformed points still
project onto the pixels they were seen at. After a mirroring or scaling those matrices are no
longer rigid.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Frame, Queries
from lidarssl.geometry.boxes import transform_boxes
from lidarssl.geometry.decimation import Rounding, decimate
from lidarssl.geometry.poses import rotation_about_z, transform_points


def change_lidar_frame(frame: Frame, motion: Tensor) -> Frame:
    """The frame with every point p moved to ``motion`` p.

    Args:
        frame: see there.
        motion: (3, 3) linear or (4, 4) affine, as ``transform_boxes`` allows when the frame has
            boxes.
    """
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[: len(motion), : len(motion)] = motion
    inverse = torch.linalg.inv(matrix)
    return replace(
        frame,
        points=transform_points(frame.points, matrix, torch.float32),
        cameras=tuple(
            replace(camera, camera_from_lidar=camera.camera_from_lidar.double() @ inverse)
            for camera in frame.cameras
        ),
        pose=None if frame.pose is None else frame.pose.double() @ inverse,
        boxes=None if frame.boxes is None else transform_boxes(frame.boxes, matrix),
        queries=None if frame.queries is None else _move_queries(frame.queries, matrix),
    )


def _move_queries(queries: Queries, matrix: Tensor) -> Queries:
    return replace(queries, positions=transform_points(queries.positions, matrix, torch.float32))


class RotateZ:
    """Turn about the vertical by an angle uniform in [low, high) rad."""

    def __init__(self, low: float = 0.0, high: float = 2 * math.pi) -> None:
        _check_range(low, high, "angle")
        self.low, self.high = low, high

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        return change_lidar_frame(frame, rotation_about_z(rng.uniform(self.low, self.high)))


class FlipAxes:
    """x -> -x and, independently, y -> -y, each with probability ``probability``.

    Args:
        probability: of each mirroring.
        axes: ``xy``, or ``x`` to leave y alone.
    """

    def __init__(self, probability: float = 0.5, axes: str = "xy") -> None:
        if axes not in ("x", "xy"):
            raise ConfigError(f"cannot mirror axes '{axes}'", field="axes", remedy="x or xy")
        self.probability, self.axes = probability, axes

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        flip_x, flip_y = rng.random(2) < self.probability
        flip_y = flip_y and self.axes == "xy"
        signs = torch.tensor([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0])
        return change_lidar_frame(frame, torch.diag(signs))


class FlipOne:
    """x -> -x or y -> -y, never both, with probability ``probability``."""

    def __init__(self, probability: float = 2 / 3) -> None:
        self.probability = probability

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        flip, axis = rng.random() < self.probability, int(rng.integers(2))
        signs = torch.ones(3)
        signs[axis] = -1.0 if flip else 1.0
        return change_lidar_frame(frame, torch.diag(signs))


class ScalePoints:
    """Scale all axes by one factor uniform in [low, high)."""

    def __init__(self, low: float = 0.95, high: float = 1.05) -> None:
        check_scale_range(low, high)
        self.low, self.high = low, high

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        factor = rng.uniform(self.low, self.high)
        return change_lidar_frame(frame, torch.eye(3, dtype=torch.float64) * factor)


class CropRange:
    """Keep the points of a ring: min_radius <= sqrt(x^2 + y^2) <= max_radius and z likewise.

    Args:
        min_radius, max_radius: m, horizontal distance.
        min_z, max_z: m.
    """

    def __init__(
        self,
        min_radius: float = 0.0,
        max_radius: float = math.inf,
        min_z: float = -math.inf,
        max_z: float = math.inf,
    ) -> None:
        _check_range(min_radius, max_radius, "radius")
        _check_range(min_z, max_z, "z")
        self.min_radius, self.max_radius = min_radius, max_radius
        self.min_z, self.max_z = min_z, max_z

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        radius = frame.points[:, :2].norm(dim=1)
        z = frame.points[:, 2]
        inside = (radius >= self.min_radius) & (radius <= self.max_radius)
        return frame.select(inside & (z >= self.min_z) & (z <= self.max_z))


class LimitPoints:
    """Keep at most ``count`` points, drawn without replacement, in their order."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ConfigError(f"cannot keep {count} points", field="count")
        self.count = count

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        if len(frame) <= self.count:
            return frame
        kept = torch.zeros(len(frame), dtype=torch.bool)
        kept[torch.from_numpy(rng.choice(len(frame), self.count, replace=False))] = True
        return frame.select(kept)


class Decimate:
    """Keep one point per cell of a grid, the first in the order of the points.

    Args:
        voxel_size: m.
        rounding: see ``lidarssl.geometry.decimation.decimate``.
    """

    def __init__(self, voxel_size: float, rounding: Rounding = "floor") -> None:
        if not 0 < voxel_size < math.inf:
            raise ConfigError(f"voxel size {voxel_size} m", field="voxel_size")
        self.voxel_size, self.rounding = voxel_size, rounding

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        kept = torch.zeros(len(frame), dtype=torch.bool)
        kept[decimate(frame.points, self.voxel_size, self.rounding)] = True
        return frame.select(kept)


class DropUnlabeled:
    """Remove the points of the ignored class, which only labels can tell.

    Raises:
        DataError: the frame has no labels.
    """

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        if frame.semantic is None:
            raise DataError(
                f"frame {frame.id} has no labels, so its unlabelled points are unknown",
                field="semantic",
                remedy="leave drop_unlabeled off",
            )
        return frame.select(frame.semantic > 0)


def check_scale_range(low: float, high: float) -> None:
    """Refuse a range of scales that is empty or reaches 0.

    Raises:
        ConfigError: it is or does.
    """
    _check_range(low, high, "scale")
    if low <= 0:
        raise ConfigError(f"scale {low} is not positive", field="low")


def _check_range(low: float, high: float, name: str) -> None:
    if not low <= high:
        raise ConfigError(f"{name} range [{low}, {high}] is empty", field=name)
