"""Cells of a grid by brute force in float64; mirrored scenes by mirrored pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Frame
from lidarssl.geometry.boxes import points_in_boxes
from lidarssl.geometry.poses import planar_motion, transform_points
from lidarssl.geometry.projection import project
from lidarssl.transforms.displacement import displace
from lidarssl.transforms.grid_matches import (
    MatchGrid,
    MirrorIntrinsics,
    MirrorScene,
    SwapChannels,
    grid_intrinsics,
    match_grid,
    mirror_scene,
)
from lidarssl.transforms.paired import MatchPixels
from transforms.scenes import HEIGHT, WIDTH, apply_purely, make_frame, same

STRIDES = [1, 2, 5, 10]
seeds = st.integers(0, 2**32 - 1)
Row = tuple[int, int, int, int]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def image_pixels(points: torch.Tensor, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) (col, row) in pixels of the image and (N,) depth, one point after the other."""
    pose, intrinsics = camera.camera_from_lidar.numpy(), camera.intrinsics.numpy()
    seen = np.array([pose[:3, :3] @ p + pose[:3, 3] for p in points.double().numpy()])
    focal, centre = np.diag(intrinsics)[:2], intrinsics[:2, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return focal * seen[:, :2] / seen[:, 2:] + centre, seen[:, 2]


def brute_force(frame: Frame, stride: int, min_depth: float, centers: bool) -> set[Row]:
    """(image, point, row, col) by the edges of cells, never by a reduced K."""
    rows = set()
    for number, camera in enumerate(frame.cameras):
        uv, depth = image_pixels(frame.points, camera)
        for point, ((u, v), z) in enumerate(zip(uv.tolist(), depth.tolist(), strict=True)):
            if not z > min_depth:
                continue
            if centers and -0.5 <= u < WIDTH - 0.5 and -0.5 <= v < HEIGHT - 0.5:
                rows.add((number, point, int((v + 0.5) // stride), int((u + 0.5) // stride)))
            if not centers:
                u, v = u / stride, v / stride
                if 0 <= u <= WIDTH / stride - 1 and 0 <= v <= HEIGHT / stride - 1:
                    rows.add((number, point, round(v), round(u)))
    return rows


def pairs(frame: Frame) -> list[Row]:
    found = frame.matches
    columns = (found.image, found.point, found.row, found.col)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("centers", [True, False])
@pytest.mark.parametrize("min_depth", [0.0, 0.1, 3.0])
def test_cells_equal_brute_force(stride: int, centers: bool, min_depth: float) -> None:
    frame = apply_purely(MatchGrid(stride, min_depth, centers), make_frame(2000))
    found = pairs(frame)
    assert len(found) > 300
    assert len(set(found)) == len(found)
    assert set(found) == brute_force(frame, stride, min_depth, centers)
    assert found == sorted(found)


@settings(deadline=None)
@given(seeds, st.sampled_from(STRIDES))
def test_cells_of_any_scan(seed: int, stride: int) -> None:
    frame = replace(make_frame(60, seed), points=make_frame(60, seed).points / 10)
    matched = MatchGrid(stride)(frame, rng())
    assert set(pairs(matched)) == brute_force(frame, stride, 0.1, True)


@settings(deadline=None)
@given(seeds, st.floats(-15, 15), st.floats(-15, 15), st.floats(-math.pi, math.pi))
def test_a_displacement_changes_no_match(seed: int, x: float, y: float, angle: float) -> None:
    frame = make_frame(200, seed)
    before = set(pairs(MatchGrid(5)(frame, rng())))
    after = set(pairs(MatchGrid(5)(displace(frame, planar_motion((x, y), angle)), rng())))
    # Of a point near the edge of a cell the rounding to float32 decides.
    assert len(before ^ after) <= 4


def on_axis(uv: tuple[float, float], depth: float = 2.0) -> Frame:
    """One point that camera 0 of the scene sees at ``uv`` exactly."""
    frame = make_frame(1, cameras=1)
    pose = torch.eye(4, dtype=torch.float64)
    intrinsics = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]], dtype=torch.float64)
    camera = replace(frame.cameras[0], camera_from_lidar=pose, intrinsics=intrinsics)
    direction = [(uv[0] - 32) / 64, (uv[1] - 32) / 64, 1.0]
    return replace(frame, points=depth * torch.tensor([direction]), cameras=(camera,))


@pytest.mark.parametrize(
    ("u", "centers", "expected"),
    [
        (-0.75, True, None),
        (-0.5, True, 0),
        (4.25, True, 0),
        (4.75, True, 1),
        (WIDTH - 0.75, True, WIDTH // 5 - 1),
        (WIDTH - 0.5, True, None),
        (-0.25, False, None),
        (0.0, False, 0),
        (2.25, False, 0),
        (2.75, False, 1),
        (WIDTH - 5.0, False, WIDTH // 5 - 1),
        (WIDTH - 4.75, False, None),
    ],
)
def test_borders(u: float, centers: bool, expected: int | None) -> None:
    matches = match_grid(on_axis((u, 40.0)), 5, pixel_centers=centers)
    assert matches.col.tolist() == ([] if expected is None else [expected])


@pytest.mark.parametrize("depth", [-2.0, 0.0, 0.1])
def test_points_behind_at_or_too_near_the_camera_are_not_seen(depth: float) -> None:
    assert len(match_grid(on_axis((40.0, 40.0), depth), 5, 0.125)) == 0
    assert len(match_grid(on_axis((40.0, 40.0), depth), 5, 0.0)) == int(depth > 0)


def test_points_that_are_not_finite_are_not_seen() -> None:
    frame = on_axis((40.0, 40.0))
    bad = torch.tensor([[math.nan, 0, 2], [math.inf, 0, 2], [0, 0, math.inf], [0, 0, math.nan]])
    assert len(match_grid(replace(frame, points=bad.float()), 5)) == 0


def test_a_frame_that_no_camera_sees_has_no_matches() -> None:
    frame = MatchGrid(5, min_depth=1000.0)(make_frame(), rng())
    assert len(frame.matches) == 0
    assert frame.matches.image.dtype == torch.int64


def test_images_have_to_consist_of_whole_cells() -> None:
    with pytest.raises(ConfigError, match="90 x 160") as caught:
        MatchGrid(4)(make_frame(10), rng())
    assert "multiple of 4" in str(caught.value.remedy)


def test_frames_without_images_are_refused() -> None:
    with pytest.raises(DataError, match="no cameras"):
        MatchGrid(5)(make_frame(10, cameras=0), rng())
    frame = make_frame(10)
    blind = replace(frame, cameras=(replace(frame.cameras[0], image=None),))
    for transform in (MatchGrid(5), MirrorScene(1.0), MirrorIntrinsics(1.0), SwapChannels()):
        with pytest.raises(DataError, match="has no image"):
            transform(blind, rng())


def test_arguments_that_mean_nothing_are_refused() -> None:
    for build in (
        lambda: MatchGrid(0),
        lambda: MatchGrid(min_depth=-1.0),
        lambda: MatchGrid(min_depth=math.nan),
        lambda: MatchGrid(min_depth=math.inf),
        lambda: MirrorScene(1.5),
        lambda: MirrorIntrinsics(math.nan),
    ):
        with pytest.raises(ConfigError):
            build()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None)
@given(seeds, st.sampled_from(STRIDES), st.booleans())
def test_grid_intrinsics_of_batches(
    dtype: torch.dtype, seed: int, stride: int, centers: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    intrinsics = torch.zeros((2, 3, 3, 3), dtype=dtype)
    intrinsics[..., :2, :] = 1000 * torch.rand((2, 3, 2, 3), dtype=dtype, generator=generator)
    intrinsics[..., 1, 0] = 0
    intrinsics[..., 2, 2] = 1
    found = grid_intrinsics(intrinsics, stride, centers)
    assert found.dtype == dtype
    rays = torch.rand((2, 3, 3, 1), dtype=dtype, generator=generator) + 0.1
    pixel, cell = intrinsics @ rays, found @ rays
    pixel, cell = pixel[..., :2, 0] / pixel[..., 2:, 0], cell[..., :2, 0] / cell[..., 2:, 0]
    expected = (pixel + 0.5) / stride - 0.5 if centers else pixel / stride
    torch.testing.assert_close(cell, expected)
    torch.testing.assert_close(found[1, 2], grid_intrinsics(intrinsics[1, 2], stride, centers))


@settings(deadline=None)
@given(seeds)
def test_a_mirrored_scene_projects_to_mirrored_pixels(seed: int) -> None:
    frame = make_frame(200, seed)
    mirrored = mirror_scene(frame)
    assert torch.equal(mirrored.points, frame.points * torch.tensor([1.0, -1.0, 1.0]))
    for before, after in zip(frame.cameras, mirrored.cameras, strict=True):
        expected = project(frame.points, before.camera_from_lidar, before.intrinsics)
        found = project(mirrored.points, after.camera_from_lidar, after.intrinsics)
        torch.testing.assert_close(found.depth, expected.depth, atol=1e-9, rtol=0)
        seen = expected.depth > 0.5
        uv = expected.uv[seen]
        uv[:, 0] = WIDTH - 1 - uv[:, 0]
        torch.testing.assert_close(found.uv[seen], uv, atol=1e-7, rtol=1e-9)


def test_a_mirrored_camera_is_a_camera() -> None:
    frame = make_frame(200)
    frame.cameras[0].intrinsics[0, 1] = 0.25
    mirrored = mirror_scene(frame)
    for before, after in zip(frame.cameras, mirrored.cameras, strict=True):
        rotation = after.camera_from_lidar[:3, :3]
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
        assert float(torch.linalg.det(rotation)) == pytest.approx(1)
        expected = before.intrinsics * torch.tensor([1.0, -1.0, 1.0])
        expected[0, 2] = WIDTH - 1 - before.intrinsics[0, 2]
        expected[1:] = before.intrinsics[1:]
        torch.testing.assert_close(after.intrinsics, expected)
        assert after.features is None
        for name in ("image", "superpixels", "labels"):
            assert torch.equal(getattr(after, name), getattr(before, name).flip(-1))


def test_pose_and_boxes_follow_a_mirrored_scene() -> None:
    frame = make_frame(500)
    mirrored = mirror_scene(frame)
    torch.testing.assert_close(
        transform_points(mirrored.points, mirrored.pose), transform_points(frame.points, frame.pose)
    )
    inside = points_in_boxes(frame.points, frame.boxes)
    assert inside.any()
    assert torch.equal(points_in_boxes(mirrored.points, mirrored.boxes), inside)


def test_mirroring_twice_changes_nothing() -> None:
    frame = make_frame(200)
    twice = mirror_scene(mirror_scene(frame))
    assert torch.equal(twice.points, frame.points)
    for before, after in zip(frame.cameras, twice.cameras, strict=True):
        assert same(after.image, before.image)
        torch.testing.assert_close(after.intrinsics, before.intrinsics)
        torch.testing.assert_close(after.camera_from_lidar, before.camera_from_lidar)


@settings(deadline=None)
@given(seeds)
def test_cells_of_a_mirrored_scene_are_mirrored(seed: int) -> None:
    frame = make_frame(200, seed)
    before = pairs(MatchGrid(5)(frame, rng()))
    after = pairs(MatchGrid(5)(mirror_scene(frame), rng()))
    assert after == [(i, p, row, WIDTH // 5 - 1 - col) for i, p, row, col in before]


def test_one_draw_mirrors_all_of_a_frame_or_nothing() -> None:
    frame = make_frame(20)
    random = np.random.default_rng(0)
    mirrored = 0
    for _ in range(200):
        found = MirrorScene(0.3)(frame, random)
        same_images = {
            torch.equal(a.image, b.image) for a, b in zip(found.cameras, frame.cameras, strict=True)
        }
        assert same_images == {torch.equal(found.points, frame.points)}
        mirrored += same_images == {False}
    assert 35 <= mirrored <= 85
    apply_purely(MirrorScene(1.0), frame)
    assert MirrorScene(0.0)(frame, rng()) is frame


def test_mirrored_intrinsics_leave_everything_else() -> None:
    frame = make_frame(50)
    for camera in frame.cameras:
        camera.intrinsics[0, 2] = 70.0
    found = apply_purely(MirrorIntrinsics(1.0), frame)
    for before, after in zip(frame.cameras, found.cameras, strict=True):
        grid = grid_intrinsics(after.intrinsics, 5, pixel_centers=False)
        expected = before.intrinsics / 5
        # The published rule: columns of the grid minus cx of the grid.
        expected[0, 2] = WIDTH / 5 - expected[0, 2]
        expected[2, 2] = 1
        torch.testing.assert_close(grid, expected)
        assert same(replace(after, intrinsics=before.intrinsics), before)
    assert torch.equal(found.points, frame.points)


def test_intrinsics_are_mirrored_camera_by_camera() -> None:
    frame = make_frame(5)
    for camera in frame.cameras:
        camera.intrinsics[0, 2] = 70.0
    random = np.random.default_rng(0)
    seen = [
        tuple(
            float(camera.intrinsics[0, 2]) for camera in MirrorIntrinsics()(frame, random).cameras
        )
        for _ in range(200)
    ]
    assert len(set(seen)) == 8
    assert min(map(seen.count, set(seen))) > 8


@pytest.mark.parametrize("transform", [MirrorScene(0.0), MirrorIntrinsics(0.0)])
def test_matches_made_before_a_mirroring_are_refused(transform: object) -> None:
    matched = MatchPixels()(make_frame(), rng())
    with pytest.raises(ConfigError, match="leave the matches behind"):
        transform(matched, rng())


def test_channels_are_swapped_and_old_features_dropped() -> None:
    frame = make_frame(5)
    cameras = tuple(replace(c, features=torch.zeros((2, 3, 4))) for c in frame.cameras)
    frame = replace(frame, cameras=cameras)
    for before, after in zip(
        frame.cameras, apply_purely(SwapChannels(), frame).cameras, strict=True
    ):
        for channel in range(3):
            assert torch.equal(after.image[channel], before.image[2 - channel])
        assert after.features is None
        assert torch.equal(after.intrinsics, before.intrinsics)
