"""Properties of rigid motions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.geometry.poses import (
    camera_from_lidar,
    geodesic_angle,
    invert_pose,
    planar_motion,
    pose_from_quaternion,
    pose_from_rotation,
    quaternion_from_rotation,
    rotation_about_z,
    rotation_from_quaternion,
    transform_points,
)

component = st.floats(-1, 1)
quaternions = st.tuples(component, component, component, component).filter(
    lambda q: math.hypot(*q) > 1e-3
)
metres = st.floats(-2000, 2000)
poses = st.builds(pose_from_quaternion, quaternions, st.tuples(metres, metres, metres))


@given(quaternions)
def test_rotation_equals_scipy(quaternion: tuple[float, ...]) -> None:
    w, x, y, z = quaternion
    expected = torch.from_numpy(Rotation.from_quat([x, y, z, w]).as_matrix())
    torch.testing.assert_close(rotation_from_quaternion(quaternion), expected, atol=1e-12, rtol=0)


@given(quaternions)
def test_quaternion_round_trip(quaternion: tuple[float, ...]) -> None:
    unit = torch.tensor(quaternion, dtype=torch.float64)
    unit = unit / unit.norm()
    found = quaternion_from_rotation(rotation_from_quaternion(quaternion))
    assert found[0] >= 0
    assert abs(float(found @ unit)) == pytest.approx(1, abs=1e-12)


def test_quaternions_in_batches() -> None:
    q = torch.randn((4, 5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = quaternion_from_rotation(rotation_from_quaternion(q))
    expected = q / q.norm(dim=-1, keepdim=True)
    expected = torch.where(expected[..., :1] < 0, -expected, expected)
    torch.testing.assert_close(found, expected)


@given(metres, metres, st.floats(-10, 10), metres, metres, metres)
def test_planar_motion_steps_then_turns(
    step_x: float, step_y: float, angle: float, x: float, y: float, z: float
) -> None:
    found = planar_motion((step_x, step_y), angle) @ torch.tensor([x, y, z, 1], dtype=torch.float64)
    turned = complex(x + step_x, y + step_y) * complex(math.cos(angle), math.sin(angle))
    assert found.tolist() == pytest.approx([turned.real, turned.imag, z, 1], abs=1e-9)


@given(poses)
def test_inverse(pose: Tensor) -> None:
    identity = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(invert_pose(pose) @ pose, identity, atol=1e-9, rtol=0)


@given(poses, poses)
def test_composition_is_one_motion_after_the_other(first: Tensor, second: Tensor) -> None:
    points = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]])
    stepwise = transform_points(transform_points(points, first), second)
    torch.testing.assert_close(
        transform_points(points, second @ first), stepwise, atol=1e-8, rtol=0
    )


@given(poses, poses, poses, poses)
def test_through_the_world(lidar: Tensor, ego: Tensor, later: Tensor, camera: Tensor) -> None:
    points = torch.tensor([[1.0, -2.0, 3.0]])
    world = transform_points(transform_points(points, lidar), ego)
    expected = transform_points(transform_points(world, invert_pose(later)), invert_pose(camera))
    matrix = camera_from_lidar(lidar, ego, later, camera)
    torch.testing.assert_close(transform_points(points, matrix), expected, atol=1e-7, rtol=0)


@given(st.floats(-math.pi, math.pi), st.floats(-math.pi, math.pi))
def test_geodesic_angle(first: float, second: float) -> None:
    difference = abs(first - second)
    expected = min(difference, 2 * math.pi - difference)
    found = geodesic_angle(rotation_about_z(first), rotation_about_z(second))
    # The arc sine of a chord near 1 amplifies rounding to its square root.
    assert float(found) == pytest.approx(expected, abs=1e-7)


def test_small_angles_keep_their_digits() -> None:
    found = geodesic_angle(rotation_about_z(0.0), rotation_about_z(1e-9))
    assert float(found) == pytest.approx(1e-9, rel=1e-6)


@pytest.mark.parametrize("bad", [(0, 0, 0, 0), (math.nan, 0, 0, 1), (1, 0, 0)])
def test_no_rotation(bad: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="quaternion"):
        rotation_from_quaternion(bad)


MOTIONS = {
    "nothing": torch.eye(3),
    "mirror x": torch.diag(torch.tensor([-1.0, 1, 1])),
    "mirror both": torch.diag(torch.tensor([-1.0, -1, 1])),
    "turn": rotation_about_z(0.7),
    "scale": torch.eye(3) * 1.3,
    "swap": torch.eye(3)[[1, 2, 0]],
    "flatten": torch.diag(torch.tensor([1.0, 1, 0])),
}


@pytest.mark.parametrize("step", [0.0, -1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MOTIONS)
def test_axes_left_alone_and_axes_moved_are_those_of_the_product(
    name: str, dtype: torch.dtype, step: float
) -> None:
    points = torch.randn((101, 3), generator=torch.Generator().manual_seed(0)) * 50
    points[::5] = 0.0
    points[1::5, 1] = -0.0
    pose = pose_from_rotation(MOTIONS[name].double(), [step, 0.0, 0.0])
    before = points.clone()
    found = transform_points(points, pose, dtype)
    exact = points.double() @ pose[:3, :3].T + pose[:3, 3]
    assert found.dtype == dtype
    torch.testing.assert_close(found, exact.to(dtype), rtol=2e-7, atol=0)
    # atan2 tells them apart.
    assert not bool((found.signbit() & (found == 0)).any())
    assert torch.equal(points, before)
    assert found.data_ptr() != points.data_ptr()
