"""Sensors, splits, labels, boxes and cameras of PandaSet, and every way its files can be wrong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset_files import HEIGHT, POINTS, WIDTH, write
from lidarssl.datasets.inspect import check
from lidarssl.datasets.pandaset import CAMERAS, RAW_NAMES, SENSORS, Pandaset, Sensor
from lidarssl.datasets.table_pickles import read_table
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId
from lidarssl.geometry.boxes import points_in_boxes
from pandaset_files import (
    PANDASET_CAMERAS,
    raw_label,
    sensor_points,
    table_file,
    turn,
    write_pandaset,
)

FIRST = FrameId("pandaset", "001", "00")
LAST = FrameId("pandaset", "001", "02")
INDEX: dict[Sensor, int] = {"pandar64": 0, "pandar_gt": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pandaset(tmp_path / "lidar" / "pandaset")


def rewrite_json(path: Path, change: Callable[[Any], Any]) -> Path:
    content = json.loads(path.read_text())
    changed = change(content)
    return write(path, json.dumps(content if changed is None else changed))


def rewrite_table(path: Path, **columns: Any) -> Path:
    """Replace columns; None removes one."""
    table = {**read_table(path), **columns}
    return write(path, table_file({k: v for k, v in table.items() if v is not None}))


def by_position(*columns: np.ndarray) -> np.ndarray:
    table = np.column_stack(columns).round(3)
    return table[np.lexsort(table.T)]


def test_splits_go_by_latitude_among_labelled_scenes(root: Path) -> None:
    dataset = Pandaset(root)
    assert dataset.sequences("train") == ["001", "002"]
    assert dataset.sequences("val") == ["003"]
    assert dataset.sequences("all") == ["001", "002", "003", "004"]
    assert [frame.token for frame in dataset.frames("train")] == ["00", "01", "02", "00"]
    rewrite_json(root / "002" / "meta" / "gps.json", lambda gps: [{"lat": 37.6}, *gps])
    assert Pandaset(root).sequences("val") == ["002", "003"]


def test_without_labels_there_is_the_split_of_all_scenes(root: Path) -> None:
    for scene in root.iterdir():
        shutil.rmtree(scene / "annotations")
        shutil.rmtree(scene / "meta")
    dataset = Pandaset(root)
    assert dataset.provides("all") == Field.IMAGES | Field.POSE
    assert check(dataset, "all", progress=False).ok
    with pytest.raises(DataError, match="no scan of split 'train'") as error:
        dataset.frames("train")
    assert "'all'" in str(error.value.remedy)


@pytest.mark.parametrize("sensor", SENSORS)
def test_points_and_labels_are_those_of_one_sensor(root: Path, sensor: Sensor) -> None:
    """The files hold both lidars in mixed order and in the world; each point keeps its label."""
    frame = Pandaset(root, sensor=sensor).load(LAST)
    truth = sensor_points(2, INDEX[sensor])
    labels = {13: "car", 7: "road", 0: "ignored", 41: "manmade", 34: "traffic cone"}
    names = [labels[raw] for raw in raw_label(INDEX[sensor])]
    expected = np.array([Pandaset.classes.names.index(name) for name in names])
    assert frame.semantic is not None
    assert frame.time is not None
    np.testing.assert_allclose(
        by_position(frame.points.numpy(), frame.intensity.numpy(), frame.semantic.numpy()),
        by_position(truth, expected),
        atol=2e-3,
    )
    # PandarGT is written 50 ms late.
    np.testing.assert_allclose(frame.time.numpy(), 0.05 * INDEX[sensor], atol=1e-6)


def test_poses_lead_back_to_the_files(root: Path) -> None:
    frame = Pandaset(root).load(LAST)
    assert frame.pose is not None
    table = read_table(root / "001" / "lidar" / "02.pkl.gz")
    stored = np.column_stack([table[axis] for axis in "xyz"])[table["d"] == 0]
    homogeneous = np.c_[frame.points.double().numpy(), np.ones(POINTS)]
    np.testing.assert_allclose((homogeneous @ frame.pose.numpy().T)[:, :3], stored, atol=1e-5)


def test_poses_are_found_by_the_number_in_the_name(root: Path) -> None:
    """A scan less in the folder does not move the others to another pose or image."""
    before = {sensor: Pandaset(root, sensor=sensor).load(LAST) for sensor in SENSORS}
    (root / "001" / "lidar" / "00.pkl.gz").unlink()
    (root / "001" / "camera" / "front_camera" / "01.jpg").unlink()
    for sensor in SENSORS:
        dataset = Pandaset(root, sensor=sensor)
        assert [frame.token for frame in dataset.frames("train")] == ["01", "02", "00"]
        after = dataset.load(LAST)
        assert torch.equal(after.points, before[sensor].points)
        for old, new in zip(before[sensor].cameras, after.cameras, strict=True):
            assert torch.equal(old.camera_from_lidar, new.camera_from_lidar)


@pytest.mark.parametrize("lift", [0.0, 1.6])
def test_lift_moves_the_origin_and_nothing_else(root: Path, lift: float) -> None:
    frame, plain = Pandaset(root, lift=lift).load(FIRST), Pandaset(root, lift=0).load(FIRST)
    up = torch.tensor([0, 0, lift])
    torch.testing.assert_close(frame.points + up, plain.points)
    assert frame.boxes is not None
    assert plain.boxes is not None
    torch.testing.assert_close(frame.boxes.center + up, plain.boxes.center)
    assert frame.pose is not None
    assert plain.pose is not None
    homogeneous = torch.cat([frame.points.double(), torch.ones(POINTS, 1).double()], 1)
    lifted = torch.cat([plain.points.double(), torch.ones(POINTS, 1).double()], 1)
    torch.testing.assert_close(homogeneous @ frame.pose.T, lifted @ plain.pose.T, atol=1e-5, rtol=0)
    for camera, same in zip(frame.cameras, plain.cameras, strict=True):
        torch.testing.assert_close(
            homogeneous @ camera.camera_from_lidar.T,
            lifted @ same.camera_from_lidar.T,
            atol=1e-5,
            rtol=0,
        )


def test_projection_goes_through_the_world(root: Path) -> None:
    """By the quaternions of the files, without a matrix: each camera sees what lies ahead of it."""
    frame = Pandaset(root).load(LAST, Field.IMAGES)
    table = read_table(root / "001" / "lidar" / "02.pkl.gz")
    world = np.column_stack([table[axis] for axis in "xyz"])[table["d"] == 0]
    assert tuple(camera.name for camera in frame.cameras) == CAMERAS
    for camera in frame.cameras:
        entry = json.loads((root / "001/camera" / camera.name / "poses.json").read_text())[2]
        w, *axis = entry["heading"].values()
        inverse = np.array([w, *(-part for part in axis)])
        seen = turn(inverse, world - np.array(list(entry["position"].values())))
        homogeneous = np.c_[frame.points.double().numpy(), np.ones(POINTS)]
        actual = (homogeneous @ camera.camera_from_lidar.numpy().T)[:, :3]
        np.testing.assert_allclose(actual, seen, atol=1e-5)
        assert camera.intrinsics.tolist() == [[24.0, 0, 23.5], [0, 24.5, 17.5], [0, 0, 1]]
        ahead = math.radians(PANDASET_CAMERAS[camera.name] + 90)
        far = frame.points.numpy() @ np.array([math.cos(ahead), math.sin(ahead), 0])
        np.testing.assert_allclose(actual[:, 2], far, atol=1e-4)


def test_images_are_scaled_with_their_intrinsics(root: Path) -> None:
    camera = Pandaset(root, cameras=("left_camera",), image_scale=0.5).load(FIRST).cameras[0]
    assert camera.image is not None
    assert camera.image.shape == (3, HEIGHT // 2, WIDTH // 2)
    assert camera.intrinsics[0].tolist() == [12.0, 0, 11.5]


def test_boxes_of_the_other_sensor_and_of_ignored_classes_are_left_out(root: Path) -> None:
    for sensor, right in (("pandar64", 5.0), ("pandar_gt", 5.2)):
        boxes = Pandaset(root, sensor=sensor).load(LAST, Field.BOXES).boxes  # type: ignore[arg-type]
        assert boxes is not None
        assert [Pandaset.box_classes[label] for label in boxes.label] == ["car", "pedestrian"]
        expected = torch.tensor([[0, 9, 0], [right, 5, 0]])
        torch.testing.assert_close(boxes.center, expected, atol=1e-5, rtol=0)
        assert boxes.size.tolist() == [[4.0, 2.0, 1.5]] * 2
        # Yaw 0 of the files looks along y, and the boxes are turned 10 degrees against the car.
        torch.testing.assert_close(boxes.yaw, torch.full((2,), math.radians(100)))
    frame = Pandaset(root).load(LAST)
    assert frame.boxes is not None
    ahead = int((frame.points - torch.tensor([0.0, 9, 0])).norm(dim=1).argmin())
    assert points_in_boxes(frame.points, frame.boxes)[ahead].tolist() == [True, False]


def test_a_frame_without_objects_is_annotated_all_the_same(root: Path) -> None:
    path = root / "001" / "annotations" / "cuboids" / "00.pkl.gz"
    table = read_table(path)
    rewrite_table(path, **{key: column[:0] for key, column in table.items()})
    boxes = Pandaset(root).load(FIRST, Field.BOXES).boxes
    assert boxes is not None
    assert boxes.center.shape == (0, 3)


def test_classes_are_those_of_scalr(data_root: Path) -> None:
    path = data_root.parent / "specs" / "tables" / "label_maps.json"
    if not path.is_file():
        pytest.skip(f"no label tables at {path}")
    truth = json.loads(path.read_text())["pandaset"]
    assert {str(raw): name for raw, name in enumerate(RAW_NAMES)} == truth["raw_names"]
    names = [name.replace("oth.", "other") for name in truth["train_names_scalr"]]
    assert list(Pandaset.classes.names) == ["ignored", *names[1:]]
    assert len(truth["map_scalr"]) == len(RAW_NAMES)


def test_every_raw_label_has_its_class(root: Path, data_root: Path) -> None:
    """Of points, and of boxes of that name where boxes have this class."""
    path = data_root.parent / "specs" / "tables" / "label_maps.json"
    if not path.is_file():
        pytest.skip(f"no label tables at {path}")
    truth = json.loads(path.read_text())["pandaset"]["map_scalr"]
    dataset, annotations = Pandaset(root), root / "001" / "annotations"
    labels, boxes = (annotations / kind / "00.pkl.gz" for kind in ("semseg", "cuboids"))
    for raw, kind in enumerate(RAW_NAMES):
        write(labels, table_file({"class": np.full(2 * POINTS, raw)}))
        rewrite_table(boxes, **{"label": [kind] * 4, "cuboids.sensor_id": np.full(4, -1)})
        frame = dataset.load(FIRST, Field.SEMANTIC | Field.BOXES)
        assert frame.semantic is not None
        assert frame.boxes is not None
        assert frame.semantic.unique().tolist() == [truth[str(raw)]]
        found = {Pandaset.box_classes[label] for label in frame.boxes.label}
        assert found == {Pandaset.classes.names[truth[str(raw)]]} & set(Pandaset.box_classes)


def test_sensors_have_their_own_statistics_and_cameras(root: Path) -> None:
    high, ahead = Pandaset(root), Pandaset(root, sensor="pandar_gt")
    assert high.intensity_statistics == (18.23640649, 25.86983417)
    assert ahead.intensity_statistics == (23.06113565, 16.76273235)
    assert ahead.load(FIRST, Field.NONE).intensity_statistics == ahead.intensity_statistics
    assert (high.cameras, ahead.cameras) == (CAMERAS, ("front_camera",))
    assert len(Pandaset(root, sensor="pandar_gt", cameras=CAMERAS).load(FIRST).cameras) == 6
    assert Pandaset.intensity_statistics is None


def test_calibration_is_read_once_per_scene(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    unpatched = Path.open

    def record(path: Path, *rest: Any, **more: Any) -> Any:
        opened.append(path)
        return unpatched(path, *rest, **more)

    monkeypatch.setattr(Path, "open", record)
    dataset = Pandaset(root)
    for frame in dataset.frames("train") * 2:
        dataset.load(frame)
    tables = [path for path in opened if path.suffix == ".json"]
    assert len(set(tables)) == len(tables) == 3 + 2 * (2 + 6 * 2)


def test_a_dataset_without_cameras_is_one_of_scans(root: Path) -> None:
    for scene in root.iterdir():
        shutil.rmtree(scene / "camera")
    assert Field.IMAGES not in Pandaset(root).provides("train")
    assert Pandaset(root).load(FIRST).cameras == ()
    assert Field.IMAGES not in Pandaset(root, cameras=()).provides("train")


@pytest.mark.parametrize("whole", [True, False])
def test_a_missing_camera_folder_is_named(root: Path, whole: bool) -> None:
    """Also where only one scene lacks its images: a frame without any would go unnoticed."""
    folder = root / "001" / "camera"
    shutil.rmtree(folder if whole else folder / "back_camera")
    with pytest.raises(DataError, match="folder not found") as error:
        Pandaset(root).load(FIRST)
    assert error.value.path == folder / "back_camera"
    assert "unpack back_camera of scene 001" in str(error.value.remedy)
    report = check(Pandaset(root), "train", progress=False)
    assert [problem.frame for problem in report.problems] == [
        f"pandaset/001/0{n}" for n in range(3)
    ]


@pytest.mark.parametrize("level", ["..", "../..", "001", "001/lidar"])
def test_wrong_root_suggests_the_right_one(root: Path, level: str) -> None:
    with pytest.raises(DataError, match="remedy: use root") as error:
        Pandaset((root / level).resolve())
    assert Pandaset(str(error.value.remedy).removeprefix("use root ")).frames("val")


def test_a_root_that_is_no_folder(tmp_path: Path) -> None:
    for bad in (write(tmp_path / "file", b""), tmp_path / "nowhere"):
        with pytest.raises(DataError, match="there is no '001/lidar'"):
            Pandaset(bad)


def test_options_are_checked(root: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'pandar64'"):
        Pandaset(root, sensor="pandar46")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'front_camera'"):
        Pandaset(root, cameras=("front_cam",))
    with pytest.raises(ConfigError, match="image_scale"):
        Pandaset(root, image_scale=2.0)
    for lift in (math.nan, math.inf, 160):
        with pytest.raises(ConfigError, match="lift"):
            Pandaset(root, lift=lift)
