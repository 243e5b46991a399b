"""Camera poses from three points each: as few as fix a pose.

Source: Grunert 1841, in the form of Haralick et al., "Review and Analysis of Solutions of the
Three Point Perspective Pose Estimation Problem", IJCV 1994.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lidarssl.geometry.pnp import nearest_rotation
from lidarssl.geometry.pose_refinement import Poses

_SMALLEST = 1e-9


def p3p(points: Tensor, image: Tensor) -> Poses:
    """The poses from which three points are seen where they are, up to four of each triple.

    Args:
        points: (B, 3, 3) float64 m, one point a row.
        image: (B, 3, 2) float64 normalised image coordinates.

    Returns:
        4 B poses, those of a triple in succession. Roots that are complex are replaced by their
        real part, and points on a line have no pose: what comes out must be checked against
        other points. Everything is finite.
    """
    ray = torch.cat([image, torch.ones_like(image[..., :1])], -1)
    ray = ray / torch.linalg.vector_norm(ray, dim=-1, keepdim=True)
    cos_a, cos_b, cos_c = ((ray[:, i] * ray[:, j]).sum(-1) for i, j in ((1, 2), (0, 2), (0, 1)))
    square = [(points[:, i] - points[:, j]).square().sum(-1) for i, j in ((1, 2), (0, 2), (0, 1))]
    a, c = (side / square[1].clamp(min=_SMALLEST) for side in (square[0], square[2]))
    v = _real_roots(_quartic(a, c, cos_a, cos_b, cos_c)).clamp(min=_SMALLEST)
    a, c, cos_a, cos_b, cos_c = (part[:, None] for part in (a, c, cos_a, cos_b, cos_c))
    below = 2 * (cos_c - v * cos_a)
    below = torch.where(below.abs() < _SMALLEST, _SMALLEST, below)
    u = ((a - c - 1) * v**2 - 2 * (a - c) * cos_b * v + 1 + a - c) / below
    first = (square[1][:, None] / (1 + v**2 - 2 * v * cos_b).clamp(min=_SMALLEST)).sqrt()
    depth = first[..., None] * torch.stack([torch.ones_like(u), u, v], -1)
    camera = (depth[..., None] * ray[:, None]).flatten(0, 1)
    return _onto(points.repeat_interleave(4, 0), camera.nan_to_num(0.0, 0.0, 0.0))


def _quartic(a: Tensor, c: Tensor, cos_a: Tensor, cos_b: Tensor, cos_c: Tensor) -> Tensor:
    """Coefficients (B, 5), highest first, of the ratio of the third to the first distance.

    ``a`` and ``c`` are squared sides in units of the one between first and third point.
    """
    d, e = a - c, a + c
    return torch.stack(
        [
            (d - 1) ** 2 - 4 * c * cos_a**2,
            4 * (d * (1 - d) * cos_b - (1 - e) * cos_a * cos_c + 2 * c * cos_a**2 * cos_b),
            2 * (
                d**2 - 1 + 2 * d**2 * cos_b**2 + 2 * (1 - c) * cos_a**2
                - 4 * e * cos_a * cos_b * cos_c + 2 * (1 - a) * cos_c**2
            ),
            4 * (-d * (1 + d) * cos_b + 2 * a * cos_c**2 * cos_b - (1 - e) * cos_a * cos_c),
            (1 + d) ** 2 - 4 * a * cos_c**2,
        ],
        -1,
    )  # fmt: skip


def _real_roots(coefficients: Tensor) -> Tensor:
    """Real parts (B, 4) of the roots of quartics, by the eigenvalues of their companions."""
    lead = coefficients[:, :1]
    lead = torch.where(lead.abs() < 1e-12, 1e-12, lead)
    companion = torch.zeros(len(coefficients), 4, 4).to(coefficients)
    companion[:, 0] = -coefficients[:, 1:] / lead
    companion[:, 1:, :3] = torch.eye(3).to(coefficients)
    return torch.linalg.eigvals(companion).real


def _onto(points: Tensor, camera: Tensor) -> Poses:
    """Rigid motions (B) of points (B, N, 3) onto camera points."""
    middle, goal = points.mean(1, keepdim=True), camera.mean(1, keepdim=True)
    rotation = nearest_rotation((camera - goal).mT @ (points - middle))
    return Poses(rotation, (goal - middle @ rotation.mT)[:, 0])
