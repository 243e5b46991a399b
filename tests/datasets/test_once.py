"""Splits, annotations, poses and cameras of ONCE, and every way its files can be wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from box_dataset_files import ONCE_CAMERAS, once_content, write_once
from dataset_files import POINTS, encode_image, image_bytes, write
from lidarssl.datasets.image_files import read_image
from lidarssl.datasets.inspect import check
from lidarssl.datasets.once import SEQUENCES, Once
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId
from lidarssl.geometry.boxes import points_in_boxes
from lidarssl.geometry.distortion import undistort_image

TIMES = [str(1616343527200 + 500 * scan) for scan in range(4)]
FIRST = FrameId("once", "000076", TIMES[0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_once(tmp_path / "once")


def json_file(root: Path) -> Path:
    return root / "data" / "000076" / "000076.json"


def rewrite(root: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads(json_file(root).read_text())
    change(content)
    return write(json_file(root), json.dumps(content))


def test_splits_are_the_official_ones(data_root: Path) -> None:
    path = data_root.parent / "specs" / "tables" / "once_splits.json"
    if not path.is_file():
        pytest.skip(f"no split tables at {path}")
    truth = json.loads(path.read_text())["splits"]
    assert {split: list(names) for split, names in SEQUENCES.items()} == truth


def test_train_and_val_are_the_annotated_scans(root: Path) -> None:
    assert [frame.token for frame in Once(root).frames("train")] == TIMES[:3]
    assert [frame.sequence for frame in Once(root).frames("val")] == ["000027"] * 3
    assert [frame.token for frame in Once(root).frames("val_100")] == TIMES
    assert [frame.token for frame in Once(root).frames("raw_small")] == TIMES


def test_lists_are_needed_for_the_raw_splits_only(root: Path) -> None:
    for path in (root / "ImageSets").iterdir():
        path.unlink()
    assert len(Once(root).frames("train")) == 3
    with pytest.raises(DataError, match=r"raw_small\.txt") as error:
        Once(root).frames("raw_small")
    assert "ImageSets" in str(error.value.remedy)
    with pytest.raises(DataError, match=r"no scan of split 'test' \(10 sequences\)"):
        Once(root).frames("test")


def test_the_first_hundred_of_val(root: Path) -> None:
    for number in range(150):
        write(root / "data/000027/lidar_roof" / f"{2000000000000 + number}.bin", b"")
    kept = Once(root).frames("val_100")
    assert len(kept) == 100
    assert [frame.token for frame in kept[:4]] == TIMES
    assert kept[-1].token == "2000000000095"


def test_raw_scans_load_without_the_annotations(root: Path) -> None:
    """Pretraining reads no label: of a raw split not even the file that could hold one."""
    for path in root.glob("data/*/*.json"):
        path.unlink()
    dataset = Once(root, cameras=())
    ids = dataset.frames("raw_small") + dataset.frames("val_100")
    assert dataset.provides("raw_small") == Field.NONE
    for fields in (Field.NONE, Field.ALL):
        assert all(len(dataset.load(frame, fields)) == POINTS for frame in ids)
    assert dataset.load(ids[0]).boxes is None


def test_boxes_are_as_stored(root: Path) -> None:
    frame = Once(root).load(FIRST)
    boxes = frame.boxes
    assert boxes is not None
    assert boxes.center.tolist() == [[9, 0, 0]]
    assert boxes.size.tolist() == [[4.0, 2.0, 1.5]]
    assert boxes.yaw.tolist() == pytest.approx([0.1])
    assert boxes.label.tolist() == [Once.box_classes.index("Car")]
    assert bool(points_in_boxes(frame.points, boxes)[0, 0])
    assert Once(root).load(FrameId("once", "000076", TIMES[3])).boxes is None


def test_poses_are_quaternions_with_w_last(root: Path) -> None:
    """(0, 0, 0.6, 0.8) turns about z by 2 asin 0.6."""
    pose = Once(root).load(FrameId("once", "000076", TIMES[2]), Field.POSE).pose
    assert pose is not None
    cos, sin = 1 - 2 * 0.36, 2 * 0.6 * 0.8
    expected: list[list[float]] = [
        [cos, -sin, 0, 2],
        [sin, cos, 0, 2],
        [0, 0, 1, 0.5],
        [0, 0, 0, 1],
    ]
    np.testing.assert_allclose(pose.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("nothing", [[0] * 7, [], None])
def test_zeros_are_no_pose(root: Path, nothing: object) -> None:
    rewrite(root, lambda content: content["frames"][0].update(pose=nothing))
    dataset = Once(root)
    assert dataset.load(FIRST).pose is None
    assert Field.POSE not in dataset.provides("train")
    assert Field.BOXES in dataset.provides("train")
    assert check(dataset, "train", progress=False).ok
    posed = Once(root, posed=True)
    assert [frame.token for frame in posed.frames("train")] == TIMES[1:3]
    assert Field.POSE in posed.provides("train")
    assert Field.POSE in posed.provides("raw_small")


def test_projection_is_k_times_the_inverse_of_cam_to_velo(root: Path) -> None:
    frame = Once(root).load(FIRST, Field.IMAGES)
    content = once_content(TIMES, [])["calib"]
    homogeneous = np.c_[frame.points.numpy(), np.ones(POINTS)]
    assert [camera.name for camera in frame.cameras] == list(ONCE_CAMERAS)
    for camera in frame.cameras:
        truth = content[camera.name]
        in_camera = homogeneous @ np.linalg.inv(np.array(truth["cam_to_velo"], float)).T
        expected = in_camera[:, :3] @ np.array(truth["cam_intrinsic"], float).T
        turned = homogeneous @ camera.camera_from_lidar.numpy().T
        actual = turned[:, :3] @ camera.intrinsics.numpy().T
        np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_images_are_freed_of_distortion_unless_told_otherwise(root: Path) -> None:
    path = root / "data" / "000076" / "cam01" / f"{TIMES[0]}.jpg"
    ramp = np.zeros((36, 48, 3), np.uint8)
    ramp[..., 0] = 5 * np.arange(48)
    ramp[..., 1] = 7 * np.arange(36)[:, None]
    write(path, encode_image(ramp, "PNG"))
    stored, _ = read_image(path)
    raw = Once(root, ("cam01",), undistort=False).load(FIRST, Field.IMAGES).cameras[0].image
    free = Once(root, ("cam01",)).load(FIRST, Field.IMAGES).cameras[0]
    assert raw is not None
    assert free.image is not None
    assert torch.equal(raw, stored)
    assert not torch.equal(free.image, stored)
    coefficients = torch.tensor([-0.1, 0.01, 0.001, -0.001, 0.0])
    assert torch.equal(free.image, undistort_image(stored, free.intrinsics, coefficients))


def test_a_pinhole_camera_is_left_alone(root: Path) -> None:
    rewrite(root, lambda content: content["calib"]["cam01"].update(distortion=[[0.0] * 5]))
    camera = Once(root, ("cam01",)).load(FIRST, Field.IMAGES).cameras[0]
    stored, _ = read_image(root / "data" / "000076" / "cam01" / f"{TIMES[0]}.jpg")
    assert camera.image is not None
    assert torch.equal(camera.image, stored)


def test_numbers_may_name_frames(root: Path) -> None:
    rewrite(root, lambda content: content["frames"][0].update(frame_id=int(TIMES[0])))
    assert Once(root).frames("train")[0] == FIRST


def test_several_boxes_keep_their_order(root: Path) -> None:
    rows = [[float(n), 1, 2, 3, 4, 5, 6] for n in range(3)]
    annos = {"names": ["Cyclist", "Car", "Bus"], "boxes_3d": rows}
    rewrite(root, lambda content: content["frames"][0].update(annos=annos))
    boxes = Once(root).load(FIRST, Field.BOXES).boxes
    assert boxes is not None
    assert [Once.box_classes[label] for label in boxes.label] == annos["names"]
    assert boxes.center[:, 0].tolist() == [0, 1, 2]


def test_a_scan_without_objects_is_annotated_all_the_same(root: Path) -> None:
    nothing: dict[str, list[Any]] = {"names": [], "boxes_3d": []}
    rewrite(root, lambda content: content["frames"][0].update(annos=nothing))
    assert Once(root).frames("train")[0] == FIRST
    boxes = Once(root).load(FIRST, Field.BOXES).boxes
    assert boxes is not None
    assert boxes.center.shape == (0, 3)


def spoil(*keys: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    """Replace the value that ``keys`` lead to."""

    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = copy.deepcopy(value)

    return change


CAM, ANNOS = ("calib", "cam01"), ("frames", 0, "annos")
BAD_VALUES = {
    "no calib": (spoil("calib", value=None), "calib"),
    "no frames": (spoil("frames", value={}), "frames"),
    "frame is a list": (spoil("frames", 0, value=[]), r"frames\[0\]"),
    "hostile id": (spoil("frames", 0, "frame_id", value="../../etc"), "frame_id"),
    "same id": (spoil("frames", 1, "frame_id", value=TIMES[0]), "twice"),
    "boolean id": (spoil("frames", 0, "frame_id", value=True), "frame_id"),
    "short pose": (spoil("frames", 0, "pose", value=[1, 0, 0]), "3 numbers, not 7"),
    "scaled pose": (spoil("frames", 0, "pose", value=[1, 1, 0, 0, 0, 0, 0]), "unit quaternion"),
    "pose of words": (spoil("frames", 0, "pose", value=["1"] * 7), "finite number"),
    "short row": (spoil(*CAM, "cam_to_velo", 0, value=[1]), "1 numbers, not 4"),
    "three rows": (spoil(*CAM, "cam_intrinsic", value=[[1, 2, 3]]), "1 rows, not 3"),
    "scaled rotation": (spoil(*CAM, "cam_to_velo", 0, value=[0, 0, 2, 0]), "not a rotation"),
    "no homogeneous row": (spoil(*CAM, "cam_to_velo", 3, value=[0, 0, 0, 2]), "0 0 0 1"),
    "no focal length": (spoil(*CAM, "cam_intrinsic", 0, value=[0, 0, 24]), "not a projection"),
    "three coefficients": (spoil(*CAM, "distortion", value=[1, 2, 3]), "k1 k2 p1 p2"),
    "huge coefficient": (spoil(*CAM, "distortion", value=[1e14] * 5), "k1 k2 p1 p2"),
    "unknown class": (spoil(*ANNOS, "names", value=["Cat"]), "'Cat' is not one of Car"),
    "nameless box": (spoil(*ANNOS, "names", value=[]), "0 names, but 1 boxes"),
    "short box": (spoil(*ANNOS, "boxes_3d", value=[[1, 2, 3]]), "3 numbers, not 7"),
    "flat box": (spoil(*ANNOS, "boxes_3d", value=[[0, 0, 0, 4, 0, 1, 0]]), "length, width"),
    "far box": (spoil(*ANNOS, "boxes_3d", value=[[1e9, 0, 0, 4, 2, 1, 0]]), "length, width"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_named(root: Path, case: str) -> None:
    change, message = BAD_VALUES[case]
    path = rewrite(root, change)
    with pytest.raises(DataError, match=message) as error:
        Once(root).load(FIRST)
    assert error.value.path == path
    assert error.value.field
    assert error.value.remedy


ROOF, IMAGE = f"lidar_roof/{TIMES[0]}.bin", f"cam01/{TIMES[0]}.jpg"
BAD_FILES = {
    "missing scan": (ROOF, None, "not found"),
    "truncated scan": (ROOF, bytes(30), "30 bytes"),
    "no annotations": ("000076.json", None, "not found"),
    "no json": ("000076.json", b"{", "malformed JSON"),
    "NaN": ("000076.json", b'{"calib": NaN}', "malformed JSON"),
    "missing image": (IMAGE, None, "not found"),
    "truncated image": (IMAGE, image_bytes(0, "JPEG")[:200], "does not decode"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named_with_a_remedy(root: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    path = root / "data" / "000076" / name
    path.unlink()
    if content is not None:
        write(path, content)
    with pytest.raises(DataError, match=message) as error:
        Once(root).load(FIRST)
    assert error.value.path == path


def test_a_camera_without_calibration_is_named(root: Path) -> None:
    rewrite(root, lambda content: content["calib"].pop("cam05"))
    with pytest.raises(DataError, match="no camera 'cam05'"):
        Once(root).load(FIRST, Field.IMAGES)


@pytest.mark.parametrize("level", ["..", "data/000076", "ImageSets"])
def test_wrong_root_suggests_the_right_one(root: Path, level: str) -> None:
    with pytest.raises(DataError, match="remedy: use root") as error:
        Once((root / level).resolve())
    assert Once(str(error.value.remedy).removeprefix("use root ")).frames("val")


def test_options_are_checked(root: Path) -> None:
    with pytest.raises(ConfigError, match="cam02"):
        Once(root, cameras=("cam02",))
    with pytest.raises(ConfigError, match="image_scale"):
        Once(root, image_scale=2.0)
