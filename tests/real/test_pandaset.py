"""Real scans of PandaSet against numbers that other code computed from the same files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lidarssl.datasets.inspect import check
from lidarssl.datasets.pandaset import CAMERAS, SENSORS, Pandaset, Sensor
from lidarssl.frame import Camera, Frame, FrameId
from lidarssl.geometry.boxes import points_in_boxes

pytestmark = pytest.mark.real

# As the table of expected numbers calls them.
NAMES: dict[Sensor, str] = {"pandar64": "pandar64", "pandar_gt": "pandargt"}
LIFT = 1.6


@pytest.fixture(scope="module")
def expected(data_root: Path) -> dict[str, Any]:
    return json.loads((data_root / "expected.json").read_text())["pandaset"]


@pytest.fixture(scope="module")
def root(data_root: Path) -> Path:
    return data_root / "pandaset"


@pytest.fixture(scope="module")
def train_ids(data_root: Path) -> dict[str, int]:
    """Train id of every raw label, as a string."""
    path = data_root.parent / "specs" / "tables" / "label_maps.json"
    if not path.is_file():
        pytest.skip(f"no label tables at {path}")
    return json.loads(path.read_text())["pandaset"]["map_scalr"]


def key(frame: FrameId) -> str:
    return f"{frame.sequence}/{frame.token}"


def seen_points(frame: Frame, camera: Camera) -> int:
    """Points with depth > 0, 0 < u < W and 0 < v < H, in float64 with plain matrix products."""
    homogeneous = np.c_[frame.points.numpy().astype(np.float64), np.ones(len(frame))]
    in_camera = homogeneous @ camera.camera_from_lidar.numpy().T
    u, v, depth = (in_camera[:, :3] @ camera.intrinsics.numpy().T).T
    u, v = u / depth, v / depth
    assert camera.image is not None
    _, height, width = camera.image.shape
    return int(((depth > 0) & (u > 0) & (u < width) & (v > 0) & (v < height)).sum())


def test_splits(root: Path, expected: dict[str, Any]) -> None:
    for sensor in SENSORS:
        dataset = Pandaset(root, sensor=sensor)
        assert [key(frame) for frame in dataset.frames("train")] == ["002/00", "002/01"]
        assert [key(frame) for frame in dataset.frames("val")] == ["902/00"]
        assert [key(frame) for frame in dataset.frames("all")] == list(expected)


def test_scans_and_cameras(root: Path, expected: dict[str, Any]) -> None:
    for sensor, name in NAMES.items():
        dataset = Pandaset(root, sensor=sensor, cameras=CAMERAS)
        for frame_id in dataset.frames("all"):
            frame, truth = dataset.load(frame_id), expected[key(frame_id)]
            assert len(frame) == truth[f"points_{name}"]
            width, height = truth["image_wh"]
            for camera in frame.cameras:
                assert camera.image is not None
                assert camera.image.shape == (3, height, width)
                assert seen_points(frame, camera) == truth["points_in_camera"][camera.name][name]
            if sensor == "pandar64":
                mean = frame.points.double().mean(0) + torch.tensor([0, 0, LIFT])
                assert mean.tolist() == pytest.approx(truth[f"ego_frame_mean_xyz_{name}"], abs=1e-5)
            assert frame.time is not None
            assert -0.2 < frame.time.min() < frame.time.max() < 0.1


def test_labels_of_both_sensors_make_the_histogram(
    root: Path, expected: dict[str, Any], train_ids: dict[str, int]
) -> None:
    counted: dict[str, Counter[int]] = {frame: Counter() for frame in expected}
    road = Pandaset.classes.names.index("road")
    for sensor, name in NAMES.items():
        dataset = Pandaset(root, sensor=sensor, cameras=())
        for frame_id in dataset.frames("all"):
            frame = dataset.load(frame_id)
            assert frame.semantic is not None
            counted[key(frame_id)].update(frame.semantic.tolist())
            height = float(frame.points[frame.semantic == road, 2].median()) + LIFT
            if sensor == "pandar64":
                truth = expected[key(frame_id)][f"median_z_of_road_in_sensor_frame_{name}"]
                assert height == pytest.approx(truth, abs=1e-4)
            assert -0.5 < height < -0.2
    for frame_name, truth in expected.items():
        histogram: Counter[int] = Counter()
        for raw, count in truth["class_histogram"].items():
            histogram[train_ids[raw]] += count
        assert counted[frame_name] == histogram


def test_mean_of_the_derived_scene(root: Path) -> None:
    dataset = Pandaset(root, cameras=())
    frame = dataset.load(dataset.frames("val")[0])
    mean = torch.cat([frame.points, frame.intensity[:, None]], 1).double().mean(0)
    assert mean.tolist() == pytest.approx([-5.711, 1.058, -0.372, 18.883], abs=5e-4)


def test_boxes_are_where_the_objects_are(root: Path, expected: dict[str, Any]) -> None:
    """Boxes hold points of their class (and of the road below), and many fewer after a quarter
    turn; no object stands twice, although the files have more boxes than either sensor gets."""
    for sensor in SENSORS:
        dataset = Pandaset(root, sensor=sensor, cameras=())
        held = turned = right = 0
        for frame_id in dataset.frames("all"):
            frame = dataset.load(frame_id)
            assert frame.boxes is not None
            assert frame.semantic is not None
            assert 70 < len(frame.boxes.yaw) < expected[key(frame_id)]["cuboids"]
            names = [dataset.box_classes[label] for label in frame.boxes.label]
            classes = torch.tensor([dataset.classes.names.index(name) for name in names])
            inside = points_in_boxes(frame.points, frame.boxes)
            held += int(inside.sum())
            right += int((inside & (frame.semantic[:, None] == classes)).sum())
            quarter = replace(frame.boxes, yaw=frame.boxes.yaw + np.pi / 2)
            turned += int(points_in_boxes(frame.points, quarter).sum())
            close = torch.cdist(frame.boxes.center, frame.boxes.center) < 0.5
            assert int(close.sum()) == len(names)
        assert turned < 0.6 * held
        assert right > 0.85 * held


@pytest.mark.parametrize("sensor", SENSORS)
def test_the_check_passes_and_counts_alike(
    root: Path, expected: dict[str, Any], sensor: Sensor
) -> None:
    """It leaves out a border of one pixel and what is nearer than 1 m: few points in a thousand."""
    dataset = Pandaset(root, sensor=sensor)
    report = check(dataset, "all", progress=False)
    assert report.ok
    assert report.provides == ["images", "semantic", "boxes", "pose"]
    assert set(report.pairs) == set(dataset.cameras)
    for camera, pairs in report.pairs.items():
        counts = [truth["points_in_camera"][camera][NAMES[sensor]] for truth in expected.values()]
        assert 0.998 * np.mean(counts) < pairs <= np.mean(counts)
