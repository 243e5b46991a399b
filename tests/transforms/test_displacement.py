"""A displaced scan: its points keep pixels, boxes and places in the world."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.frame import Frame, Queries
from lidarssl.geometry.boxes import points_in_boxes
from lidarssl.geometry.poses import invert_pose, planar_motion, transform_points
from lidarssl.geometry.projection import project
from lidarssl.transforms.displacement import Displace, Displacement, displace
from transforms.scenes import apply_purely, make_frame, same

metres = st.floats(-15, 15)
motions = st.builds(
    planar_motion, st.tuples(metres, metres), st.floats(-math.pi, math.pi, exclude_max=True)
)


def with_queries(frame: Frame) -> Frame:
    count = 40
    queries = Queries(
        frame.points[:count].clone(),
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count),
        torch.zeros(count, dtype=torch.int64),
    )
    return replace(frame, queries=queries)


FRAME = with_queries(make_frame(300))


@settings(deadline=None)
@given(motions)
def test_points_keep_pixels_boxes_and_places(motion: Tensor) -> None:
    moved = displace(FRAME, motion)
    assert moved.points.dtype == torch.float32
    for before, after in zip(FRAME.cameras, moved.cameras, strict=True):
        expected = project(FRAME.points, before.camera_from_lidar, before.intrinsics)
        found = project(moved.points, after.camera_from_lidar, after.intrinsics)
        seen = expected.depth > 0.5
        torch.testing.assert_close(found.uv[seen], expected.uv[seen], atol=2e-3, rtol=1e-5)
        torch.testing.assert_close(found.depth, expected.depth, atol=2e-5, rtol=0)
    places = transform_points(FRAME.points, FRAME.pose)
    torch.testing.assert_close(
        transform_points(moved.points, moved.pose), places, atol=2e-5, rtol=0
    )
    inside = points_in_boxes(FRAME.points, FRAME.boxes)
    assert torch.equal(points_in_boxes(moved.points, moved.boxes), inside)
    assert torch.equal(moved.queries.positions, moved.points[:40])


@settings(deadline=None)
@given(motions)
def test_points_move_by_a_step_then_a_turn(motion: Tensor) -> None:
    moved = displace(FRAME, motion)
    # Of a rigid motion of the plane, the corner tells the angle and the last column the rest.
    angle = math.atan2(motion[1, 0], motion[0, 0])
    x, y = FRAME.points[:, :2].double().T
    expected = torch.stack(
        [
            math.cos(angle) * x - math.sin(angle) * y + motion[0, 3],
            math.sin(angle) * x + math.cos(angle) * y + motion[1, 3],
            FRAME.points[:, 2].double(),
        ],
        1,
    )
    torch.testing.assert_close(moved.points.double(), expected, atol=1e-5, rtol=0)


@settings(deadline=None)
@given(motions)
def test_the_inverse_motion_undoes_it(motion: Tensor) -> None:
    back = displace(displace(FRAME, motion), invert_pose(motion))
    torch.testing.assert_close(back.points, FRAME.points, atol=2e-5, rtol=0)
    for before, after in zip(FRAME.cameras, back.cameras, strict=True):
        torch.testing.assert_close(
            after.camera_from_lidar, before.camera_from_lidar, atol=1e-12, rtol=0
        )
    torch.testing.assert_close(back.pose, FRAME.pose, atol=1e-9, rtol=0)
    torch.testing.assert_close(back.boxes.center, FRAME.boxes.center, atol=2e-5, rtol=0)


@settings(deadline=None)
@given(motions)
def test_calibration_stays_rigid(motion: Tensor) -> None:
    for camera in displace(FRAME, motion).cameras:
        pose = camera.camera_from_lidar
        torch.testing.assert_close(torch.linalg.inv(pose), invert_pose(pose), atol=1e-9, rtol=0)
        assert float(torch.linalg.det(pose)) == pytest.approx(1)


def test_displace_draws_from_its_generator_and_leaves_its_input_alone() -> None:
    frame = make_frame()
    first = apply_purely(Displace(), frame, 0)
    assert not same(first.points, apply_purely(Displace(), frame, 1).points)
    assert torch.equal(first.points[:, 2], frame.points[:, 2])


def draws(displacement: Displacement, count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Steps (count, 2) m and angles (count,) degrees that motions were made of."""
    rng = np.random.default_rng(0)
    motions = np.stack([displacement.draw(rng).numpy() for _ in range(count)])
    rotations = motions[:, :3, :3]
    steps = (rotations.transpose(0, 2, 1) @ motions[:, :3, 3:])[:, :, 0]
    assert (steps[:, 2] == 0).all()
    return steps[:, :2], np.degrees(np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0]))


def test_steps_are_normal_and_clipped_and_angles_uniform() -> None:
    steps, angles = draws(Displacement(spread=4.0, limit=6.0, max_angle=90.0))
    # A normal draw is beyond 1.5 of its standard deviation with probability 0.1336.
    assert np.abs(steps).max() == pytest.approx(6.0)
    clipped = np.isclose(np.abs(steps), 6.0)
    assert clipped.mean() == pytest.approx(math.erfc(1.5 / math.sqrt(2)), abs=0.015)
    assert np.abs(steps.mean(0)).max() < 0.2
    assert abs(np.corrcoef(steps.T)[0, 1]) < 0.06
    assert np.abs(angles).max() <= 90.0 + 1e-9
    assert np.histogram(angles, 8, (-90, 90))[0].min() > 400


def test_default_is_the_published_motion() -> None:
    steps, angles = draws(Displacement())
    assert steps.std() == pytest.approx(4.0, rel=0.05)
    assert np.abs(steps).max() <= 15.0 + 1e-9
    assert np.histogram(angles, 8, (-180, 180))[0].min() > 400


def test_no_spread_and_no_angle_is_no_motion() -> None:
    still = Displacement(spread=0.0, max_angle=0.0).draw(np.random.default_rng(0))
    assert torch.equal(still, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("field", ["spread", "limit", "max_angle"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf])
def test_values_that_are_no_lengths_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Displacement(**{field: value})
    assert caught.value.field == field


def test_more_than_a_half_turn_is_refused() -> None:
    with pytest.raises(ConfigError, match="180"):
        Displacement(max_angle=180.5)
