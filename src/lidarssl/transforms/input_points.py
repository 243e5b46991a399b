"""Input values of points that move apart from the points themselves.

Source: the published code of WaffleIron and ScaLR, whose fine-tuning turns the x and y that a
network reads by another angle than the points that it searches neighbours and cells of.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from lidarssl.frame import Frame
from lidarssl.geometry.poses import rotation_about_z
from lidarssl.transforms.points import check_scale_range


class IndependentInputs:
    """Leave in ``frame.input_points`` a copy of the points with a rotation and scale of its own.

    What moves the points afterwards leaves the copy alone.

    Args:
        rotate: turn it about z by a uniform angle.
        scale: range [low, high) of one factor of all axes; None = 1.
    """

    def __init__(self, rotate: bool = True, scale: tuple[float, float] | None = (0.9, 1.1)) -> None:
        if scale is not None:
            check_scale_range(*scale)
        self.rotate, self.scale = rotate, scale

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        linear = torch.eye(3, dtype=torch.float64)
        if self.rotate:
            linear = rotation_about_z(rng.uniform(0, 2 * math.pi))
        if self.scale is not None:
            linear = linear * rng.uniform(*self.scale)
        moved = (frame.points.double() @ linear.T).to(frame.points.dtype)
        return replace(frame, input_points=moved)
