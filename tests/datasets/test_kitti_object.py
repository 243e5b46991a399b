"""Boxes, splits and calibration of the object benchmark, and every way its files can be wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from box_dataset_files import OBJECT_CALIB, OBJECT_LABELS, write_kitti_object
from dataset_files import POINTS, image_bytes, write
from lidarssl.datasets.inspect import check
from lidarssl.datasets.kitti_files import parse_object_calibration
from lidarssl.datasets.kitti_object import (
    KittiObject,
    KittiObjectLabel,
    boxes_in_lidar,
    parse_object_labels,
)
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId
from lidarssl.geometry.boxes import corners, points_in_boxes

FIRST = FrameId("kitti_object", "training", "000000")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_kitti_object(tmp_path / "kitti")


def tokens(dataset: KittiObject, split: str) -> list[str]:
    return [frame.token for frame in dataset.frames(split)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> KittiObject:
    """Every scan of the benchmark, empty."""
    root = tmp_path_factory.mktemp("whole")
    for folder, count in (("training", 7481), ("testing", 7518)):
        (root / folder / "velodyne").mkdir(parents=True)
        for number in range(count):
            (root / folder / "velodyne" / f"{number:06d}.bin").touch()
    return KittiObject(root)


def test_the_packaged_split_has_the_usual_sizes(whole: KittiObject) -> None:
    train, val = tokens(whole, "train"), tokens(whole, "val")
    assert (len(train), len(val)) == (3712, 3769)
    assert sorted(train + val) == tokens(whole, "trainval")
    assert train[:5] == ["000000", "000003", "000007", "000009", "000010"]
    assert val[:5] == ["000001", "000002", "000004", "000005", "000006"]
    assert len(whole.frames("test")) == 7518
    assert {frame.sequence for frame in whole.frames("test")} == {"testing"}
    assert tokens(whole, "val_20th") == val[::20]


def test_lists_replace_the_splits_and_scans_that_are_missing_are_left_out(root: Path) -> None:
    assert tokens(KittiObject(root), "train") == ["000000", "000003", "000007"]
    assert tokens(KittiObject(root), "val") == ["000001", "000002"]
    write(root / "ImageSets" / "train.txt", "000002\n000005\n000000\n\n")
    assert tokens(KittiObject(root), "train") == ["000002", "000000"]
    write(root / "ImageSets" / "val.txt", "000004\n")
    with pytest.raises(DataError, match="none of the 1 scans of split 'val'"):
        KittiObject(root).frames("val")


def test_projection_is_p_times_r_times_tr(root: Path) -> None:
    """Against the plain matrix product of the calibration file, for both colour cameras."""
    text = OBJECT_CALIB.replace("R0_rect: 1 0 0 0 1 0 0 0 1", "R0_rect: 0.8 -0.6 0 0.6 0.8 0 0 0 1")
    write(root / "training" / "calib" / "000000.txt", text)
    rows = dict(line.split(":") for line in text.splitlines() if line)
    matrices = {key: np.array(value.split(), float) for key, value in rows.items()}
    rectify, velo = np.eye(4), np.eye(4)
    rectify[:3, :3] = matrices["R0_rect"].reshape(3, 3)
    velo[:3] = matrices["Tr_velo_to_cam"].reshape(3, 4)
    frame = KittiObject(root, cameras=("image_2", "image_3")).load(FIRST, Field.IMAGES)
    homogeneous = np.c_[frame.points.numpy(), np.ones(POINTS)]
    for camera, key in zip(frame.cameras, ("P2", "P3"), strict=True):
        expected = homogeneous @ (matrices[key].reshape(3, 4) @ rectify @ velo).T
        in_camera = homogeneous @ camera.camera_from_lidar.numpy().T
        actual = in_camera[:, :3] @ camera.intrinsics.numpy().T
        np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_boxes_are_in_the_lidar_frame(root: Path) -> None:
    """Tr turns x forward into z, y left into -x, z up into -y, and adds (0.1, 0.2, 0.3)."""
    boxes = KittiObject(root).load(FIRST, Field.BOXES).boxes
    assert boxes is not None
    assert [KittiObject.box_classes[label] for label in boxes.label] == ["Car", "Pedestrian"]
    car, pedestrian = boxes.center.tolist()
    assert car == pytest.approx([9.3 - 0.3, 0.1 - 0.1, -(0.95 - 0.2) + 0.75], abs=1e-5)
    assert pedestrian == pytest.approx([15 - 0.3, 3 + 0.1, -(1.7 - 0.2) + 0.9], abs=1e-5)
    assert boxes.size[0].tolist() == [4.0, 2.0, 1.5]
    assert boxes.yaw.tolist() == pytest.approx([0, -math.pi / 2], abs=1e-6)


LABELS = st.builds(
    KittiObjectLabel,
    kind=st.sampled_from(KittiObject.box_classes),
    truncated=st.just(0.0),
    occluded=st.just(0),
    alpha=st.just(0.0),
    image_box=st.just((0.0, 0.0, 1.0, 1.0)),
    size=st.tuples(*[st.floats(0.1, 20)] * 3),
    location=st.tuples(*[st.floats(-70, 70)] * 3),
    rotation_y=st.floats(-math.pi, math.pi),
)


@given(LABELS)
def test_corners_are_those_of_the_camera_box(label: KittiObjectLabel) -> None:
    """The eight corners of the box, made in the camera frame and moved to the lidar."""
    calibration = parse_object_calibration(OBJECT_CALIB.encode(), Path("calib"))
    camera0_from_lidar = calibration.lidar_transform(Path("calib"))
    height, width, length = label.size
    cos, sin = math.cos(label.rotation_y), math.sin(label.rotation_y)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    local = np.array(
        [
            [along * length / 2, -up * height, across * width / 2]
            for along in (-1, 1)
            for up in (0, 1)
            for across in (-1, 1)
        ]
    )
    in_camera = local @ turn.T + label.location
    inverse = np.linalg.inv(camera0_from_lidar.numpy())
    expected = in_camera @ inverse[:3, :3].T + inverse[:3, 3]
    boxes = boxes_in_lidar([label], camera0_from_lidar, KittiObject.box_classes)
    actual = corners(boxes)[0].double()
    distance = torch.cdist(actual, torch.from_numpy(expected))
    assert float(distance.min(1).values.max()) < 1e-4
    assert float(distance.min(0).values.max()) < 1e-4


def test_the_point_ahead_lies_in_the_car(root: Path) -> None:
    frame = KittiObject(root).load(FIRST)
    assert frame.boxes is not None
    assert bool(points_in_boxes(frame.points, frame.boxes)[0, 0])


def test_raw_lines_keep_everything(root: Path) -> None:
    lines = KittiObject(root).labels(FIRST)
    assert [line.kind for line in lines] == ["Car", "Pedestrian", "DontCare"]
    assert lines[1].image_box == (1.0, 2.0, 3.0, 4.0)
    assert lines[1].occluded == 1
    assert lines[0].score is None
    (scored,) = parse_object_labels(OBJECT_LABELS.splitlines()[0].encode() + b" 0.5", Path("a"))
    assert scored.score == 0.5


def test_a_scan_without_objects_has_no_boxes(root: Path) -> None:
    write(root / "training/label_2/000000.txt", OBJECT_LABELS.splitlines()[2])
    boxes = KittiObject(root).load(FIRST, Field.BOXES).boxes
    assert boxes is not None
    assert boxes.center.shape == boxes.size.shape == (0, 3)


def test_nothing_but_the_scan_is_read_when_nothing_else_is_asked_for(root: Path) -> None:
    for name in ("label_2/000000.txt", "image_2/000000.png", "calib/000000.txt"):
        write(root / "training" / name, b"\xffgarbage")
    assert len(KittiObject(root).load(FIRST, Field.NONE)) == POINTS


def test_test_scans_have_no_labels(root: Path) -> None:
    dataset = KittiObject(root)
    assert dataset.provides("test") == Field.IMAGES
    assert dataset.load(dataset.frames("test")[0]).boxes is None


CAR = OBJECT_LABELS.splitlines()[0]
BAD = {
    "missing scan": ("velodyne/000000.bin", None, "not found"),
    "truncated scan": ("velodyne/000000.bin", bytes(30), "30 bytes"),
    "missing labels": ("label_2/000000.txt", None, "not found.*(.|\n)*data_object_label_2.zip"),
    "binary labels": ("label_2/000000.txt", b"\xff\xfe", "not a text file"),
    "short line": ("label_2/000000.txt", CAR[:-12], "line 1 has 14 columns"),
    "unknown type": ("label_2/000000.txt", CAR.replace("Car", "Cat"), "'Cat' is not a type"),
    "NaN": ("label_2/000000.txt", CAR.replace("9.30", "nan"), "NaN"),
    "flat box": ("label_2/000000.txt", CAR.replace("1.50", "0.00"), "box of 0 x 2 x 4 m"),
    "huge box": ("label_2/000000.txt", CAR.replace("9.30", "1e30"), "at .*1e.30"),
    "missing image": ("image_2/000000.png", None, "not found"),
    "truncated image": ("image_2/000000.png", image_bytes(0)[:200], "does not decode"),
    "no calibration": ("calib/000000.txt", None, "data_object_calib.zip"),
    "no R0_rect": ("calib/000000.txt", OBJECT_CALIB.replace("R0", "R1"), "no line 'R0_rect:'"),
    "no P2": ("calib/000000.txt", OBJECT_CALIB.replace("P2", "P9"), "no line 'P2:'"),
    "short P2": ("calib/000000.txt", OBJECT_CALIB.replace(" 0.5", ""), "'P2' has 11 numbers"),
    "scaled R0": ("calib/000000.txt", OBJECT_CALIB.replace("rect: 1", "rect: 2"), "not a rotation"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_a_remedy(root: Path, case: str) -> None:
    name, content, message = BAD[case]
    path = root / "training" / name
    path.unlink()
    if content is not None:
        write(path, content)
    with pytest.raises(DataError, match=message) as error:
        KittiObject(root).load(FIRST)
    assert str(error.value.path) == str(path)


def test_check_names_the_bad_label_file(root: Path) -> None:
    assert check(KittiObject(root), "train", progress=False).ok
    path = write(root / "training/label_2/000003.txt", "Car 1 2 3\n")
    report = check(KittiObject(root), "train", progress=False)
    assert [problem.frame for problem in report.problems] == ["kitti_object/training/000003"]
    assert str(path) in report.problems[0].message


@pytest.mark.parametrize("level", ["..", "training", "training/velodyne"])
def test_wrong_root_suggests_the_right_one(root: Path, level: str) -> None:
    with pytest.raises(DataError, match="remedy: use root") as error:
        KittiObject((root / level).resolve())
    assert KittiObject(str(error.value.remedy).removeprefix("use root ")).frames("val")


@pytest.mark.parametrize("text", ["000001\nabc\n", "000001\n000001\n", "1\n", "\xff"])
def test_malformed_lists_are_named(root: Path, text: str) -> None:
    path = write(root / "ImageSets" / "val.txt", text.encode("latin-1"))
    with pytest.raises(DataError) as error:
        KittiObject(root).frames("val")
    assert error.value.path == path


@pytest.mark.parametrize("options", [{"cameras": ("image_7",)}, {"image_scale": 0.0}])
def test_options_are_checked(root: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        KittiObject(root, **options)  # type: ignore[arg-type]
