"""Real frames against numbers that were computed from the same files by other code."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lidarssl.datasets.inspect import check, stats
from lidarssl.datasets.kitti_360 import Kitti360
from lidarssl.datasets.kitti_object import KittiObject
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.datasets.nuscenes_index import read_annotations
from lidarssl.datasets.nuscenes_tables import Category, read_rows
from lidarssl.datasets.once import Once
from lidarssl.datasets.semantic_kitti import INVERSE_LEARNING_MAP, LEARNING_MAP, SemanticKitti
from lidarssl.frame import Camera, Field, Frame
from lidarssl.geometry.boxes import points_in_boxes
from lidarssl.geometry.poses import (
    invert_pose,
    rotation_about_z,
    rotation_from_quaternion,
    transform_points,
)

pytestmark = pytest.mark.real

KITTI_POINTS = {
    "train": "car 62664, bicycle 555, motorcycle 319, truck 11833, other-vehicle 7911, "
    "person 2218, bicyclist 0, motorcyclist 233, road 770940, parking 31974, sidewalk 335571, "
    "other-ground 30968, building 207360, fence 96117, vegetation 518086, trunk 13896, "
    "terrain 373954, pole 13554, traffic-sign 4424, unlabeled 118629",
    "val": "car 6115, bicycle 64, person 636, road 71962, parking 366, sidewalk 96995, "
    "other-ground 2, building 7686, fence 1945, vegetation 65521, trunk 11614, terrain 77928, "
    "pole 1634, traffic-sign 2915, unlabeled 24307",
}


@pytest.fixture(scope="module")
def expected(data_root: Path) -> dict[str, Any]:
    return json.loads((data_root / "expected.json").read_text())


@pytest.fixture(scope="module")
def kitti(data_root: Path) -> SemanticKitti:
    return SemanticKitti(data_root / "semantic_kitti")


@pytest.fixture(scope="module")
def kitti_object(data_root: Path) -> KittiObject:
    return KittiObject(data_root / "kitti")


@pytest.fixture(scope="module")
def nuscenes(data_root: Path) -> NuScenes:
    return NuScenes(data_root / "nuscenes", "v1.0-mini")


def project(frame: Frame, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u, v, depth in float64 with plain matrix products."""
    homogeneous = np.c_[frame.points.numpy().astype(np.float64), np.ones(len(frame))]
    in_camera = homogeneous @ camera.camera_from_lidar.numpy().T
    u, v, depth = (in_camera[:, :3] @ camera.intrinsics.numpy().T).T
    return u / depth, v / depth, depth


