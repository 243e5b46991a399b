"""Errors of poses against scipy and closed formulas; masks and matches against counts."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from lidarssl.geometry.poses import invert_pose, pose_from_rotation, rotation_about_z
from lidarssl.metrics.registration import (
    ROTATION_STEPS,
    TRANSLATION_STEPS,
    RegistrationErrors,
    euler_angles,
    fractions_below,
    inlier_ratios,
    mask_quality,
    registration_errors,
    summarise,
)

NAN = math.nan


def random_poses(count: int, seed: int, size: float = 3.0) -> Tensor:
    rng = np.random.default_rng(seed)
    turns = torch.from_numpy(Rotation.random(count, rng).as_matrix())
    moves = torch.from_numpy(size * rng.standard_normal((count, 3)))
    return torch.stack([pose_from_rotation(*one) for one in zip(turns, moves, strict=True)])


def errors_of(rows: list[tuple[float, float, float]]) -> RegistrationErrors:
    return RegistrationErrors(*torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).unbind(1))


angles = st.floats(-180, 180)


@given(angles, st.floats(-90, 90), angles)
def test_euler_angles_are_those_of_scipy(a: float, b: float, c: float) -> None:
    turn = Rotation.from_euler("xzy", [a, b, c], degrees=True)
    found = euler_angles(torch.from_numpy(turn.as_matrix()))
    again = Rotation.from_euler("xzy", found.numpy(), degrees=True)
    assert (again * turn.inv()).magnitude() < 1e-6
    assert abs(found[1]) <= 90
    if abs(b) < 89.9:
        assert np.allclose(found, turn.as_euler("xzy", degrees=True), atol=1e-6)


@pytest.mark.parametrize("b", [90.0, -90.0])
def test_where_two_axes_fall_together_the_last_angle_is_0_as_in_scipy(b: float) -> None:
    turn = Rotation.from_euler("xzy", [20.0, b, 50.0], degrees=True)
    found = euler_angles(torch.from_numpy(turn.as_matrix()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = turn.as_euler("xzy", degrees=True)
    assert expected[2] == 0
    assert np.allclose(found, expected, atol=1e-5)


def test_errors_of_many_poses_are_those_of_scipy() -> None:
    predicted, truth = random_poses(200, 0), random_poses(200, 1)
    found = registration_errors(predicted, truth)
    for number in range(200):
        between = np.linalg.inv(predicted[number].numpy()) @ truth[number].numpy()
        turn = Rotation.from_matrix(between[:3, :3])
        assert found.rotation[number] == pytest.approx(np.degrees(turn.magnitude()), abs=1e-6)
        euler = np.abs(turn.as_euler("xzy", degrees=True)).sum()
        assert found.euler[number] == pytest.approx(euler, abs=1e-6)
        assert found.translation[number] == pytest.approx(np.linalg.norm(between[:3, 3]))


def test_small_angles_keep_their_digits() -> None:
    """An arc cosine of the trace would say 0, or 1.2e-6 degrees."""
    turn = pose_from_rotation(rotation_about_z(1e-9), [0.0, 0.0, 0.0])
    found = registration_errors(turn[None], torch.eye(4, dtype=torch.float64)[None])
    assert float(found.rotation) == pytest.approx(math.degrees(1e-9), rel=1e-6)
    assert float(found.euler) == pytest.approx(math.degrees(1e-9), rel=1e-6)


@given(st.integers(0, 10**6), st.floats(1e-3, 3.0))
def test_the_sum_of_small_euler_angles_is_up_to_sqrt_3_times_the_angle(
    seed: int, degrees: float
) -> None:
    axis = np.random.default_rng(seed).standard_normal(3)
    turn = Rotation.from_rotvec(degrees * axis / np.linalg.norm(axis), degrees=True)
    pose = pose_from_rotation(torch.from_numpy(turn.as_matrix()), [0.0, 0.0, 0.0])
    found = registration_errors(pose[None], torch.eye(4, dtype=torch.float64)[None])
    assert float(found.rotation) == pytest.approx(degrees, rel=1e-6)
    assert 0.97 * degrees <= float(found.euler) <= 3**0.5 * degrees * 1.03


def test_a_change_of_the_camera_frame_changes_no_error() -> None:
    """The motion pred^-1 true is one of the lidar frame."""
    predicted, truth, turned = random_poses(5, 2), random_poses(5, 3), random_poses(5, 4)
    one, other = (
        registration_errors(predicted, truth),
        registration_errors(turned @ predicted, turned @ truth),
    )
    for name in ("rotation", "euler", "translation"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-9)
    back = registration_errors(truth, predicted)
    assert torch.allclose(one.rotation, back.rotation, atol=1e-9)
    assert torch.allclose(
        one.translation, (invert_pose(predicted) @ truth)[:, :3, 3].norm(dim=1), atol=1e-12
    )


def test_success_needs_both_errors_and_each_definition_its_own_angle() -> None:
    rows = [(1.0, 1.5, 0.1), (4.0, 6.0, 1.9), (4.0, 4.5, 2.0), (5.0, 4.0, 1.0), (90.0, 120.0, 9.0)]
    found = summarise(errors_of(rows), torch.ones(5, dtype=torch.bool))
    assert found.success == pytest.approx(2 / 5)
    assert found.euler_success == pytest.approx(2 / 5)
    assert (found.count, found.failed) == (5, 0)
    assert found.rotation.median == 4.0
    assert found.translation.mean == pytest.approx(np.mean([row[2] for row in rows]))
    assert found.euler.std == pytest.approx(np.std([row[1] for row in rows]))


def test_failed_registrations_are_no_success_and_in_no_median() -> None:
    rows = [(1.0, 1.0, 0.1), (NAN, NAN, NAN), (3.0, 3.0, 0.3), (0.0, 0.0, 0.0)]
    found = summarise(errors_of(rows), torch.tensor([True, False, True, False]))
    assert (found.count, found.failed) == (4, 2)
    assert found.success == found.euler_success == 0.5
    assert found.rotation.median == 2.0
    assert found.translation.std == pytest.approx(0.1)


@pytest.mark.parametrize("count", [0, 3])
def test_without_a_pose_nothing_is_said_of_errors(count: int) -> None:
    found = summarise(errors_of([(NAN, NAN, NAN)] * count), torch.zeros(count, dtype=torch.bool))
    assert found.rotation.median is found.euler.mean is found.translation.std is None
    assert found.success == (0.0 if count else None)
    assert found.failed == count


@given(st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=30))
def test_curves_count_the_registrations_below_each_step(pairs: list[tuple[float, bool]]) -> None:
    values = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    valid = torch.tensor([good for _, good in pairs], dtype=torch.bool)
    found = fractions_below(values, valid, ROTATION_STEPS)
    for step, share in zip(ROTATION_STEPS, found, strict=True):
        below = sum(good and value < step for value, good in pairs)
        assert share == pytest.approx(below / len(pairs) if pairs else 0.0)
    assert found == sorted(found)


def test_the_steps_are_the_published_ones() -> None:
    assert tuple(np.arange(0, 15, 0.5)) == TRANSLATION_STEPS
    assert tuple(range(30)) == ROTATION_STEPS


masks = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40)


@given(masks)
def test_quality_of_a_mask_is_counts(pairs: list[tuple[bool, bool]]) -> None:
    predicted, truth = torch.tensor(pairs, dtype=torch.bool).reshape(-1, 2).unbind(1)
    found = mask_quality(predicted, truth)
    both = sum(p and t for p, t in pairs)
    for value, whole in (
        (found.precision, sum(p for p, _ in pairs)),
        (found.recall, sum(t for _, t in pairs)),
        (found.iou, sum(p or t for p, t in pairs)),
    ):
        assert value == (pytest.approx(both / whole) if whole else None)


def test_inliers_are_at_most_a_radius_off() -> None:
    assert inlier_ratios(torch.tensor([0.5, 1.0, 2.5, torch.inf])) == [0.5, 0.5, 0.75]
    assert inlier_ratios(torch.zeros(0)) == [None] * 3
