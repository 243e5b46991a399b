"""A camera's pose from matches of which many are wrong."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.geometry.poses import geodesic_angle, planar_motion, pose_from_rotation
from lidarssl.geometry.registration import Registration, register

INTRINSICS = torch.tensor([[80.0, 0, 52], [0, 75, 28], [0, 0, 1]], dtype=torch.float64)
SIZE = torch.tensor([104.0, 56.0], dtype=torch.float64)
LOOKING_AHEAD = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
MOUNTING = pose_from_rotation(LOOKING_AHEAD, [0.1, -0.3, -0.2])


def scene(
    seed: int, count: int, wrong: float, noise: float = 0.7
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points of a displaced scan, their pixels, the pose, and which matches are right."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    motion = planar_motion(8 * uniform(2) - 4, float(2 * math.pi * uniform(1)))
    pose = MOUNTING @ motion
    pixels = uniform(count, 2) * SIZE
    ray = torch.linalg.solve(INTRINSICS, torch.cat([pixels, torch.ones(count, 1)], 1).T).T
    camera = ray * (3 + 40 * uniform(count, 1))
    points = (camera - pose[:3, 3]) @ pose[:3, :3]
    right = torch.arange(count) >= wrong * count
    offset = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    pixels = torch.where(right[:, None], pixels + noise * offset, uniform(count, 2) * SIZE)
    order = torch.randperm(count, generator=generator)
    return points[order], pixels[order], pose, right[order]


def solve(
    points: Tensor,
    pixels: Tensor,
    weights: Tensor | None = None,
    planar: bool = False,
    hypotheses: int = 256,
) -> Registration:
    return register(
        points, pixels, INTRINSICS, weights, 3.0, hypotheses, torch.Generator().manual_seed(0),
        MOUNTING if planar else None,
    )  # fmt: skip


def off(found: Registration, pose: Tensor) -> tuple[float, float]:
    """Degrees and metres."""
    matrix = found.camera_from_points
    angle = float(geodesic_angle(matrix[:3, :3], pose[:3, :3]).rad2deg())
    return angle, float((matrix[:3, 3] - pose[:3, 3]).norm())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_exact_matches_give_the_exact_pose(seed: int, planar: bool) -> None:
    points, pixels, pose, _ = scene(seed, 40, 0, noise=0)
    found = solve(points, pixels, planar=planar, hypotheses=16)
    assert found.valid
    assert found.inliers.all()
    torch.testing.assert_close(found.camera_from_points, pose, atol=1e-7, rtol=0)
    assert found.error < 1e-6


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.6, 0.7]), st.booleans())
def test_most_matches_may_be_wrong(seed: int, wrong: float, planar: bool) -> None:
    points, pixels, pose, right = scene(seed, 400, wrong)
    found = solve(points, pixels, planar=planar)
    angle, distance = off(found, pose)
    assert found.valid
    assert angle < 1.5
    assert distance < 0.4
    assert int((found.inliers & right).sum()) > 0.9 * int(right.sum())
    assert int((found.inliers & ~right).sum()) < 0.1 * int((~right).sum())
    assert 0.3 < found.error < 1.5


def test_a_planar_prior_needs_fewer_right_matches() -> None:
    found = {False: 0, True: 0}
    for seed in range(12):
        points, pixels, pose, _ = scene(seed, 300, 0.9)
        for planar in found:
            angle, distance = off(solve(points, pixels, planar=planar, hypotheses=128), pose)
            found[planar] += angle < 3 and distance < 0.6
    assert found[True] >= 11
    assert found[False] <= 6


def test_the_planar_answer_is_a_planar_motion_from_the_prior() -> None:
    points, pixels, _, _ = scene(0, 200, 0.5)
    found = solve(points, pixels, planar=True)
    motion = torch.linalg.inv(MOUNTING) @ found.camera_from_points
    up = torch.tensor([0.0, 0, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(motion[2], up, atol=1e-9, rtol=0)
    torch.testing.assert_close(motion[:, 2], up, atol=1e-9, rtol=0)


def test_all_points_on_the_ground() -> None:
    points, _, pose, _ = scene(0, 300, 0)
    points[:, 2] = -1.5
    points[:, :2] *= 3
    camera = points @ pose[:3, :3].T + pose[:3, 3]
    points, camera = points[camera[:, 2] > 2], camera[camera[:, 2] > 2]
    homogeneous = camera @ INTRINSICS.T
    pixels = homogeneous[:, :2] / homogeneous[:, 2:]
    found = solve(points, pixels)
    assert found.valid
    assert off(found, pose) < (1e-4, 1e-4)


def test_weights_tell_right_from_wrong() -> None:
    points, pixels, pose, right = scene(1, 300, 0.97)
    weights = torch.where(right, 1.0, 0.01)
    angle, distance = off(solve(points, pixels, weights), pose)
    assert angle < 10
    assert distance < 3
    weights = right.double()
    pixels[~right] = float("nan")
    found = solve(points, pixels, weights)
    assert found.valid
    assert not (found.inliers & ~right).any()


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("count", [100, 1000])
def test_matches_that_are_all_wrong(count: int, planar: bool) -> None:
    for seed in range(4):
        points, pixels, _, _ = scene(seed, count, 1.0)
        found = solve(points, pixels, planar=planar, hypotheses=128)
        assert not found.valid
        assert found.camera_from_points.isfinite().all()


def test_a_pose_that_sends_everything_to_one_place_is_not_valid() -> None:
    points, pixels, _, _ = scene(2, 300, 1.0)
    found = solve(points, SIZE / 2 + 0.01 * pixels)
    assert not found.valid


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", ["none", "five", "one point", "line", "NaN", "zero weights"])
def test_too_little_to_find_a_pose(kind: str, planar: bool) -> None:
    points, pixels, _, _ = scene(3, 30, 0)
    weights = torch.ones(30)
    if kind in ("none", "five"):
        keep = 0 if kind == "none" else 5
        points, pixels, weights = points[:keep], pixels[:keep], weights[:keep]
    elif kind == "one point":
        points = points[:1].expand(30, 3)
    elif kind == "line":
        points = points[:1] * torch.arange(30)[:, None]
    elif kind == "NaN":
        points = torch.where(torch.arange(30)[:, None] < 25, float("nan"), points)
    else:
        weights = torch.zeros(30)
    found = solve(points, pixels, weights, planar=planar)
    assert not found.valid
    assert found.camera_from_points.isfinite().all()
    assert found.inliers.shape == points.shape[:1]
    if kind in ("none", "five", "NaN", "zero weights"):
        assert not found.inliers.any()
        assert found.error == float("inf")


@pytest.mark.parametrize("planar", [False, True])
def test_the_generator_is_the_only_source_of_chance(planar: bool) -> None:
    points, pixels, _, _ = scene(4, 200, 0.6)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, second = (solve(points, pixels, planar=planar) for _ in range(2))
    assert torch.equal(first.camera_from_points, second.camera_from_points)
    assert torch.equal(first.inliers, second.inliers)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_float32_is_enough() -> None:
    points, pixels, pose, _ = scene(5, 200, 0.3)
    found = register(
        points.float(), pixels.float(), INTRINSICS.float(), None, 3.0, 128,
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.camera_from_points.dtype == torch.float64
    assert off(found, pose) < (1.0, 1.0)


def test_bad_arguments_are_errors() -> None:
    points, pixels, _, _ = scene(6, 20, 0)
    generator = torch.Generator()
    with pytest.raises(DataError, match="pixels"):
        register(points, pixels[:5], INTRINSICS, None, 3.0, 8, generator)
    with pytest.raises(DataError, match="planar"):
        register(points, pixels, INTRINSICS, None, 3.0, 8, generator, torch.eye(3))
    with pytest.raises(DataError, match="intrinsics"):
        register(points, pixels, torch.zeros(3, 3), None, 3.0, 8, generator)
    with pytest.raises(ConfigError, match="threshold"):
        register(points, pixels, INTRINSICS, None, 0.0, 8, generator)
    with pytest.raises(ConfigError, match="hypotheses"):
        register(points, pixels, INTRINSICS, None, 3.0, 0, generator)
