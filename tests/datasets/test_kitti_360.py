"""Windows, cameras and poses of KITTI-360, and every way its files can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_files import (
    KITTI_360_PERSPECTIVE,
    KITTI_360_TO_POSE,
    KITTI_360_TO_VELO,
    POINTS,
    image_bytes,
    scene_points,
    write,
    write_kitti_360,
)
from lidarssl.datasets import kitti_360
from lidarssl.datasets.inspect import check
from lidarssl.datasets.kitti_360 import Kitti360
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId

DRIVE = "2013_05_28_drive_0000_sync"
FIRST = FrameId("kitti_360", DRIVE, "0000000005")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_kitti_360(tmp_path / "kitti_360")


def scans(root: Path, drive: str, *numbers: int) -> None:
    for number in numbers:
        name = f"2013_05_28_drive_{drive}_sync/velodyne_points/data/{number:010d}.bin"
        write(root / "data_3d_raw" / name, b"")


def listed(root: Path, split: str, repeats: bool = False) -> list[tuple[str, int]]:
    frames = Kitti360(root, repeats=repeats).frames(split)
    return [(frame.sequence[17:21], int(frame.token)) for frame in frames]


@pytest.fixture
def whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root that seems to hold every scan of every drive."""
    names = [f"{number:010d}.bin" for number in range(20_000)]
    monkeypatch.setattr(kitti_360, "list_names", lambda folder, suffixes: names)
    return root


def test_val_has_its_published_sizes(whole: Path) -> None:
    """14600 distinct frames; 15205 with the repeats that ALSO has."""
    val = listed(whole, "val")
    assert len(set(val)) == len(val) == 14600
    repeated = listed(whole, "val", repeats=True)
    assert len(repeated) == 15205
    assert set(repeated) == set(val)
    assert listed(whole, "val_20th") == val[::20]
    assert listed(whole, "val_20th", repeats=True) == repeated[::20]


def test_val_is_the_published_one(whole: Path, data_root: Path) -> None:
    path = data_root.parent / "specs" / "tables" / "kitti360_frames.json"
    if not path.is_file():
        pytest.skip(f"no frame tables at {path}")
    ranges = json.loads(path.read_text())["val"]
    expected = {
        (drive, number)
        for drive, pairs in ranges.items()
        for first, last in pairs
        for number in range(first, last + 1)
    }
    assert set(listed(whole, "val")) == expected


def test_train_holds_no_scan_of_val(whole: Path) -> None:
    train, val = listed(whole, "train"), set(listed(whole, "val"))
    assert len(set(train)) == len(train)
    assert not set(train) & val
    repeated = listed(whole, "train", repeats=True)
    assert set(repeated) - val == set(train)
    assert len(set(repeated) & val) == 389


def test_scans_that_are_missing_are_left_out(root: Path) -> None:
    assert listed(root, "train") == [("0000", 5), ("0000", 6), ("0000", 7)]
    assert listed(root, "val") == [("0003", 30), ("0003", 31)]
    assert listed(root, "test") == [("0008", 0)]
    scans(root, "0000", 1)  # before the first window
    scans(root, "0000", 380)  # of a window of train and of one of val
    scans(root, "0018", 7)
    assert ("0000", 1) not in listed(root, "train") + listed(root, "val")
    assert ("0000", 380) not in listed(root, "train")
    assert ("0000", 380) in listed(root, "val")
    assert ("0000", 380) in listed(root, "train", repeats=True)
    assert listed(root, "test")[-1] == ("0018", 7)


def test_projection_is_the_product_of_the_calibration_files(root: Path) -> None:
    frame = Kitti360(root, cameras=("image_00", "image_01")).load(FIRST, Field.IMAGES)
    camera_to_lidar = np.eye(4)
    camera_to_lidar[:3] = np.array(KITTI_360_TO_VELO.split(), float).reshape(3, 4)
    rows = dict(line.split(":", 1) for line in KITTI_360_PERSPECTIVE.splitlines())
    rectify = np.eye(4)
    rectify[:3, :3] = np.array(rows["R_rect_00"].split(), float).reshape(3, 3)
    homogeneous = np.c_[frame.points.numpy(), np.ones(POINTS)]
    for camera, key in zip(frame.cameras, ("P_rect_00", "P_rect_01"), strict=True):
        projection = np.array(rows[key].split(), float).reshape(3, 4)
        expected = homogeneous @ (projection @ rectify @ np.linalg.inv(camera_to_lidar)).T
        in_camera = homogeneous @ camera.camera_from_lidar.numpy().T
        actual = in_camera[:, :3] @ camera.intrinsics.numpy().T
        np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_poses_are_of_the_lidar(root: Path) -> None:
    """world_from_imu, imu_from_camera, then the inverse of lidar_from_camera."""
    expected = np.eye(4)
    expected[0, 3] = 5
    first, last = KITTI_360_TO_POSE.splitlines()[0].split(": ")[1], KITTI_360_TO_VELO
    for text, invert in ((first, False), (last, True)):
        matrix = np.eye(4)
        matrix[:3] = np.array(text.split(), float).reshape(3, 4)
        expected = expected @ (np.linalg.inv(matrix) if invert else matrix)
    pose = Kitti360(root).load(FIRST, Field.POSE).pose
    assert pose is not None
    np.testing.assert_allclose(pose.numpy(), expected, atol=1e-12)


