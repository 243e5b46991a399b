"""Rigid motions: ``a_from_b`` is the 4x4 matrix that takes coordinates of frame b to frame a.

Everything is float64: global coordinates of a city are ~1e3 m, where float32 loses 0.1 mm per
step and moves pixels. Quaternions are (w, x, y, z), as nuScenes and PandaSet store them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lidarssl.errors import DataError

_SMALLEST_NORM = 1e-9
_IDENTITY = torch.eye(3, 4, dtype=torch.float64).tolist()


def rotation_from_quaternion(quaternion: Tensor | Sequence[float]) -> Tensor:
    """Rotation matrices, (..., 3, 3) float64, of quaternions (..., 4), normalised first.

    Raises:
        DataError: a quaternion that is not finite or has no length.
    """
    q = torch.as_tensor(quaternion, dtype=torch.float64)
    norm = q.norm(dim=-1, keepdim=True) if q.shape[-1:] == (4,) else None
    if norm is None or not bool((torch.isfinite(norm) & (norm > _SMALLEST_NORM)).all()):
        raise DataError(f"{q.tolist()} is no rotation quaternion (w, x, y, z)", field="rotation")
    w, x, y, z = (q / norm).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quaternion_from_rotation(rotation: Tensor) -> Tensor:
    """Unit quaternions, (..., 4) float64 with w >= 0, of rotation matrices (..., 3, 3).

    The largest of the four components is found from the diagonal and divides the others, so
    that no angle is ill-conditioned (Shepperd 1978).
    """
    r = rotation.to(torch.float64)
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    squares = torch.stack([1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz])
    wx, wy, wz = (
        r[..., 2, 1] - r[..., 1, 2],
        r[..., 0, 2] - r[..., 2, 0],
        r[..., 1, 0] - r[..., 0, 1],
    )
    xy, xz, yz = (
        r[..., 1, 0] + r[..., 0, 1],
        r[..., 2, 0] + r[..., 0, 2],
        r[..., 2, 1] + r[..., 1, 2],
    )
    # Row k is 4 q_k times the quaternion.
    candidates = torch.stack(
        [
            torch.stack([squares[0], wx, wy, wz], -1),
            torch.stack([wx, squares[1], xy, xz], -1),
            torch.stack([wy, xy, squares[2], yz], -1),
            torch.stack([wz, xz, yz, squares[3]], -1),
        ]
    )
    largest = squares.argmax(0)
    chosen = torch.take_along_dim(candidates, largest[None, ..., None], dim=0)[0]
    unit = chosen / chosen.norm(dim=-1, keepdim=True)
    return torch.where(unit[..., :1] < 0, -unit, unit)


def rotation_about_z(angle: float) -> Tensor:
    """(3, 3) float64 rotation by ``angle`` rad, counter-clockwise seen from above."""
    turn = torch.tensor(angle, dtype=torch.float64)
    cos, sin = torch.cos(turn).item(), torch.sin(turn).item()
    return torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)


def planar_motion(translation: Tensor | Sequence[float], angle: float) -> Tensor:
    """(4, 4) float64 of p -> Rz (p + t): first a step in the xy plane, then a turn.

    Args:
        translation: (2,) m.
        angle: rad, counter-clockwise seen from above.
    """
    turn = rotation_about_z(angle)
    step = torch.zeros(3, dtype=torch.float64)
    step[:2] = torch.as_tensor(translation, dtype=torch.float64)
    return pose_from_rotation(turn, turn @ step)


def pose_from_rotation(rotation: Tensor, translation: Tensor | Sequence[float]) -> Tensor:
    """(..., 4, 4) float64 of rotations (..., 3, 3) followed by translations (..., 3) m."""
    pose = torch.eye(4, dtype=torch.float64).repeat(*rotation.shape[:-2], 1, 1)
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = torch.as_tensor(translation, dtype=torch.float64)
    return pose


def pose_from_quaternion(
    quaternion: Tensor | Sequence[float], translation: Tensor | Sequence[float]
) -> Tensor:
    """(4, 4) float64 of a rotation (w, x, y, z) followed by a translation (3,) m.

    Raises:
        DataError: the quaternion has no direction.
    """
    return pose_from_rotation(rotation_from_quaternion(quaternion), translation)


def invert_pose(pose: Tensor) -> Tensor:
    """Inverse of rigid motions (..., 4, 4), by the transpose of the rotation."""
    turned = pose[..., :3, :3].transpose(-1, -2)
    inverse = torch.zeros_like(pose)
    inverse[..., :3, :3] = turned
    inverse[..., :3, 3] = -(turned @ pose[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def transform_points(points: Tensor, pose: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Points (N, 3) of frame b in frame a = ``a_from_b`` (4, 4), computed in float64.

    Axis by axis: a product of so few columns takes longer, and turns about z and mirrorings leave
    axes as they are.

    Returns:
        (N, 3) of ``dtype``.
    """
    # A sum of terms never is a negative zero, which atan2 would tell from a positive one.
    moved = points.to(dtype) + 0.0
    rows = pose[:3].double().tolist()
    changed = [axis for axis, row in enumerate(rows) if row != _IDENTITY[axis]]
    read = [axis for axis in range(3) if any(rows[other][axis] for other in changed)]
    columns = {axis: points[:, axis].double() for axis in read}
    for axis in changed:
        moved[:, axis] = _weighted_sum(columns, rows[axis])
    return moved


def _weighted_sum(columns: Mapping[int, Tensor], weights: Sequence[float]) -> Tensor | float:
    """Of columns by axis, and the last weight."""
    used = [axis for axis in columns if weights[axis]]
    if not used:
        return weights[3]
    total = columns[used[0]] * weights[used[0]]
    for axis in used[1:]:
        total.add_(columns[axis], alpha=weights[axis])
    return total.add_(weights[3])


def camera_from_lidar(
    ego_from_lidar: Tensor,
    world_from_ego: Tensor,
    world_from_camera_ego: Tensor,
    ego_from_camera: Tensor,
) -> Tensor:
    """(4, 4) float64 through the world, because the car moves between the two exposures.

    Args:
        ego_from_lidar: mounting of the lidar.
        world_from_ego: the car when the lidar fired.
        world_from_camera_ego: the car when the camera was exposed.
        ego_from_camera: mounting of the camera.
    """
    return (
        invert_pose(world_from_camera_ego @ ego_from_camera) @ world_from_ego @ ego_from_lidar
    ).to(torch.float64)


def geodesic_angle(first: Tensor, second: Tensor) -> Tensor:
    """Angle in rad, in [0, pi], of the rotation between rotations (..., 3, 3).

    From the chord |A - B| = 2 sqrt(2) sin(angle / 2): unlike the arc cosine of the trace it
    keeps its precision for small angles.
    """
    chord = (first.double() - second.double()).flatten(-2).norm(dim=-1)
    return 2 * torch.asin((chord / 8**0.5).clamp(max=1))
