"""Transforms that leave points out before a network sees them, as WaffleIron and ScaLR do.

Source: Puy et al., "Using a Waffle Iron for Automotive Point Cloud Semantic Segmentation",
ICCV 2023, and "Three Pillars improving Vision Foundation Model Distillation for Lidar",
CVPR 2024, with their code.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.frame import Frame
from lidarssl.geometry.boxes import Corner, inside_box
from lidarssl.geometry.grouping import group_rows
from lidarssl.geometry.voxels import voxel_keys


def random_of_each_voxel(points: Tensor, voxel_size: float, order: Tensor) -> Tensor:
    """One point per occupied voxel, the first in a given order.

    Args:
        points: (N, 3) m.
        voxel_size: m.
        order: (N,) int64, a permutation.

    Returns:
        (M,) int64 rows of ``points``, sorted by voxel.
    """
    keys = voxel_keys(points, "waffleiron", voxel_size).index_select(0, order)
    return order.index_select(0, group_rows(keys).first)


def nearest_to(points: Tensor, center: int, count: int) -> Tensor:
    """The ``count`` points nearest to point ``center``, (min(count, N),) int64, nearest first."""
    distance = (points - points[center]).square().sum(1)
    return distance.argsort()[:count]


class Thin:
    """Keep one random point of every voxel, and say so in ``frame.thinned_to``.

    Args:
        voxel_size: m; voxels start at the smallest coordinates of the scan.
    """

    def __init__(self, voxel_size: float = 0.1) -> None:
        if not 0 < voxel_size < math.inf:
            raise ConfigError(f"voxel size {voxel_size} m", field="voxel_size")
        self.voxel_size = voxel_size

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        order = torch.from_numpy(rng.permutation(len(frame)))
        kept = random_of_each_voxel(frame.points, self.voxel_size, order)
        return replace(_select(frame, kept), thinned_to=self.voxel_size)


class KeepNearest:
    """Keep the ``count`` points nearest to a random point."""

    def __init__(self, count: int = 20_000) -> None:
        if count < 1:
            raise ConfigError(f"cannot keep {count} points", field="count")
        self.count = count

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        if len(frame) <= self.count:
            return frame
        center = int(rng.integers(len(frame)))
        return _select(frame, nearest_to(frame.points, center, self.count))


class CropBox:
    """Keep the points inside a box.

    Args:
        low, high: corners, m.
        margin: m, points this close to the border are outside.
    """

    def __init__(self, low: Corner, high: Corner, margin: float = 1e-4) -> None:
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise ConfigError(f"box from {low} to {high} is empty", field="low, high")
        self.low, self.high, self.margin = low, high, margin

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        return frame.select(inside_box(frame.points, self.low, self.high, self.margin))


class CropCylinder:
    """Keep the points inside an upright cylinder around the sensor, its border included.

    Args:
        radius: m, horizontal.
        low, high: m, lowest and highest z.
    """

    def __init__(self, radius: float, low: float, high: float) -> None:
        if not (radius > 0 and low < high):
            raise ConfigError(
                f"a cylinder of radius {radius} m from {low} to {high} m is empty",
                field="cylinder",
                remedy="give radius, lowest and highest z, e.g. [51.2, -5, 3]",
            )
        self.radius, self.low, self.high = radius, low, high

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        z = frame.points[:, 2]
        near = frame.points[:, :2].square().sum(1) <= self.radius**2
        return frame.select(near & (z >= self.low) & (z <= self.high))


def _select(frame: Frame, rows: Tensor) -> Frame:
    return frame.select(torch.zeros(len(frame), dtype=torch.bool).index_fill_(0, rows, True))
