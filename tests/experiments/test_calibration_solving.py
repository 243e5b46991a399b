"""Poses by a network that knows the truth, by one that errs, and by one that guesses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from experiments.calibration_oracle import CPU, FITTED, Errors, frame, knowing, rig, sighted
from lidarssl.errors import DataError
from lidarssl.experiments.calibration_solving import (
    SOLVERS,
    Sighting,
    Solver,
    SolverSettings,
    sightings,
    solve,
    solve_jointly,
    solve_rig,
)
from lidarssl.geometry.planar_search import Reach
from lidarssl.geometry.poses import geodesic_angle, invert_pose, planar_motion
from lidarssl.methods.nclr_settings import PoseTerm
from lidarssl.transforms.displacement import Displacement


def found(one: Sighting, **changes: Any) -> tuple[float, float, bool]:
    """Errors of the extrinsics in degrees and m, and whether there is a pose."""
    pose = solve(one, SolverSettings(**changes), PoseTerm(), torch.Generator().manual_seed(0))
    recovered = pose.matrix @ one.displacement
    turned = geodesic_angle(recovered[:3, :3], one.calibration[:3, :3]).rad2deg()
    return float(turned), float((recovered - one.calibration)[:3, 3].norm()), pose.valid


def within(pose: Tensor, truth: Tensor, degrees: float, metres: float) -> bool:
    turned = geodesic_angle(pose[:3, :3], truth[:3, :3]).rad2deg()
    return float(turned) < degrees and float((pose - truth)[:3, 3].norm()) < metres


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=6, deadline=None)
@given(x=st.floats(-15, 15), y=st.floats(-15, 15), angle=st.floats(-math.pi, math.pi))
def test_exact_matches_give_the_pose_back(solver: str, x: float, y: float, angle: float) -> None:
    one = sighted(motion=planar_motion([x, y], angle))
    turned, moved, valid = found(one, solver=solver)
    assert valid
    # Points and calibration of a batch are float32: 1e-6 of 15 m over 8 m. A search
    # knows the nearest cell alone, which is 3.6 degrees wide: a ninth of it.
    assert turned < (0.4 if solver == "search" else 2e-3)
    assert moved < (0.1 if solver == "search" else 2e-3)


def test_the_scan_is_displaced_and_nothing_of_the_calibration_is_told() -> None:
    motion, oracle, whole = planar_motion([3.0, -2.0], 2.0), knowing(), frame()
    (one,) = sightings(oracle, whole, motion, CPU)
    expected = whole.points.double() @ motion[:3, :3].T + motion[:3, 3]
    assert torch.allclose(oracle.asked[0].points.points.double(), expected, atol=1e-5)
    assert torch.equal(one.calibration, whole.cameras[0].camera_from_lidar)
    assert torch.allclose(
        one.truth @ expected[0].new_tensor([*expected[0], 1.0]),
        one.calibration @ expected[0].new_tensor([*whole.points[0].double(), 1.0]),
        atol=1e-9,
    )


def test_truth_of_points_and_matches() -> None:
    """Of an exact network every point that it says is seen is, at distance 0."""
    one = sighted()
    assert torch.equal(one.seen, one.matches.overlap > 0.5)
    assert 0 < int(one.seen.sum()) < len(one.seen)
    assert float(one.distance[one.seen].max()) < 1e-3
    cells = torch.zeros_like(one.cells)
    at = one.matches.pixel[one.seen].round().long()
    cells[at[:, 1], at[:, 0]] = True
    assert int((cells != one.cells).sum()) <= 2, "a point on the border of two cells may differ"


def test_wrong_matches_mislead_epnp_alone() -> None:
    one = sighted(Errors(noise=0.3, wrong=0.4))
    limits = (("robust", 1.0, 0.3), ("planar", 0.5, 0.15), ("search", 0.5, 0.15))
    for solver, degrees, metres in limits:
        turned, moved, valid = found(one, solver=solver)
        assert valid
        assert turned < degrees, solver
        assert moved < metres, solver
    turned, moved, _ = found(one, solver="epnp")
    assert turned > 2 or moved > 0.5


@pytest.mark.parametrize("solver", ["planar", "search"])
def test_planar_and_search_find_a_motion_of_the_plane(solver: Solver) -> None:
    one = sighted(Errors(noise=1.0, wrong=0.3))
    chosen = SolverSettings(solver, reach_shift=4.0)
    pose = solve(one, chosen, PoseTerm(), torch.Generator().manual_seed(0))
    motion = invert_pose(one.calibration) @ pose.matrix
    assert torch.allclose(motion[2, :2], motion.new_zeros(2), atol=1e-9)
    assert torch.allclose(motion[:2, 2], motion.new_zeros(2), atol=1e-9)
    assert torch.allclose(motion[2, 2:], motion.new_tensor([1.0, 0.0]), atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_guesses_and_too_few_points_are_failures(solver: str) -> None:
    if solver in ("robust", "search"):
        assert not found(sighted(Errors(wrong=1.0)), solver=solver)[2]
    nothing_seen = sighted(Errors(seen=0.05))
    assert not found(nothing_seen, solver=solver)[2]
    behind = replace(frame(), points=frame().points[:0], intensity=frame().intensity[:0])
    (empty,) = sightings(knowing(), behind, planar_motion([1.0, 0.0], 1.0), CPU)
    assert not found(empty, solver=solver)[2]


def test_a_camera_that_looks_away_is_a_failure() -> None:
    """Of a scan that lies behind it nothing fits anywhere."""
    whole = frame()
    turned = replace(
        whole.cameras[0],
        camera_from_lidar=whole.cameras[0].camera_from_lidar @ planar_motion([0, 0], math.pi),
    )
    away = replace(whole, cameras=(turned,))
    (one,) = sightings(knowing(), away, planar_motion([1.0, 0.0], 1.0), CPU)
    assert not one.seen.any()
    assert not found(one, reach_shift=4.0)[2]


def test_what_a_search_puts_into_the_image_is_used() -> None:
    one = sighted()
    pose = solve(one, SolverSettings(reach_shift=4.0), PoseTerm(), torch.Generator().manual_seed(0))
    assert len(pose.used) == len(one.seen) == 1200
    assert not pose.used[FITTED:].any()
    assert int((pose.used != one.seen)[:FITTED].sum()) < 10
    assert 0.9 * int(pose.used.sum()) < pose.inliers <= int(pose.used.sum())


def test_a_search_reaches_as_far_as_training_displaces_unless_told() -> None:
    trained_with = Displacement(spread=1.0, limit=3.0, max_angle=40.0)
    assert SolverSettings().reaching(trained_with).reach == Reach(40.0, 3.0)
    told = SolverSettings(reach_angle=0.0, reach_shift=7.0).reaching(trained_with)
    assert told.reach == Reach(0.0, 7.0)
    assert SolverSettings(reach_angle=9.0).reaching(trained_with).reach == Reach(9.0, 3.0)
    assert SolverSettings().reach == Reach(180.0, 15.0)


def test_the_cameras_of_a_rig_share_their_motion() -> None:
    both = rig([Errors(noise=1.0, wrong=0.3), Errors(noise=2.0, wrong=0.5)])
    poses = solve_rig(both, Reach(180.0, 4.0))
    motions = [
        invert_pose(one.calibration) @ pose.matrix for one, pose in zip(both, poses, strict=True)
    ]
    assert torch.allclose(motions[0], motions[1], atol=1e-9)
    for one, pose in zip(both, poses, strict=True):
        assert pose.valid
        assert len(pose.used) == len(one.seen)
        assert within(pose.matrix @ one.displacement, one.calibration, 0.5, 0.15)


def test_a_camera_that_matches_nothing_is_placed_by_the_others() -> None:
    good, bad = rig([Errors(noise=0.3), Errors(wrong=1.0)])
    assert not found(bad, reach_shift=4.0)[2]
    _, pose = solve_rig([good, bad], Reach(180.0, 4.0))
    assert pose.valid
    assert within(pose.matrix @ bad.displacement, bad.calibration, 0.5, 0.15)
    nowhere = rig([Errors(wrong=1.0)] * 2)
    assert [one.valid for one in solve_rig(nowhere, Reach(180.0, 4.0))] == [False, False]


@pytest.mark.parametrize("solver", ["search", "robust"])
def test_frames_together_are_better_than_alone(solver: Solver) -> None:
    oracle, chosen = knowing(Errors(noise=1.0, wrong=0.5)), SolverSettings(solver, reach_shift=4.0)
    many = [
        sightings(oracle, frame(number), planar_motion([number - 3.0, 1.0], number), CPU)[0]
        for number in range(6)
    ]
    generator = torch.Generator().manual_seed(0)
    joint = solve_jointly(many, chosen, PoseTerm(), generator)
    assert joint.valid
    alone = np.mean([found(one, solver=solver, reach_shift=4.0)[0] for one in many])
    truth = many[0].calibration
    assert float(geodesic_angle(joint.matrix[:3, :3], truth[:3, :3]).rad2deg()) < alone
    assert float((joint.matrix - truth)[:3, 3].norm()) < 0.2


def test_frames_with_other_intrinsics_go_together() -> None:
    one = sighted()
    matches = one.matches
    lens = matches.intrinsics * matches.intrinsics.new_tensor([2.0, 3.0, 1.0])[:, None]
    other = replace(
        one,
        matches=replace(
            matches, intrinsics=lens, pixel=matches.pixel * matches.pixel.new_tensor([2.0, 3.0])
        ),
    )
    generator = torch.Generator().manual_seed(0)
    joint = solve_jointly([one, other], SolverSettings("robust"), PoseTerm(), generator)
    assert joint.inliers == 2 * int(one.seen.sum())
    assert torch.allclose(joint.matrix, one.calibration, atol=2e-3)


def test_a_search_reads_the_intrinsics_of_every_frame() -> None:
    """The second map has twice the cells, and its scan is displaced otherwise."""
    one = sighted()
    other = sighted(motion=planar_motion([0.5, 1.0], -1.0))
    lens = other.matches.intrinsics.clone()
    lens[:2] = 2 * lens[:2] + lens.new_tensor([0.0, 0.0, 0.5])
    finer = other.matches.fit.repeat_interleave(2, 1).repeat_interleave(2, 2)
    other = replace(other, matches=replace(other.matches, fit=finer, intrinsics=lens))
    generator = torch.Generator().manual_seed(0)
    for pair in ([one, other], [other, one]):
        joint = solve_jointly(pair, SolverSettings(reach_shift=4.0), PoseTerm(), generator)
        assert joint.valid
        assert within(joint.matrix, one.calibration, 0.4, 0.1)
        assert len(joint.used) == sum(min(len(part.seen), FITTED) for part in pair)
        assert joint.inliers > 0.9 * sum(int(part.seen[:FITTED].sum()) for part in pair)


def test_a_frame_without_cameras_is_named() -> None:
    bare = replace(frame(), cameras=())
    with pytest.raises(DataError, match=r"memory/val/0006 has no camera"):
        sightings(knowing(), bare, torch.eye(4, dtype=torch.float64), CPU)
