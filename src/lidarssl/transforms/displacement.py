"""A random rigid motion of the scan in the plane, unknown to the network that has to find it.

Source: Zhang et al., "NCLR: Self-supervised pretraining by 2D-3D neural calibration"
(arXiv 2401.12452) and its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.frame import Frame
from lidarssl.geometry.poses import planar_motion
from lidarssl.transforms.points import change_lidar_frame


@dataclass(frozen=True)
class Displacement:
    """How far a scan is moved: p -> Rz (p + t), t in the xy plane.

    Attributes:
        spread: m, standard deviation of the normal distribution of each axis of t.
        limit: m, each axis of t is clipped to [-limit, limit].
        max_angle: degrees; the angle of Rz is uniform in [-max_angle, max_angle).

    Raises:
        ConfigError: a value is negative or not finite, or the angle is beyond 180 degrees.
    """

    spread: float = 4.0
    limit: float = 15.0
    max_angle: float = 180.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0 <= value < math.inf:
                raise ConfigError(
                    f"displacement {item.name} {value}",
                    field=item.name,
                    remedy="a finite number from 0, which is no motion",
                )
        if self.max_angle > 180:
            raise ConfigError(
                f"displacement by up to {self.max_angle} degrees",
                field="max_angle",
                remedy="180 is every direction",
            )

    def draw(self, rng: np.random.Generator) -> Tensor:
        """A motion ``displaced_from_lidar``, (4, 4) float64."""
        step = np.clip(rng.normal(0.0, self.spread, 2), -self.limit, self.limit)
        angle = rng.uniform(-self.max_angle, self.max_angle)
        return planar_motion(step.tolist(), math.radians(angle))


def displace(frame: Frame, motion: Tensor) -> Frame:
    """The frame in displaced coordinates; its points still project to the same pixels.

    Args:
        frame: see there.
        motion: (4, 4) ``displaced_from_lidar``, rigid.
    """
    return change_lidar_frame(frame, motion)


class Displace:
    """Move the scan by a motion drawn from ``displacement``; calibration and pose follow."""

    def __init__(self, displacement: Displacement | None = None) -> None:
        self.displacement = Displacement() if displacement is None else displacement

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        return displace(frame, self.displacement.draw(rng))
