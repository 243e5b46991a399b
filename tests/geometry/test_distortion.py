"""Distortion against the formula written out, and images against what the lens must have seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError
from lidarssl.geometry.distortion import (
    Lens,
    distort,
    distort_fisheye,
    largest_fisheye_radius,
    largest_radius,
    undistort_image,
)

INTRINSICS = torch.tensor([[60.0, 0, 31.0], [0, 55.0, 22.0], [0, 0, 1]]).double()
MILD = torch.tensor([-0.2, 0.05, 0.002, -0.001, -0.01]).double()
NEW = torch.tensor([[50.0, 0, 29.0], [0, 58.0, 24.0], [0, 0, 1]]).double()
ROUND = torch.tensor([-0.1, 0.03, -0.01, 0.002]).double()
COEFFICIENTS = st.lists(st.floats(-0.3, 0.3), min_size=8, max_size=8)


def by_hand(x: float, y: float, k: list[float]) -> tuple[float, float]:
    k1, k2, p1, p2, k3, k4, k5, k6 = [*k, 0, 0, 0, 0][:8]
    r2 = x**2 + y**2
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
        y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
    )


def fisheye_by_hand(x: float, y: float, k: list[float]) -> tuple[float, float]:
    """By the angle from the axis and the direction around it."""
    angle, around = math.acos(1 / math.sqrt(x * x + y * y + 1)), math.atan2(y, x)
    landed = angle + sum(k[n] * angle ** (2 * n + 3) for n in range(4))
    return landed * math.cos(around), landed * math.sin(around)


@given(st.floats(-3, 3), st.floats(-3, 3), COEFFICIENTS)
def test_rays_through_a_fisheye(x: float, y: float, coefficients: list[float]) -> None:
    kept = coefficients[:4]
    ray, lens = (torch.tensor(values, dtype=torch.float64) for values in ([x, y], kept))
    moved = distort_fisheye(ray, lens)
    assert moved.tolist() == pytest.approx(fisheye_by_hand(x, y, kept), rel=1e-6, abs=1e-7)


@settings(max_examples=50)
@given(COEFFICIENTS)
def test_a_fisheye_image_does_not_fold_within_the_largest_radius(
    coefficients: list[float],
) -> None:
    values = torch.tensor(coefficients[:4]).double()
    limit = largest_fisheye_radius(values)
    radii = torch.linspace(0, min(limit * 0.999, 50), 400).double()
    moved = distort_fisheye(torch.stack([radii, torch.zeros_like(radii)], -1), values)[:, 0]
    assert bool((moved.diff() > -1e-12).all())
    if limit < 1e3:
        beyond = torch.tensor([[limit, 0], [limit * (1 + 1e-4), 0]]).double()
        assert float(distort_fisheye(beyond, values)[:, 0].diff()) < 1e-7


def test_a_fisheye_of_nothing_is_the_angle() -> None:
    rays = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -(3**0.5)]]).double()
    moved = distort_fisheye(rays, torch.zeros(4).double())
    expected = torch.tensor([[0, 0], [math.pi / 4, 0], [0, -math.pi / 3]]).double()
    torch.testing.assert_close(moved, expected)
    assert largest_fisheye_radius(torch.zeros(4)) == math.inf


@given(st.floats(-0.8, 0.8), st.floats(-0.8, 0.8), COEFFICIENTS, st.sampled_from([4, 5, 8]))
def test_rays_go_where_the_formula_sends_them(
    x: float, y: float, coefficients: list[float], count: int
) -> None:
    kept = coefficients[:count]
    ray, lens = (torch.tensor(values, dtype=torch.float64) for values in ([x, y], kept))
    moved = distort(ray, lens)
    assert moved.tolist() == pytest.approx(by_hand(x, y, kept), rel=1e-9, abs=1e-12)


@settings(max_examples=50)
@given(COEFFICIENTS, st.sampled_from([4, 5, 8]))
def test_the_image_does_not_fold_within_the_largest_radius(
    coefficients: list[float], count: int
) -> None:
    """Radii grow under the radial part up to it, and just beyond it they do not."""
    values = torch.tensor(coefficients[:count]).double()
    values[2:4] = 0
    limit = largest_radius(values)

    def moved(radii: torch.Tensor) -> torch.Tensor:
        return distort(torch.stack([radii, torch.zeros_like(radii)], -1), values)[:, 0]

    inside = torch.linspace(0, min(limit * 0.999, 3), 400).double()
    assert bool((moved(inside).diff() > -1e-12).all())
    if limit < 3:
        around = moved(torch.tensor([limit, limit + 1e-4]).double())
        growth = float(around.diff())
        assert growth < 1e-7 or not math.isfinite(growth) or abs(float(around[0])) > 1e3


def test_a_strong_lens_ends_where_its_derivative_does() -> None:
    assert largest_radius(torch.tensor([-0.5, 0, 0, 0])) == pytest.approx((1 / 1.5) ** 0.5)
    assert largest_radius(torch.tensor([0.1, 0, 0, 0])) == math.inf
    assert largest_radius(torch.zeros(5)) == math.inf


@pytest.mark.parametrize("coefficients", [MILD, MILD[:4], torch.zeros(4)])
def test_every_pixel_shows_what_the_lens_moved(coefficients: torch.Tensor) -> None:
    """Ramps along rows and columns are exact under bilinear sampling: colour tells position."""
    height, width = 45, 64
    rows, cols = np.mgrid[:height, :width]
    image = torch.from_numpy(np.stack([4 * cols, 5 * rows]).astype(np.uint8))
    free = undistort_image(image, INTRINSICS, coefficients).numpy().astype(float)
    for row in range(0, height, 4):
        for col in range(0, width, 3):
            x, y = (col - 31.0) / 60.0, (row - 22.0) / 55.0
            x, y = by_hand(x, y, coefficients.tolist())
            u, v = 60.0 * x + 31.0, 55.0 * y + 22.0
            if 0 <= u <= width - 1 and 0 <= v <= height - 1:
                assert free[0, row, col] == pytest.approx(4 * u, abs=0.51)
                assert free[1, row, col] == pytest.approx(5 * v, abs=0.51)
            elif not (-1 < u < width and -1 < v < height):
                assert free[:, row, col].tolist() == [0, 0]


def bilinear(image: np.ndarray, u: float, v: float) -> np.ndarray:
    """Of a (C, H, W) image, 0 outside, in float64."""
    total = np.zeros(len(image))
    for row in (math.floor(v), math.floor(v) + 1):
        for col in (math.floor(u), math.floor(u) + 1):
            if 0 <= row < image.shape[1] and 0 <= col < image.shape[2]:
                weight = (1 - abs(u - col)) * (1 - abs(v - row))
                total += weight * image[:, row, col].astype(np.float64)
    return total


@pytest.mark.parametrize(("lens", "coefficients"), [("brown", MILD), ("fisheye", ROUND)])
def test_every_pixel_of_another_camera_matrix(lens: Lens, coefficients: torch.Tensor) -> None:
    """Pixel by pixel in float64: ray of the new matrix, lens, old matrix, bilinear weights."""
    image = torch.randint(0, 256, (3, 45, 64), dtype=torch.uint8)
    free = undistort_image(image, INTRINSICS, coefficients, NEW, lens).numpy()
    formula = by_hand if lens == "brown" else fisheye_by_hand
    for row in range(45):
        for col in range(64):
            x, y = formula((col - 29.0) / 50.0, (row - 24.0) / 58.0, coefficients.tolist())
            wanted = bilinear(image.numpy(), 60.0 * x + 31.0, 55.0 * y + 22.0)
            assert np.abs(free[:, row, col] - wanted).max() < 0.51


def test_the_old_matrix_is_the_new_one_unless_another_is_given() -> None:
    image = torch.randint(0, 256, (3, 45, 64), dtype=torch.uint8)
    assert torch.equal(
        undistort_image(image, INTRINSICS, MILD),
        undistort_image(image, INTRINSICS, MILD, INTRINSICS),
    )


def test_no_distortion_changes_nothing() -> None:
    image = torch.randint(0, 256, (3, 20, 31), dtype=torch.uint8)
    assert torch.equal(undistort_image(image, INTRINSICS, torch.zeros(5)), image)


def test_what_the_lens_never_saw_is_black() -> None:
    image = torch.full((1, 45, 200), 255, dtype=torch.uint8)
    free = undistort_image(image, INTRINSICS, torch.tensor([-0.5, 0, 0, 0]))
    limit = 31 + 60 * (1 / 1.5) ** 0.5
    assert bool((free[0, 22, : int(limit)] == 255).all())
    assert bool((free[0, 22, int(limit) + 1 :] == 0).all())


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_the_smallest_images(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    assert undistort_image(image, INTRINSICS, MILD).shape == image.shape


def test_other_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="6 distortion coefficients"):
        distort(torch.zeros(2), torch.zeros(6))
    with pytest.raises(ConfigError, match="5 coefficients of a fisheye"):
        distort_fisheye(torch.zeros(2), torch.zeros(5))
