"""Projection against scalar arithmetic, and each rule of depth, border and rounding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.geometry.poses import camera_from_lidar, pose_from_quaternion, transform_points
from lidarssl.geometry.projection import (
    Projection,
    devkit_float32_chain,
    inside_image,
    kitti_camera,
    match_pixels,
    pinhole,
    project,
    project_rectified,
    scale_intrinsics,
    select_pixels,
)

INTRINSICS = torch.tensor([[100.0, 0, 50], [0, 120, 40], [0, 0, 1]], dtype=torch.float64)
IDENTITY = torch.eye(4, dtype=torch.float64)


def at(*uv: tuple[float, float], depth: float = 10.0) -> Projection:
    """A projection with the given pixels."""
    return Projection(torch.tensor(uv, dtype=torch.float64), torch.full((len(uv),), depth))


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.1, 50))
def test_pinhole_is_similar_triangles(x: float, y: float, z: float) -> None:
    found = project(torch.tensor([[x, y, z]], dtype=torch.float64), IDENTITY, INTRINSICS)
    assert found.uv[0].tolist() == pytest.approx([100 * x / z + 50, 120 * y / z + 40])
    assert float(found.depth) == pytest.approx(z)


def test_matches_carry_row_and_column_of_kept_points() -> None:
    points = torch.tensor([[0, 0, 5.0], [0, 0, -5], [0.1, 0, 5], [9, 0, 5], [0, 0.2, 0.5]])
    found = match_pixels(points, IDENTITY, INTRINSICS, 80, 100)
    assert found.point.tolist() == [0, 2]
    assert found.row.tolist() == [40, 40]
    assert found.col.tolist() == [50, 52]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ("strict", [False, True, True, False, False, False]),
        ("inclusive", [True, True, True, True, False, False]),
        ("half_open", [True, True, True, True, True, False]),
        ("nearest", [True, True, True, True, False, False]),
    ],
)
def test_bounds(bounds: str, expected: list[bool]) -> None:
    columns = at(*[(u, 5.0) for u in (0.0, 0.01, 98.99, 99.0, 99.99, 100.0)])
    rows = at(*[(5.0, v) for v in (0.0, 0.01, 98.99, 99.0, 99.99, 100.0)])
    assert inside_image(columns, 100, 100, bounds=bounds).tolist() == expected
    assert inside_image(rows, 100, 100, bounds=bounds).tolist() == expected


def test_nearest_is_what_pixels_cover() -> None:
    columns = at(*[(u, 5.0) for u in (-0.51, -0.5, -0.49, 99.49, 99.5)])
    expected = [False, True, True, True, False]
    assert inside_image(columns, 100, 100, bounds="nearest").tolist() == expected
    rows = at(*[(5.0, v) for v in (-0.51, -0.5, -0.49, 99.49, 99.5)])
    assert inside_image(rows, 100, 100, bounds="nearest").tolist() == expected


@given(st.integers(1, 9), st.sampled_from([-0.5, 0.5]), st.sampled_from([-math.inf, math.inf]))
def test_nearest_never_rounds_out_of_the_image(size: int, border: float, towards: float) -> None:
    edge = border if border < 0 else size - border
    values = [edge, math.nextafter(edge, towards), edge / 2]
    found = select_pixels(at(*[(u, u) for u in values]), size, size, bounds="nearest")
    inside = [number for number, u in enumerate(values) if -0.5 <= u < size - 0.5]
    assert found.point.tolist() == inside
    assert all(0 <= row < size for row in found.row.tolist())
    assert torch.equal(found.row, found.col)


def test_rounding_halves_to_even_or_down() -> None:
    projection = at((1.5, 2.5), (2.5, 3.4), (2.6, 3.6))
    rounded = select_pixels(projection, 50, 50)
    assert rounded.col.tolist() == [2, 2, 3]
    assert rounded.row.tolist() == [2, 3, 4]
    floored = select_pixels(projection, 50, 50, rounding="floor")
    assert floored.col.tolist() == [1, 2, 2]
    assert floored.row.tolist() == [2, 3, 3]


def test_depth_is_exclusive_and_nothing_at_the_centre_is_kept() -> None:
    assert inside_image(at((5, 5), depth=1.0), 9, 9).tolist() == [False]
    assert inside_image(at((5, 5), depth=1.01), 9, 9).tolist() == [True]
    points = torch.tensor([[0.0, 0, 0], [1.0, 1, 0]])
    found = match_pixels(points, IDENTITY, INTRINSICS, 80, 100, -math.inf, bounds="inclusive")
    assert len(found.point) == 0


def test_keep_restricts_the_points() -> None:
    points = torch.tensor([[0, 0, 5.0], [0, 0, 6.0]])
    keep = torch.tensor([False, True])
    assert match_pixels(points, IDENTITY, INTRINSICS, 80, 100, keep=keep).point.tolist() == [1]


@given(
    st.integers(0, 2**32),
    st.sampled_from([-math.inf, 0.0, 0.1, 1.0, 8.0]),
    st.sampled_from(["round", "floor"]),
    st.sampled_from(["strict", "inclusive", "half_open", "nearest"]),
    st.booleans(),
)
def test_matches_are_the_selected_pixels_of_all_projected_points(
    seed: int, min_depth: float, rounding: str, bounds: str, restricted: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = 20 * torch.randn((300, 3), generator=generator)
    points[0], points[1] = math.nan, math.inf
    quaternion = torch.randn(4, generator=generator, dtype=torch.float64)
    pose = pose_from_quaternion(quaternion, torch.randn(3, generator=generator))
    keep = points[:, 0] > 1 if restricted else None
    options = (80, 100, min_depth, rounding, bounds, keep)
    plain = select_pixels(project(points, pose, INTRINSICS), *options)
    found = match_pixels(points, pose, INTRINSICS, *options)
    assert all(map(torch.equal, found, plain))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="bounds"):
        inside_image(at((5, 5)), 9, 9, bounds="loose")
    with pytest.raises(ConfigError, match="rounding"):
        select_pixels(at((5, 5)), 9, 9, rounding="up")


def test_scaled_intrinsics_scale_pixels() -> None:
    points = torch.tensor([[1.0, 2.0, 7.0]])
    scaled = scale_intrinsics(INTRINSICS, rows=0.5, cols=0.25)
    expected = pinhole(points, INTRINSICS).uv * torch.tensor([0.25, 0.5])
    torch.testing.assert_close(pinhole(points, scaled).uv, expected)


def kitti() -> tuple[Tensor, Tensor]:
    projection = torch.tensor([[721.5, 0, 609.6, 44.9], [0, 721.5, 172.9, 0.2], [0, 0, 1, 0.003]])
    tr = pose_from_quaternion((0.5, -0.5, 0.5, -0.5), (0.02, -0.06, -0.3))
    return projection.double(), tr


def test_kitti_camera_equals_the_three_by_four_product() -> None:
    projection, tr = kitti()
    points = torch.tensor([[10.0, 1.0, -1.0], [30.0, -4.0, 0.5]])
    intrinsics, from_lidar = kitti_camera(projection, tr)
    image = torch.cat([transform_points(points, tr), torch.ones(2, 1).double()], 1) @ projection.T
    found = project(points, from_lidar, intrinsics)
    torch.testing.assert_close(found.uv, image[:, :2] / image[:, 2:])
    rectified = project_rectified(points, tr, projection)
    depth = transform_points(points, tr)[:, 2]
    torch.testing.assert_close(rectified.uv, image[:, :2] / depth[:, None])
    torch.testing.assert_close(rectified.depth, depth)


def test_kitti_camera_without_the_lidar_translation() -> None:
    projection, tr = kitti()
    _, complete = kitti_camera(projection, tr)
    _, partial = kitti_camera(projection, tr, lidar_translation=False)
    torch.testing.assert_close(complete[:3, 3] - partial[:3, 3], tr[:3, 3])
    torch.testing.assert_close(complete[:3, :3], partial[:3, :3])


def test_float32_chain_is_close_to_one_float64_matrix() -> None:
    steps = [
        pose_from_quaternion((1, 0.01 * i, 0, 0.3 * i), (700.0 * i, 1500.0 * i, 1.8))
        for i in range(4)
    ]
    points = torch.randn((500, 3), generator=torch.Generator().manual_seed(0)) * 30
    chained = devkit_float32_chain(points, *steps)
    exact = transform_points(points, camera_from_lidar(*steps))
    assert chained.dtype == torch.float32
    assert 0 < (chained - exact).abs().max() < 2e-3