def test_semantic_kitti_scans(kitti: SemanticKitti, expected: dict[str, Any]) -> None:
    ids = kitti.frames("trainval")
    assert {f"{frame.sequence}/{frame.token}" for frame in ids} == set(expected["semantic_kitti"])
    for frame_id in ids:
        frame = kitti.load(frame_id)
        truth = expected["semantic_kitti"][f"{frame_id.sequence}/{frame_id.token}"]
        assert len(frame) == truth["points"]
        camera = frame.cameras[0]
        assert camera.image is not None
        width, height = truth["image_wh"]
        assert camera.image.shape == (3, height, width)
        u, v, depth = project(frame, camera)
        inside = (depth > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        assert inside.sum() == truth["points_in_image_2"]
        assert frame.instance is not None
        assert len(frame.instance[frame.instance > 0].unique()) == truth["instances"]
        xyzi = torch.cat([frame.points, frame.intensity[:, None]], 1).double().mean(0)
        assert xyzi.tolist() == pytest.approx(truth["mean_xyzi"], abs=1e-6)
        histogram = Counter[int]()
        for raw, count in truth["raw_label_histogram"].items():
            histogram[LEARNING_MAP[int(raw)]] += count
        assert frame.semantic is not None
        values, counts = frame.semantic.unique(return_counts=True)
        assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == dict(histogram)


@pytest.mark.parametrize(("split", "scans"), [("train", 21), ("val", 3)])
def test_semantic_kitti_classes_of_a_split(kitti: SemanticKitti, split: str, scans: int) -> None:
    truth = {name: int(n) for name, n in (item.split() for item in KITTI_POINTS[split].split(", "))}
    report = stats(kitti, split, progress=False)
    assert report.frames == scans
    assert {name: n for name, n in report.class_points.items() if n or name in truth} == truth


def test_semantic_kitti_label_table(data_root: Path) -> None:
    path = data_root.parent / "specs" / "tables" / "label_maps.json"
    if not path.is_file():
        pytest.skip(f"no label tables at {path}")
    truth = json.loads(path.read_text())
    assert {str(raw): train for raw, train in LEARNING_MAP.items()} == truth["semantic_kitti"][
        "map"
    ]
    inverse = {str(train): raw for train, raw in enumerate(INVERSE_LEARNING_MAP)}
    assert inverse == truth["semantic_kitti"]["inverse"]
    assert list(SemanticKitti.classes.names) == truth["semantic_kitti"]["train_names"]
    names = truth["nuscenes"]["raw_names"]
    nuscenes = {
        names[raw]: truth["nuscenes"]["train_names"][train]
        for raw, train in truth["nuscenes"]["map"].items()
    }
    assert NuScenes.class_of_category == nuscenes
    assert list(NuScenes.classes.names) == truth["nuscenes"]["train_names"]


def test_semantic_kitti_poses_move_the_lidar(kitti: SemanticKitti) -> None:
    """Scan 0 -> 9 of drive 07 moves 1.0 m and of 02 moves 13.6 m; walls stay where they are."""
    for sequence, metres in (("07", 1.0), ("02", 13.6)):
        ids = [frame for frame in kitti.frames("train") if frame.sequence == sequence]
        first, last = (kitti.load(frame, Field.POSE).pose for frame in (ids[0], ids[-1]))
        assert first is not None
        assert last is not None
        torch.testing.assert_close(first, torch.eye(4).double(), atol=1e-6, rtol=0)
        assert float(last[:3, 3].norm()) == pytest.approx(metres, abs=0.06)


@pytest.mark.parametrize(("split", "scene"), [("train", "scene-0061"), ("val", "scene-0103")])
def test_nuscenes_key_frame(
    nuscenes: NuScenes, expected: dict[str, Any], split: str, scene: str
) -> None:
    truth = expected["nuscenes"][scene]
    (frame_id,) = nuscenes.frames(split)
    assert frame_id.sequence == scene
    frame = nuscenes.load(frame_id)
    assert len(frame) == truth["points"]
    assert frame.ring is not None
    assert len(frame.ring.unique()) == truth["rings"]
    assert float(frame.intensity.max()) == truth["max_intensity"]
    assert [camera.name for camera in frame.cameras] == list(NuScenes.default_cameras)
    for camera in frame.cameras:
        u, v, depth = project(frame, camera)
        inside = (depth > 1) & (u > 1) & (u < 1599) & (v > 1) & (v < 899)
        assert inside.sum() == truth["points_in_camera"][camera.name]
    histogram = Counter[int]()
    categories = {row.index: row.name for row in read_rows(nuscenes.index.folder, Category)}
    for raw, count in truth["pseudo_lidarseg_histogram"].items():
        name = nuscenes.class_of_category[categories[int(raw)]]
        histogram[nuscenes.classes.names.index(name)] += count
    assert frame.semantic is not None
    values, counts = frame.semantic.unique(return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == dict(histogram)


def test_nuscenes_boxes_contain_the_points_the_tables_count(
    nuscenes: NuScenes, expected: dict[str, Any]
) -> None:
    """Exactly, with points moved to the world by the frame's pose and boxes as the tables have
    them; nearly, with the frame's boxes, whose only angle is about the tilted lidar's z."""
    categories = [row.name for row in read_rows(nuscenes.index.folder, Category)]
    everything = {name: index for index, name in enumerate(categories)}
    samples = list(nuscenes.index.key_frames)
    annotations = read_annotations(nuscenes.index.folder, samples, everything)
    for frame_id in nuscenes.frames("train") + nuscenes.frames("val"):
        frame = nuscenes.load(frame_id)
        assert frame.pose is not None
        first, last = annotations.rows[frame_id.token]
        values = torch.from_numpy(annotations.values[first:last])
        truth = expected["nuscenes"][frame_id.sequence]
        counted = count_inside(
            transform_points(frame.points, frame.pose),
            values[:, :3],
            rotation_from_quaternion(values[:, 6:]),
            values[:, [4, 3, 5]],
        )
        assert counted == annotations.lidar_points[first:last].tolist()
        assert (len(counted), sum(counted)) == (truth["boxes"], truth["points_in_boxes"])

        boxes = annotations.boxes(frame_id.token, invert_pose(frame.pose))
        rotations = torch.stack([rotation_about_z(float(yaw)) for yaw in boxes.yaw])
        flat = count_inside(
            frame.points.double(), boxes.center.double(), rotations, boxes.size.double()
        )
        difference = np.subtract(flat, counted)
        assert np.abs(difference).sum() < 0.04 * sum(counted)
        assert np.count_nonzero(difference) < 0.2 * len(counted)
        # One box of each frame is a pushable_pullable, which is no detection class.
        assert frame.boxes is not None
        assert len(frame.boxes.yaw) == truth["boxes"] - 1


def count_inside(
    points: torch.Tensor, centers: torch.Tensor, rotations: torch.Tensor, sizes: torch.Tensor
) -> list[int]:
    return [
        int((((points - center) @ rotation).abs() <= size / 2).all(1).sum())
        for center, rotation, size in zip(centers, rotations, sizes, strict=True)
    ]


def test_kitti_object_frames(kitti_object: KittiObject, expected: dict[str, Any]) -> None:
    ids = kitti_object.frames("trainval")
    assert {frame.token for frame in ids} == set(expected["kitti"])
    assert [frame.token for frame in kitti_object.frames("train")] == ["000000", "000010"]
    for frame_id in ids:
        truth = expected["kitti"][frame_id.token]
        frame = kitti_object.load(frame_id)
        assert len(frame) == truth["points"]
        xyzi = torch.cat([frame.points, frame.intensity[:, None]], 1).double().mean(0)
        assert xyzi.tolist() == pytest.approx(truth["mean_xyzi"], abs=1e-6)
        camera = frame.cameras[0]
        assert camera.image is not None
        width, height = truth["image_wh"]
        assert camera.image.shape == (3, height, width)
        u, v, depth = project(frame, camera)
        inside = (depth > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        assert inside.sum() == truth["points_in_image_2"]
        counted = Counter(line.kind for line in kitti_object.labels(frame_id))
        assert dict(counted) == truth["objects"]
        assert frame.boxes is not None
        names = Counter(kitti_object.box_classes[label] for label in frame.boxes.label.tolist())
        assert dict(names) == {k: n for k, n in truth["objects"].items() if k != "DontCare"}


def test_kitti_object_boxes_are_where_the_objects_are(kitti_object: KittiObject) -> None:
    """Every box holds points, and stands on ground that its own points end at; its middle falls
    into the box that the annotator drew in the image, which turned boxes would still do, so a
    quarter turn must hold fewer points."""
    held, turned = 0, 0
    for frame_id in kitti_object.frames("trainval"):
        frame = kitti_object.load(frame_id)
        assert frame.boxes is not None
        inside = points_in_boxes(frame.points, frame.boxes)
        assert bool((inside.sum(0) >= 5).all())
        held += int(inside.sum())
        quarter = replace(frame.boxes, yaw=frame.boxes.yaw + np.pi / 2)
        turned += int(points_in_boxes(frame.points, quarter).sum())
        centers = replace(frame, points=frame.boxes.center, intensity=frame.boxes.yaw)
        u, v, depth = project(centers, frame.cameras[0])
        lines = [line for line in kitti_object.labels(frame_id) if line.kind != "DontCare"]
        left, top, right, bottom = np.array([line.image_box for line in lines]).T
        whole = np.array([line.truncated == 0 for line in lines])
        seen = (left < u) & (u < right) & (top < v) & (v < bottom) & (depth > 0)
        assert bool(seen[whole].all())
    assert turned < 0.8 * held


def test_lidar_only_loaders_read_real_scans(
    tmp_path: Path, kitti: SemanticKitti, kitti_object: KittiObject
) -> None:
    """No KITTI-360 or ONCE file is at hand: real KITTI scans stand in under their names."""
    scans = sorted((kitti_object.root / "training" / "velodyne").iterdir())
    drive = "2013_05_28_drive_0000_sync"
    for number, scan in enumerate(scans, start=10):
        copies = (
            f"data_3d_raw/{drive}/velodyne_points/data/{number:010d}.bin",
            f"data/000000/lidar_roof/{1600000000000 + 100 * number}.bin",
        )
        for copy in copies:
            (tmp_path / copy).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / copy).symlink_to(scan)
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "raw_small.txt").write_text("000000\n")
    originals = [kitti_object.load(frame, Field.NONE) for frame in kitti_object.frames("trainval")]
    for dataset, split in ((Kitti360(tmp_path), "train"), (Once(tmp_path), "raw_small")):
        ids = dataset.frames(split)
        assert len(ids) == len(originals) == 4
        assert dataset.provides(split) == Field.NONE
        for frame_id, original in zip(ids, originals, strict=True):
            frame = dataset.load(frame_id)
            assert torch.equal(frame.points, original.points)
            assert torch.equal(frame.intensity, original.intensity)
        assert check(dataset, split, progress=False).ok


def test_image_scale_keeps_the_pairs(data_root: Path, nuscenes: NuScenes) -> None:
    small = NuScenes(data_root / "nuscenes", image_scale=0.25)
    frame_id = nuscenes.frames("train")[0]
    full, quarter = nuscenes.load(frame_id, Field.IMAGES), small.load(frame_id, Field.IMAGES)
    for before, after in zip(full.cameras, quarter.cameras, strict=True):
        assert before.image is not None
        assert after.image is not None
        assert after.image.shape == (3, 225, 400)
        u, v, depth = project(full, before)
        small_u, small_v, _ = project(quarter, after)
        front = depth > 1
        np.testing.assert_allclose(small_u[front], (u[front] + 0.5) / 4 - 0.5, rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(small_v[front], (v[front] + 0.5) / 4 - 0.5, rtol=1e-9, atol=1e-6)
        pooled = torch.nn.functional.avg_pool2d(before.image.float(), 4)
        assert (pooled - after.image).abs().mean() < 2


def test_real_data_passes_the_check(
    kitti: SemanticKitti, kitti_object: KittiObject, nuscenes: NuScenes
) -> None:
    report = check(kitti_object, "trainval", progress=False)
    assert report.ok
    assert report.provides == ["images", "boxes"]
    report = check(kitti, "train", limit=3, workers=2, progress=False)
    assert report.ok
    assert report.checked == 3
    assert report.pairs["image_2"] > 15_000
    report = check(nuscenes, "val", progress=False)
    assert report.ok
    assert set(report.pairs) == set(NuScenes.default_cameras)
