"""A2D2: which scans count, how scenes are split, and where points land in the undistorted image."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset_files import image_bytes, write
from image_dataset_files import (
    FISHEYE,
    LENS_MATRIX,
    SCENES,
    TELECAM,
    VIEW_HEIGHT,
    VIEW_MATRIX,
    VIEW_WIDTH,
    a2d2_arrays,
    a2d2_calibration,
    npz_bytes,
    photo_path,
    scan_path,
    write_a2d2,
)
from lidarssl.datasets.a2d2 import CAMERAS, A2d2, camera_from_view
from lidarssl.datasets.a2d2_files import SCAN_LIMIT, is_usable, parse_camera, parse_scan
from lidarssl.datasets.image_files import read_image
from lidarssl.datasets.inspect import check
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId
from lidarssl.geometry.projection import project

PATH = Path("scan.npz")
JSON = Path("cams_lidars.json")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_a2d2(tmp_path / "camera_lidar")


def rewrite(root: Path, number: int, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    """Another content for a scan of the first scene."""
    arrays = a2d2_arrays(number)
    change(arrays)
    return write(scan_path(root, SCENES[0], number), npz_bytes(arrays))


def test_a_frame_is_what_the_arrays_say(root: Path) -> None:
    frame = A2d2(root).load(FrameId("a2d2", SCENES[0], "000000006"))
    arrays = a2d2_arrays(2)
    np.testing.assert_allclose(frame.points.numpy(), arrays["points"], rtol=1e-6)
    assert frame.intensity.tolist() == arrays["reflectance"].tolist()
    assert frame.ring is None
    assert frame.intensity_statistics is None
    assert frame.time is not None
    np.testing.assert_allclose(frame.time.numpy(), (arrays["timestamp"] % 1_000_000) / 1e6)


def test_early_names_of_the_arrays(root: Path) -> None:
    arrays = a2d2_arrays(2)
    old = {"pcloud_points": arrays.pop("points")}
    old |= {f"pcloud_attr.{name}": values for name, values in arrays.items()}
    new, before = parse_scan(npz_bytes(a2d2_arrays(2)), PATH), parse_scan(npz_bytes(old), PATH)
    assert torch.equal(new.cloud.points, before.cloud.points)
    assert torch.equal(new.cloud.intensity, before.cloud.intensity)
    assert new.time is not None
    assert before.time is not None
    assert torch.equal(new.time, before.time)


def test_points_land_on_the_stored_pixels(root: Path) -> None:
    dataset = A2d2(root)
    for frame_id in dataset.frames("all"):
        frame = dataset.load(frame_id, Field.IMAGES)
        arrays = a2d2_arrays(int(frame_id.token) // 3)
        (camera,) = frame.cameras
        pixels = project(frame.points.double(), camera.camera_from_lidar, camera.intrinsics)
        np.testing.assert_allclose(pixels.uv[:, 0].numpy(), arrays["col"], atol=1e-4)
        np.testing.assert_allclose(pixels.uv[:, 1].numpy(), arrays["row"], atol=1e-4)
        assert bool((pixels.depth > 0).all())


def test_the_view_frame_is_turned_to_a_camera_frame() -> None:
    forward, left, up = (torch.eye(3)[axis].double() for axis in range(3))
    turn = camera_from_view()[:3, :3]
    assert (turn @ forward).tolist() == [0, 0, 1]
    assert (turn @ left).tolist() == [-1, 0, 0]
    assert (turn @ up).tolist() == [0, -1, 0]
    assert camera_from_view()[3].tolist() == [0, 0, 0, 1]
    assert camera_from_view()[:3, 3].tolist() == [0, 0, 0]


def brown(x: float, y: float) -> tuple[float, float]:
    k1, k2, p1, p2, k3 = TELECAM[0]
    r = x * x + y * y
    radial = 1 + k1 * r + k2 * r**2 + k3 * r**3
    return (
        x * radial + 2 * p1 * x * y + p2 * (r + 2 * x * x),
        y * radial + p1 * (r + 2 * y * y) + 2 * p2 * x * y,
    )


def fisheye(x: float, y: float) -> tuple[float, float]:
    radius = np.hypot(x, y)
    angle = np.arctan(radius)
    landed = angle + sum(k * angle ** (2 * n + 3) for n, k in enumerate(FISHEYE[0]))
    return x * landed / radius, y * landed / radius


def plainly(image: np.ndarray, lens: Callable[[float, float], tuple[float, float]]) -> np.ndarray:
    """Each pixel of the pinhole image in float64; NaN where the lens saw part of it or nothing."""
    (fx, _, cx), (_, fy, cy), _ = VIEW_MATRIX
    (gx, _, dx), (_, gy, dy), _ = LENS_MATRIX
    out = np.full(image.shape, np.nan)
    for row in range(VIEW_HEIGHT):
        for col in range(VIEW_WIDTH):
            x, y = lens((col - cx) / fx, (row - cy) / fy)
            u, v = gx * x + dx, gy * y + dy
            i, j = int(np.floor(v)), int(np.floor(u))
            if 0 <= i < VIEW_HEIGHT - 1 and 0 <= j < VIEW_WIDTH - 1:
                corners = image[:, i : i + 2, j : j + 2].astype(np.float64)
                out[:, row, col] = (corners * np.outer([1 - v + i, v - i], [1 - u + j, u - j])).sum(
                    (1, 2)
                )
    return out


@pytest.mark.parametrize("camera", CAMERAS)
def test_images_are_those_of_a_pinhole_camera(tmp_path: Path, camera: str) -> None:
    root = write_a2d2(tmp_path, (2,), (camera,))
    dataset = A2d2(root, camera=camera)
    (seen,) = dataset.load(dataset.frames("train")[1]).cameras
    stored, _ = read_image(photo_path(scan_path(root, SCENES[0], 3, camera)))
    assert seen.name == camera
    assert seen.intrinsics.tolist() == VIEW_MATRIX
    assert seen.image is not None
    wanted = plainly(stored.numpy(), brown if camera == "cam_front_center" else fisheye)
    whole = ~np.isnan(wanted)
    assert whole.mean() > 0.7
    assert np.abs(seen.image.numpy() - wanted)[whole].max() < 0.51
    as_stored = A2d2(root, camera=camera, undistort=False).load(dataset.frames("train")[1])
    assert as_stored.cameras[0].image is not None
    assert torch.equal(as_stored.cameras[0].image, stored)
    assert as_stored.cameras[0].intrinsics.tolist() == LENS_MATRIX


def test_images_and_matrices_shrink_together(root: Path) -> None:
    frame_id = FrameId("a2d2", SCENES[0], "000000000")
    (whole,) = A2d2(root).load(frame_id).cameras
    (half,) = A2d2(root, image_scale=0.5).load(frame_id).cameras
    assert half.image is not None
    assert half.image.shape == (3, VIEW_HEIGHT // 2, VIEW_WIDTH // 2)
    for axis in range(2):
        focal, centre = whole.intrinsics[axis, axis], whole.intrinsics[axis, 2]
        assert half.intrinsics[axis, axis] == focal / 2
        assert half.intrinsics[axis, 2] == pytest.approx((centre + 0.5) / 2 - 0.5)
    smooth = np.full((VIEW_HEIGHT, VIEW_WIDTH, 3), 0, np.uint8)
    smooth[..., 0] = 2 * np.arange(VIEW_WIDTH) + 40
    smooth[..., 1] = 3 * np.arange(VIEW_HEIGHT)[:, None] + 40
    path = photo_path(scan_path(root, SCENES[0], 0))
    _save(path, smooth)
    (whole,), (half,) = (
        A2d2(root, image_scale=scale).load(frame_id).cameras for scale in (1.0, 0.5)
    )
    assert whole.image is not None
    assert half.image is not None
    pooled = torch.nn.functional.avg_pool2d(whole.image.float(), 2)
    inside = (slice(None), slice(4, -4), slice(6, -6))
    assert (pooled[inside] - half.image[inside]).abs().max() < 3


def _save(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


@given(st.integers(0, 300), st.floats(0, 0.5))
def test_the_last_of_a_scene_are_validation(count: int, ratio: float) -> None:
    tokens = [f"{number:09d}" for number in range(count)]
    dataset = A2d2.__new__(A2d2)
    dataset.val_ratio = ratio
    train, val = dataset._part(tokens, "train"), dataset._part(tokens, "val")
    assert train + val == tokens == dataset._part(tokens, "all")
    assert len(val) == int(count * ratio)
    assert len(val) <= len(train)


def test_splits_go_by_scene_in_sorted_order(root: Path) -> None:
    def numbers(dataset: A2d2, split: str) -> list[tuple[str, int]]:
        return [(frame.sequence, int(frame.token)) for frame in dataset.frames(split)]

    first, second = SCENES
    assert numbers(A2d2(root), "val") == [(first, 21), (second, 18)]
    assert numbers(A2d2(root, val_ratio=0.3), "val") == [
        (first, 18), (first, 21), (second, 15), (second, 18)
    ]  # fmt: skip
    assert len(numbers(A2d2(root), "train")) == 13
    assert numbers(A2d2(root), "all") == [
        *((first, 3 * n) for n in range(8)), *((second, 3 * n) for n in range(7))
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"split 'val' of the 15 usable .* is empty"):
        A2d2(root, val_ratio=0.1).frames("val")
    for ratio in (-0.1, 0.51, float("nan")):
        with pytest.raises(ConfigError, match="val_ratio"):
            A2d2(root, val_ratio=ratio)


def test_scans_that_hold_nothing_are_left_out_before_the_split(root: Path) -> None:
    """Two of the eight of a scene go: the last sixth of the others is validation."""
    rewrite(root, 21, lambda arrays: [arrays.pop(key) for key in ("reflectance", "row", "col")])
    rewrite(root, 3, lambda arrays: arrays.update(points=np.zeros((0, 3))))
    dataset = A2d2(root, val_ratio=0.2)
    assert [int(frame.token) for frame in dataset.frames("all")[:6]] == [0, 6, 9, 12, 15, 18]
    assert [int(frame.token) for frame in dataset.frames("val")] == [18, 18]
    told = "2 of the 15 scans, which hold no point or lack reflectance, row or col"
    assert dataset.absent("train") == dataset.absent("val") == told
    report = check(dataset, "all", progress=False)
    assert report.ok
    assert (report.frames, report.absent) == (13, told)
    assert f"not here: {told}" in str(report)
    for number, problem in ((21, "has no array reflectance, row, col"), (3, "has shape")):
        with pytest.raises(DataError, match=problem):
            dataset.load(FrameId("a2d2", SCENES[0], f"{number:09d}"))


def test_an_empty_cloud_is_told(root: Path) -> None:
    def empty(arrays: dict[str, np.ndarray]) -> None:
        arrays.update({name: values[:0] for name, values in arrays.items()})

    path = rewrite(root, 0, empty)
    assert FrameId("a2d2", SCENES[0], "000000000") not in A2d2(root).frames("all")
    with pytest.raises(DataError, match=r"has 0 points.*\n.*field: points") as caught:
        A2d2(root).load(FrameId("a2d2", SCENES[0], "000000000"))
    assert str(path) in str(caught.value)


def test_only_headers_decide_what_is_usable() -> None:
    """The values of an intact archive are never read: changing them changes nothing."""
    data = npz_bytes(a2d2_arrays(0))

    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            got = super().read(size)
            self.count += len(got)
            return got

    arrays = a2d2_arrays(0, 200_000)
    big = Counting(npz_bytes(arrays))
    assert is_usable(big, PATH)
    assert big.count < 30_000 < len(big.getvalue())
    assert is_usable(io.BytesIO(data), PATH)


def test_damaged_scans_stay_in_the_list_and_are_named(root: Path) -> None:
    path = scan_path(root, SCENES[0], 0)
    path.write_bytes(path.read_bytes()[:300])
    dataset = A2d2(root)
    assert len(dataset.frames("all")) == 15
    assert dataset.absent("all") == ""
    report = check(dataset, "all", progress=False)
    assert [problem.frame for problem in report.problems] == [f"a2d2/{SCENES[0]}/000000000"]
    assert f"{path}: is not a readable .npz archive" in report.problems[0].message


def test_neither_pipes_nor_huge_files_are_opened(root: Path) -> None:
    pipe, huge = (scan_path(root, SCENES[0], number) for number in (0, 3))
    pipe.unlink()
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(SCAN_LIMIT + 1)
    report = check(A2d2(root), "all", progress=False)
    messages = [problem.message for problem in report.problems]
    assert len(messages) == 2
    assert f"{pipe}: is not a regular file" in messages[0]
    assert f"{huge}: has {SCAN_LIMIT + 1} bytes; at most {SCAN_LIMIT} are read" in messages[1]


def _set(name: str, values: np.ndarray) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda arrays: arrays.update({name: values})


def _nan(arrays: dict[str, np.ndarray]) -> None:
    arrays["points"][7, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda arrays: arrays.pop("points"), "has no array points"),
        (lambda arrays: arrays.pop("col"), "has no array col"),
        (_set("points", np.zeros((40, 4))), r"has shape \(40, 4\), not \(points, 3\)"),
        (_set("points", np.zeros(40)), r"has shape \(40,\), not \(points, 3\)"),
        (_set("points", np.zeros((40, 3), np.complex64)), "type complex64"),
        (_set("points", np.full((40, 3), 1e9)), "1e[+]09 m from the lidar"),
        (_nan, "1 of 40 points are NaN or infinite, the first in row 7"),
        (_set("reflectance", np.zeros(39)), r"has shape \(39,\), but there are 40 points"),
        (_set("row", np.zeros((40, 1))), r"has shape \(40, 1\), but there are 40 points"),
        (_set("reflectance", np.full(40, "a")), "type <U1"),
        (_set("reflectance", np.full(40, None)), "type object"),
        (_set("timestamp", np.zeros(3)), r"has shape \(3,\), but there are 40 points"),
        (_set("timestamp", np.full(40, np.nan)), "a time is NaN"),
        (_set("timestamp", np.arange(40) * 10**15), "far from the others"),
    ],
)
def test_bad_scans(root: Path, change: Callable[[Any], Any], problem: str) -> None:
    path = rewrite(root, 0, change)
    with pytest.raises(DataError, match=problem) as caught:
        A2d2(root).load(FrameId("a2d2", SCENES[0], "000000000"))
    assert str(path) in str(caught.value)
    assert "field: " in str(caught.value)
    assert "remedy: " in str(caught.value)


def test_scans_without_times(root: Path) -> None:
    rewrite(root, 0, lambda arrays: arrays.pop("timestamp"))
    assert A2d2(root).load(FrameId("a2d2", SCENES[0], "000000000")).time is None


def test_an_image_of_another_size_than_the_calibration(root: Path) -> None:
    path = photo_path(scan_path(root, SCENES[0], 0))
    path.write_bytes(image_bytes(0, "PNG", 40, 60))
    with pytest.raises(DataError, match=r"60 x 40 pixels, but .*cams_lidars\.json says 64 x 40"):
        A2d2(root).load(FrameId("a2d2", SCENES[0], "000000000"))


def test_a_missing_image_or_calibration(root: Path) -> None:
    photo_path(scan_path(root, SCENES[0], 0)).unlink()
    with pytest.raises(DataError, match="file not found"):
        A2d2(root).load(FrameId("a2d2", SCENES[0], "000000000"))
    (root / "cams_lidars.json").unlink()
    with pytest.raises(DataError, match=r"(?s)cams_lidars\.json: file not found.*download"):
        A2d2(root).load(FrameId("a2d2", SCENES[0], "000000003"))
    assert len(A2d2(root).load(FrameId("a2d2", SCENES[0], "000000003"), Field.NONE)) == 40


def test_scans_without_images(root: Path) -> None:
    for scene in SCENES:
        for path in (root / scene / "camera" / "cam_front_center").iterdir():
            path.unlink()
        (root / scene / "camera" / "cam_front_center").rmdir()
    dataset = A2d2(root)
    assert dataset.provides("train") == Field.NONE
    assert dataset.load(dataset.frames("train")[0]).cameras == ()


def test_where_the_calibration_is_looked_for(root: Path, tmp_path: Path) -> None:
    assert A2d2(root).calibration == root / "cams_lidars.json"
    beside = (root / "cams_lidars.json").rename(tmp_path / "cams_lidars.json")
    assert A2d2(root).calibration == beside
    given = beside.rename(tmp_path / "own.json")
    assert A2d2(root, calibration=given).load(A2d2(root).frames("all")[0]).cameras


def _without(*keys: str) -> dict[str, Any]:
    content = a2d2_calibration()
    entry: Any = content
    for key in keys[:-1]:
        entry = entry[key]
    del entry[keys[-1]]
    return content


def _with(key: str, value: Any) -> dict[str, Any]:
    content = a2d2_calibration()
    content["cameras"]["front_center"][key] = value
    return content


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ([], "cameras"),
        (_without("cameras"), "cameras"),
        (_without("cameras", "front_center"), "cameras.front_center"),
        ({"cameras": {"front_center": 3}}, "cameras.front_center"),
        (_without("cameras", "front_center", "CamMatrix"), "CamMatrix"),
        (_with("CamMatrix", [[1, 0, 0], [0, 1, 0]]), "CamMatrix"),
        (_with("CamMatrix", [[0, 0, 0], [0, 1, 0], [0, 0, 1]]), "CamMatrix"),
        (_with("CamMatrixOriginal", [[1, 0, 0], [0, "1", 0], [0, 0, 1]]), "CamMatrixOriginal"),
        (_with("Distortion", [[0.1] * 6]), "Distortion"),
        (_with("Distortion", [[1e30] * 5]), "Distortion"),
        (_with("Distortion", []), "Distortion"),
        (_with("Lens", "Plastic"), "Lens"),
        (_with("Lens", ["Telecam"]), "Lens"),
        (_with("Resolution", [1920]), "Resolution"),
        (_with("Resolution", [0, 1208]), "Resolution"),
        (_with("Resolution", [1920.5, 1208]), "Resolution"),
    ],
)
def test_bad_calibrations(content: Any, field: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_camera(json.dumps(content).encode(), JSON, "front_center")
    assert caught.value.field is not None
    assert field in caught.value.field
    assert caught.value.path == JSON
    assert caught.value.remedy


def test_a_fisheye_has_four_coefficients() -> None:
    content = _with("Lens", "Fisheye")
    with pytest.raises(DataError, match="is not a list of 4 numbers"):
        parse_camera(json.dumps(content).encode(), JSON, "front_center")


def test_malformed_json() -> None:
    with pytest.raises(DataError, match="malformed JSON"):
        parse_camera(b'{"cameras": ', JSON, "front_center")


def test_wrong_options(root: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'cam_front_left'"):
        A2d2(root, camera="front_left")
    with pytest.raises(ConfigError, match="image_scale"):
        A2d2(root, image_scale=0)
    with pytest.raises(DataError, match="split 'train' of the 0 usable scans of cam_side_left"):
        A2d2(root, camera="cam_side_left").frames("train")
