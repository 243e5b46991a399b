"""Gauss-Newton steps on the reprojection error of camera poses, in batches.

A step turns by w and moves by v: R <- C(w) R, t <- t + v, with the Cayley rotation
C(w) = I + 2 ([a] + [a]^2) / (1 + |a|^2), a = w / 2: an exact rotation, smooth everywhere. The
normal matrix is damped a little (Levenberg-Marquardt), and a step that does not lower the cost
is not taken. Robust costs: Geman-McClure, by iterated weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_FLOOR = 1e-9
_DAMPING = 1e-6
_LARGEST_DAMPING = 1e6
_ROUNDING = 1 + 1e-12
"""A cost changes by less than rounding long before the pose does."""


class Sightings(NamedTuple):
    """Points and where a camera sees them; leading axes are those of the poses, or broadcast.

    Attributes:
        points: (..., N, 3) m.
        image: (..., N, 2) normalised image coordinates.
        weights: (..., N) >= 0.
        lens: (2, 2) from normalised coordinates to the unit of errors, say pixels.
        scale: in that unit, where Geman-McClure's cost bends; None = plain squares.
    """

    points: Tensor
    image: Tensor
    weights: Tensor
    lens: Tensor
    scale: float | None = None


class Poses(NamedTuple):
    """rotation (..., 3, 3) and translation (..., 3) m: p -> rotation @ p + translation."""

    rotation: Tensor
    translation: Tensor


def move(points: Tensor, pose: Poses) -> Tensor:
    """Points (..., N, 3) in the camera frame, for each pose."""
    return points @ pose.rotation.mT + pose.translation[..., None, :]


def residuals(pose: Poses, seen: Sightings) -> Tensor:
    """Projected minus seen, (..., N, 2) in the unit of ``lens``; depth is floored at 1e-9 m."""
    camera = move(seen.points, pose)
    offset = camera[..., :2] / camera[..., 2:].clamp(min=_FLOOR) - seen.image
    return offset @ seen.lens.mT


def refine_pose(
    pose: Poses, seen: Sightings, steps: int, directions: Tensor | None = None
) -> Poses:
    """Poses after some steps, none of a higher cost (but for rounding) than at the start.

    Args:
        pose: where to start.
        seen: what to explain.
        steps: number of steps, taken or not.
        directions: (6, K) of (turn, move) that a step may combine; None = all six.
    """
    damping = torch.full_like(pose.translation[..., 0], _DAMPING)
    cost = _cost(pose, seen)
    for _ in range(steps):
        trial = _stepped(pose, _step(pose, seen, damping, directions))
        lower = (trial_cost := _cost(trial, seen)) <= cost * _ROUNDING
        pose = Poses(
            torch.where(lower[..., None, None], trial.rotation, pose.rotation),
            torch.where(lower[..., None], trial.translation, pose.translation),
        )
        cost = torch.where(lower, trial_cost, cost)
        damping = torch.where(lower, damping / 10, (damping * 10).clamp(max=_LARGEST_DAMPING))
    return pose


def skew(vectors: Tensor) -> Tensor:
    """Matrices (..., 3, 3) of the cross product with vectors (..., 3)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def _cost(pose: Poses, seen: Sightings) -> Tensor:
    with torch.no_grad():
        square = residuals(pose, seen).square().sum(-1)
        if seen.scale is not None:
            square = 1 - seen.scale**2 / (seen.scale**2 + square)
        return (seen.weights * square).sum(-1)


def _step(pose: Poses, seen: Sightings, damping: Tensor, directions: Tensor | None) -> Tensor:
    """Turn and move, (..., 6), of one damped Gauss-Newton step."""
    residual = residuals(pose, seen)
    weights = seen.weights
    if seen.scale is not None:
        bend = seen.scale**2 / (seen.scale**2 + residual.square().sum(-1))
        weights = weights * bend.square()
    jacobian = _jacobian(pose, seen)
    if directions is not None:
        jacobian = jacobian @ directions
    flat = jacobian.flatten(-3, -2)
    weighted = (jacobian * weights[..., None, None]).flatten(-3, -2).mT
    normal = weighted @ flat
    size = normal.diagonal(dim1=-2, dim2=-1)
    normal = normal + torch.diag_embed(size * damping[..., None] + torch.finfo(size.dtype).tiny)
    slope = weighted @ residual.flatten(-2)[..., None]
    step = -torch.linalg.solve_ex(normal, slope)[0]
    return (step if directions is None else directions @ step)[..., 0]


def _jacobian(pose: Poses, seen: Sightings) -> Tensor:
    """(..., N, 2, 6) of the residuals by turn and move; 0 for points that are not in front."""
    turned = seen.points @ pose.rotation.mT
    camera = turned + pose.translation[..., None, :]
    front = camera[..., 2] > _FLOOR
    depth = torch.where(front, camera[..., 2], 1.0)
    ray = camera[..., :2] / depth[..., None]
    eye = torch.eye(2, dtype=ray.dtype, device=ray.device).expand(*ray.shape[:-1], 2, 2)
    by_point = torch.cat([eye, -ray[..., None]], -1) / depth[..., None, None]
    by_point = torch.where(front[..., None, None], seen.lens @ by_point, 0.0)
    return torch.cat([-by_point @ skew(turned), by_point], -1)


def _stepped(pose: Poses, step: Tensor) -> Poses:
    half = skew(step[..., :3] / 2)
    square = (step[..., :3] / 2).square().sum(-1)[..., None, None]
    turn = (half + half @ half) * (2 / (1 + square))
    return Poses(pose.rotation + turn @ pose.rotation, pose.translation + step[..., 3:])