def test_scans_without_a_pose(root: Path) -> None:
    """They load without; or they are left out, and then every frame has one."""
    path = root / "data_poses" / DRIVE / "poses.txt"
    write(path, "".join(path.read_text().splitlines(True)[1:]))
    dataset = Kitti360(root)
    assert Field.POSE not in dataset.provides("train")
    assert dataset.load(FIRST).pose is None
    assert check(dataset, "train", progress=False).ok
    posed = Kitti360(root, posed=True)
    assert [frame.token for frame in posed.frames("train")] == ["0000000006", "0000000007"]
    assert Field.POSE in posed.provides("train")
    path.unlink()
    with pytest.raises(DataError, match=r"data_poses\.zip"):
        Kitti360(root, posed=True).frames("train")


def test_scans_alone_are_enough(root: Path) -> None:
    other = root.parent / "raw"
    other.mkdir()
    (root / "data_3d_raw").rename(other / "data_3d_raw")
    dataset = Kitti360(other)
    assert dataset.provides("train") == Field.NONE
    assert len(dataset.load(FIRST)) == POINTS


def test_nothing_but_the_scan_is_read_when_nothing_else_is_asked_for(root: Path) -> None:
    for path in [*root.glob("calibration/*"), *root.glob("data_2d_raw/*/*/*/*")]:
        path.write_bytes(b"\xffgarbage")
    write(root / "data_poses" / DRIVE / "poses.txt", b"\xffgarbage")
    assert len(Kitti360(root).load(FIRST, Field.NONE)) == POINTS


POSES = f"data_poses/{DRIVE}/poses.txt"
SCAN = f"data_3d_raw/{DRIVE}/velodyne_points/data/0000000005.bin"
IMAGE = f"data_2d_raw/{DRIVE}/image_00/data_rect/0000000005.png"
PERSPECTIVE = "calibration/perspective.txt"
BAD = {
    "missing scan": (SCAN, None, "not found"),
    "truncated scan": (SCAN, scene_points(0, 4).tobytes()[:-2], "798 bytes"),
    "missing image": (IMAGE, None, "not found"),
    "truncated image": (IMAGE, image_bytes(0)[:200], "does not decode"),
    "no calibration": (PERSPECTIVE, None, "not found.*(.|\n)*calibration.zip"),
    "no P": (PERSPECTIVE, KITTI_360_PERSPECTIVE.replace("P_rect_00", "P_rect_07"), "'P_rect_00:'"),
    "no R": (PERSPECTIVE, KITTI_360_PERSPECTIVE.replace("R_rect_00", "R_rect_07"), "'R_rect_00:'"),
    "scaled R": (PERSPECTIVE, KITTI_360_PERSPECTIVE.replace(": 1 0", ": 2 0"), "not a rotation"),
    "two lines": ("calibration/calib_cam_to_velo.txt", KITTI_360_TO_VELO * 2, "2 lines, not one"),
    "no image_00": ("calibration/calib_cam_to_pose.txt", "image_01: 1", "no line 'image_00:'"),
    "short pose": (POSES, "5 1 0 0\n", "line 1 is not a frame number"),
    "words": (POSES, "five 1 0 0 0 0 1 0 0 0 0 1 0\n", "line 1 is not a frame number"),
    "twice": (POSES, "5 1 0 0 0 0 1 0 0 0 0 1 0\n" * 2, "line 2 is not a frame number of its own"),
    "scaled pose": (POSES, "5 2 0 0 0 0 1 0 0 0 0 1 0\n", "line 1 is not a rotation"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_a_remedy(root: Path, case: str) -> None:
    name, content, message = BAD[case]
    path = root / name
    path.unlink()
    if content is not None:
        write(path, content)
    with pytest.raises(DataError, match=message) as error:
        Kitti360(root).load(FIRST)
    assert str(error.value.path) == str(path)
    assert "field:" in str(error.value) or error.value.remedy


@pytest.mark.parametrize("level", ["..", "data_3d_raw", f"data_3d_raw/{DRIVE}"])
def test_wrong_root_suggests_the_right_one(root: Path, level: str) -> None:
    with pytest.raises(DataError, match="remedy: use root") as error:
        Kitti360((root / level).resolve())
    assert Kitti360(str(error.value.remedy).removeprefix("use root ")).frames("val")


def test_options_are_checked(root: Path) -> None:
    with pytest.raises(ConfigError, match="image_02"):
        Kitti360(root, cameras=("image_02",))
    with pytest.raises(ConfigError, match="image_scale"):
        Kitti360(root, image_scale=2.0)


def test_cameras_of_two_frames_do_not_share_memory(root: Path) -> None:
    dataset = Kitti360(root)
    first, second = (dataset.load(frame, Field.IMAGES) for frame in dataset.frames("train")[:2])
    first.cameras[0].camera_from_lidar.zero_()
    assert bool(second.cameras[0].camera_from_lidar.any())
    assert not torch.equal(first.cameras[0].intrinsics, torch.zeros(3, 3).double())
