"""Gauss-Newton on the reprojection error: against differences, and against a general solver."""

from __future__ import annotations

from itertools import pairwise

import torch
from scipy.spatial.transform import Rotation

from lidarssl.geometry.pose_refinement import Poses, Sightings, refine_pose, residuals, skew


def scene(outliers: int = 0, noise: float = 0.0) -> tuple[Sightings, Poses]:
    """40 sightings in pixels, the first of them wrong; and the true pose."""
    generator = torch.Generator().manual_seed(0)
    ray = 2 * torch.rand(1, 40, 2, generator=generator, dtype=torch.float64) - 1
    depth = 3 + 20 * torch.rand(1, 40, 1, generator=generator, dtype=torch.float64)
    rotation = torch.from_numpy(Rotation.random(1, random_state=0).as_matrix())
    translation = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    camera = torch.cat([ray, torch.ones_like(depth)], 2) * depth
    points = (camera - translation[:, None]) @ rotation
    image = ray + noise * torch.randn(1, 40, 2, generator=generator, dtype=torch.float64)
    image[:, :outliers] = image[:, :outliers].flip(1)
    lens = torch.tensor([[90.0, 1.0], [0.0, 70.0]], dtype=torch.float64)
    weights = 0.5 + torch.rand(1, 40, generator=generator, dtype=torch.float64)
    return Sightings(points, image, weights, lens), Poses(rotation, translation)


def disturbed(pose: Poses, angle: float, step: float) -> Poses:
    turn = torch.from_numpy(Rotation.from_rotvec([angle, -angle, angle]).as_matrix())
    return Poses(turn @ pose.rotation, pose.translation + step)


def off(found: Poses, true: Poses) -> float:
    turned = (found.rotation - true.rotation).abs().max()
    return float(torch.maximum(turned, (found.translation - true.translation).abs().max()))


def test_residuals_are_in_pixels() -> None:
    seen, pose = scene()
    moved = seen._replace(image=seen.image + torch.tensor([0.1, 0.2], dtype=torch.float64))
    expected = torch.tensor([-9.2, -14.0], dtype=torch.float64).expand(1, 40, 2)
    torch.testing.assert_close(residuals(pose, moved), expected)


def test_it_returns_to_the_true_pose() -> None:
    seen, pose = scene()
    assert off(refine_pose(disturbed(pose, 0.2, 0.5), seen, 8), pose) < 1e-11


def test_a_robust_cost_ignores_outliers() -> None:
    seen, pose = scene(outliers=14, noise=0.001)
    start = disturbed(pose, 0.02, 0.1)
    assert off(refine_pose(start, seen._replace(scale=3.0), 20), pose) < 0.02
    assert off(refine_pose(start, seen, 20), pose) > 0.1


def test_no_step_raises_the_cost() -> None:
    seen, pose = scene(outliers=30, noise=0.01)
    start = disturbed(pose, 1.5, 20.0)
    costs = []
    for steps in range(8):
        residual = residuals(refine_pose(start, seen, steps), seen)
        costs.append(float((seen.weights * residual.square().sum(-1)).sum()))
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(costs))
    assert costs[-1] < costs[0]


def test_directions_bound_the_steps() -> None:
    seen, pose = scene()
    start = disturbed(pose, 0.0, 0.3)
    only_moves = torch.eye(6, dtype=torch.float64)[:, 3:]
    found = refine_pose(start, seen, 6, only_moves)
    assert torch.equal(found.rotation, start.rotation)
    assert off(found, pose) < 1e-10


def test_the_skew_matrix_is_the_cross_product() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    found = (skew(a) @ b[..., None])[..., 0]
    torch.testing.assert_close(found, torch.linalg.cross(a, b))
