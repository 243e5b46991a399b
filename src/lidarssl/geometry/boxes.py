"""3-D boxes: their corners, the points inside, and the same boxes in another frame."""

from __future__ import annotations

import torch
from torch import Tensor

from lidarssl.frame import Boxes

Corner = tuple[float, float, float]

_CORNER_SIGNS = (
    (1.0, 1.0, -1.0),
    (1.0, -1.0, -1.0),
    (-1.0, -1.0, -1.0),
    (-1.0, 1.0, -1.0),
    (1.0, 1.0, 1.0),
    (1.0, -1.0, 1.0),
    (-1.0, -1.0, 1.0),
    (-1.0, 1.0, 1.0),
)


def corners(boxes: Boxes) -> Tensor:
    """Corners of boxes, (B, 8, 3) float32 m.

    Order: the bottom face clockwise seen from above, starting front left, then the top face.
    """
    signs = boxes.size.new_tensor(_CORNER_SIGNS)
    local = signs * boxes.size[:, None, :] / 2
    return _turn(local, boxes.yaw[:, None]) + boxes.center[:, None, :]


def points_in_boxes(points: Tensor, boxes: Boxes, chunk: int = 2**22) -> Tensor:
    """Which points lie in which boxes, borders included, (N, B) bool.

    Args:
        points: (N, 3) m, in the frame of the boxes.
        boxes: B boxes.
        chunk: point-box pairs computed at a time, a bound on memory.
    """
    inside = torch.zeros((len(points), len(boxes.yaw)), dtype=torch.bool, device=points.device)
    rows = max(1, chunk // max(1, len(boxes.yaw)))
    for first in range(0, len(points), rows):
        offset = points[first : first + rows, None, :] - boxes.center
        local = _turn(offset, -boxes.yaw)
        inside[first : first + rows] = (local.abs() <= boxes.size / 2).all(-1)
    return inside


def inside_box(points: Tensor, low: Corner, high: Corner, margin: float = 1e-4) -> Tensor:
    """Which points lie inside an upright box by more than ``margin`` m, (N,) bool."""
    lowest, highest = points.new_tensor(low) + margin, points.new_tensor(high) - margin
    return ((points > lowest) & (points < highest)).all(1)


def transform_boxes(boxes: Boxes, matrix: Tensor) -> Boxes:
    """Boxes of frame b in frame a.

    Args:
        boxes: B boxes in frame b.
        matrix: (4, 4) ``a_from_b``: a rotation about z, a mirroring of x or y, a uniform
            scaling, a translation, and any product of these. Of a slight tilt (two poses on
            uneven ground) the heading's projection onto the xy plane is kept.
    """
    matrix = matrix.to(device=boxes.center.device, dtype=torch.float64)
    linear = matrix[:3, :3]
    center = boxes.center.double() @ linear.T + matrix[:3, 3]
    yaw = boxes.yaw.double()
    heading = torch.stack([torch.cos(yaw), torch.sin(yaw)], 1) @ linear[:2, :2].T
    scale = linear.det().abs() ** (1 / 3)
    return Boxes(
        center=center.to(boxes.center.dtype),
        size=(boxes.size.double() * scale).to(boxes.size.dtype),
        yaw=torch.atan2(heading[:, 1], heading[:, 0]).to(boxes.yaw.dtype),
        label=boxes.label,
    )


def _turn(points: Tensor, yaw: Tensor) -> Tensor:
    """Rotate (..., 3) about z by angles that broadcast against (...)."""
    cos, sin = torch.cos(yaw), torch.sin(yaw)
    x, y, z = points.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], -1)
