"""The real A2D2 scan, and the real labelled image in ACDC's layout."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lidarssl.datasets.a2d2 import A2d2
from lidarssl.datasets.acdc import Acdc
from lidarssl.datasets.inspect import check, stats
from lidarssl.errors import DataError
from lidarssl.frame import Field, FrameId

pytestmark = pytest.mark.real

SCAN = FrameId("a2d2", "20180810_142822", "000015196")
# Calibration of the front-centre camera as quoted by public code.
VIEW = np.array([[1687.3369140625, 0, 965.4341405582381],
                 [0, 1783.428466796875, 684.4193604186803], [0, 0, 1]])  # fmt: skip
LENS = np.array([[1844.1774422790927, 0, 964.4299052386386],
                 [0, 1841.5212239377258, 679.5331911948183], [0, 0, 1]])  # fmt: skip
K1 = -0.2611312587700434


@pytest.fixture(scope="module")
def a2d2(data_root: Path) -> A2d2:
    return A2d2(data_root / "a2d2" / "camera_lidar")


@pytest.fixture(scope="module")
def arrays(a2d2: A2d2) -> dict[str, np.ndarray]:
    folder = a2d2.root / SCAN.sequence / "lidar" / "cam_front_center"
    data = (folder / "20180810142822_lidar_frontcenter_000015196.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def test_a2d2_scan(a2d2: A2d2, arrays: dict[str, np.ndarray], data_root: Path) -> None:
    truth = json.loads((data_root / "expected.json").read_text())["a2d2"]
    assert a2d2.frames("train") == a2d2.frames("all") == [SCAN]
    frame = a2d2.load(SCAN)
    expected = truth["20180810_142822/000015196"]
    assert len(frame) == expected["points"] == 8196
    assert float(frame.intensity.max()) == expected["max_reflectance"]
    assert np.array_equal(frame.points.numpy(), arrays["points"].astype(np.float32))
    assert frame.time is not None
    seconds = (arrays["timestamp"] - arrays["timestamp"].min()) * 1e-6
    np.testing.assert_allclose(frame.time.numpy(), seconds, rtol=1e-6)
    assert 0.05 < float(frame.time.max()) < 0.2


def test_a2d2_has_no_validation_in_one_scan(a2d2: A2d2) -> None:
    """The published slice would put the only scan into validation, and none into training."""
    with pytest.raises(DataError, match="split 'val' of the 1 usable scans"):
        a2d2.frames("val")


def test_a2d2_points_project_to_the_stored_pixels(
    a2d2: A2d2, arrays: dict[str, np.ndarray]
) -> None:
    (camera,) = a2d2.load(SCAN, Field.IMAGES).cameras
    points = np.c_[arrays["points"], np.ones(len(arrays["points"]))]
    in_camera = points @ camera.camera_from_lidar.numpy().T
    u, v, depth = (in_camera[:, :3] @ camera.intrinsics.numpy().T).T
    assert np.abs(u / depth - arrays["col"]).max() < 1e-6
    assert np.abs(v / depth - arrays["row"]).max() < 1e-6
    np.testing.assert_allclose(depth, arrays["depth"], atol=1e-9)


def test_a2d2_image_is_undistorted(a2d2: A2d2) -> None:
    """A few thousand pixels of the pinhole image in float64, with bilinear weights by hand."""
    (camera,) = a2d2.load(SCAN, Field.IMAGES).cameras
    assert camera.image is not None
    assert camera.image.shape == (3, 1208, 1920)
    np.testing.assert_array_equal(camera.intrinsics.numpy(), VIEW)
    folder = a2d2.root / SCAN.sequence / "camera" / "cam_front_center"
    path = folder / "20180810142822_camera_frontcenter_000015196.png"
    stored = np.asarray(Image.open(path).convert("RGB")).astype(np.float64)
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, 1208, 4000), rng.integers(0, 1920, 4000)
    rays = np.linalg.inv(VIEW) @ np.stack([cols, rows, np.ones(4000)])
    radial = 1 + K1 * (rays[0] ** 2 + rays[1] ** 2)
    u, v, _ = LENS @ np.stack([rays[0] * radial, rays[1] * radial, np.ones(4000)])
    i, j = np.floor(v).astype(int), np.floor(u).astype(int)
    whole = (i >= 0) & (i < 1207) & (j >= 0) & (j < 1919)
    assert whole.mean() > 0.95
    u, v, i, j, rows, cols = (values[whole] for values in (u, v, i, j, rows, cols))
    down, right = (v - i)[:, None], (u - j)[:, None]
    wanted = (
        (stored[i, j] * (1 - down) + stored[i + 1, j] * down) * (1 - right)
        + (stored[i, j + 1] * (1 - down) + stored[i + 1, j + 1] * down) * right
    )  # fmt: skip
    found = camera.image.permute(1, 2, 0).numpy()[rows, cols]
    # Rays are float32: about 1e-4 pixels, beside the rounding to whole values.
    assert np.abs(found - wanted).max() < 0.55
    assert np.abs(found - stored[rows, cols]).mean() > 2, "the stored image is another"


def test_a2d2_check_and_stats(a2d2: A2d2, arrays: dict[str, np.ndarray]) -> None:
    report = check(a2d2, "all", progress=False)
    assert report.ok
    assert report.provides == ["images"]
    row, col = arrays["row"], arrays["col"]
    inside = (row > 0) & (row < 1207) & (col > 0) & (col < 1919)
    assert report.pairs["cam_front_center"] == inside.sum() == 8190
    numbers = stats(a2d2, "all", progress=False)
    assert numbers.intensity is not None
    assert numbers.intensity.mean == pytest.approx(arrays["reflectance"].mean())
    assert numbers.intensity.std == pytest.approx(arrays["reflectance"].std())


@pytest.mark.parametrize("split", ["train", "val"])
def test_acdc_layout(data_root: Path, split: str) -> None:
    root = data_root / "acdc"
    dataset = Acdc(root)
    (frame_id,) = dataset.frames(split)
    assert dataset.conditions(split) == {"night": [frame_id]}
    (camera,) = dataset.load(frame_id).cameras
    assert camera.image is not None
    assert camera.labels is not None
    path = next((root / "gt/night" / split).rglob("*_labelTrainIds.png"))
    raw = np.asarray(Image.open(path))
    assert raw.shape == camera.labels.shape == (128, 256)
    wanted = np.where(raw == 255, 0, raw.astype(np.int64) + 1)
    assert np.array_equal(camera.labels.numpy(), wanted)
    photo = next((root / "rgb_anon/night" / split).rglob("*_rgb_anon.png"))
    assert np.array_equal(camera.image.permute(1, 2, 0), np.asarray(Image.open(photo)))
    report = check(dataset, split, progress=False)
    assert report.ok
    assert report.conditions == {"night": 1}
    numbers = stats(dataset, split, progress=False)
    counts = Counter(wanted.flatten().tolist())
    assert list(numbers.class_pixels.values()) == [counts[index] for index in range(20)]


def test_acdc_of_half_size(data_root: Path) -> None:
    (whole,), (half,) = (
        Acdc(data_root / "acdc", image_scale=scale)
        .load(FrameId("acdc", "night_GOPR0001", "GOPR0001_frame_000001"))
        .cameras
        for scale in (1.0, 0.5)
    )
    assert whole.labels is not None
    assert half.labels is not None
    assert half.image is not None
    assert half.labels.shape == half.image.shape[1:] == (64, 128)
    assert torch.equal(half.labels, whole.labels[1::2, 1::2])
