"""`data check` of damaged files in every layout: the file is named, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from box_dataset_files import write_kitti_object, write_once
from commands import Command
from dataset_files import (
    write_daps3d,
    write_kitti_360,
    write_semantic_kitti,
    write_semantic_poss,
    write_semantic_stf,
)
from image_dataset_files import write_a2d2, write_acdc, write_cityscapes
from pandaset_files import write_pandaset
from scribble_rellis_files import RELLIS_LABELS, RELLIS_SCANS, write_rellis, write_scribble_kitti

DRIVE = "2013_05_28_drive_0000_sync"
RAW = f"data_3d_raw/{DRIVE}/velodyne_points/data/0000000005.bin"
SEQUENCE = "dataset/sequences/00"
WRITERS: dict[str, Callable[[Path], Path]] = {
    "semantic_kitti": write_semantic_kitti,
    "semantic_poss": write_semantic_poss,
    "semantic_stf": write_semantic_stf,
    "daps3d": write_daps3d,
    "kitti_object": write_kitti_object,
    "kitti_360": write_kitti_360,
    "once": write_once,
    "pandaset": write_pandaset,
    "scribble_kitti": write_scribble_kitti,
    "rellis3d": write_rellis,
    "a2d2": write_a2d2,
    "cityscapes": write_cityscapes,
    "acdc": write_acdc,
}
# What damage leaves unusable; an empty label_2 or poses.txt of KITTI-360 is a good file.
FILES = {
    "semantic_kitti": "velodyne/000000.bin labels/000000.label image_2/000000.png calib.txt",
    "semantic_poss": "velodyne/000000.bin labels/000000.label tag/000000.tag calib.txt",
    "semantic_stf": "velodyne/2018-02-04_11-34-00_00600.bin labels/2018-02-04_11-34-00_00600.label",
    "daps3d": "clouds/000000.bin labels/000000.label",
    "kitti_object": "velodyne/000000.bin image_2/000000.png calib/000000.txt",
    "kitti_360": f"{RAW} data_2d_raw/{DRIVE}/image_00/data_rect/0000000005.png "
    "calibration/perspective.txt calibration/calib_cam_to_velo.txt",
    "once": "data/000076/lidar_roof/1616343527200.bin data/000076/cam01/1616343527200.jpg "
    "data/000076/000076.json ImageSets/train.txt",
    "pandaset": "lidar/00.pkl.gz lidar/poses.json lidar/timestamps.json meta/gps.json "
    "camera/left_camera/00.jpg camera/left_camera/poses.json camera/left_camera/intrinsics.json "
    "annotations/semseg/00.pkl.gz annotations/cuboids/00.pkl.gz",
    "scribble_kitti": "velodyne/000000.bin scribbles/000000.label calib.txt",
    "rellis3d": f"00000/{RELLIS_SCANS}/000000.bin 00000/{RELLIS_LABELS}/000000.label pt_train.lst",
    "a2d2": "cams_lidars.json "
    "20180810_142822/lidar/cam_front_center/20180810142822_lidar_frontcenter_000000000.npz "
    "20180810_142822/camera/cam_front_center/20180810142822_camera_frontcenter_000000000.png",
    "cityscapes": "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png "
    "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png "
    "camera/train/ulm/ulm_000000_000019_camera.json",
    "acdc": "rgb_anon/night/train/GOPR0009/GOPR0009_frame_000000_rgb_anon.png "
    "gt/night/train/GOPR0009/GOPR0009_frame_000000_gt_labelTrainIds.png",
}
FOLDERS = {
    "semantic_kitti": SEQUENCE,
    "semantic_poss": SEQUENCE,
    "scribble_kitti": SEQUENCE,
    "semantic_stf": "train",
    "daps3d": "DAPS-2/data/38-18_7_72_90",
    "kitti_object": "training",
    "pandaset": "001",
}
GARBAGE_ONLY = [
    ("semantic_poss", f"{SEQUENCE}/poses.txt"),
    ("kitti_object", "training/label_2/000000.txt"),
    ("kitti_360", f"data_poses/{DRIVE}/poses.txt"),
    ("kitti_360", "calibration/calib_cam_to_pose.txt"),
]
CASES = [
    (dataset, str(Path(FOLDERS.get(dataset, "")) / name), damage)
    for dataset, names in FILES.items()
    for name in names.split()
    for damage in ("garbage", "empty", "cut")
] + [(dataset, name, "garbage") for dataset, name in GARBAGE_ONLY]


@pytest.mark.parametrize(("dataset", "name", "damage"), CASES)
def test_a_damaged_file_is_named(
    command: Command, tmp_path: Path, dataset: str, name: str, damage: str
) -> None:
    """Bad frames are listed (1); a table without which there is no frame stops the command (2)."""
    root = WRITERS[dataset](tmp_path / "data set")
    check = ("data", "check", dataset, "--root", root, "--workers", 0)
    good = command(*check)
    assert good.code == 0, good.err or good.out
    path = root / name
    content = path.read_bytes()
    spoilt = {"garbage": b"\xff garbage", "empty": b"", "cut": content[: len(content) // 2 - 1]}
    path.write_bytes(spoilt[damage])
    done = command(*check)
    assert done.code in (1, 2), done.out
    assert str(path) in done.out + done.err
    assert "Traceback" not in done.out + done.err


@pytest.mark.parametrize("dataset", WRITERS)
@pytest.mark.parametrize("level", ["above", "nowhere"])
def test_a_root_of_a_wrong_level(
    command: Command, tmp_path: Path, dataset: str, level: str
) -> None:
    root = WRITERS[dataset](tmp_path / "right")
    done = command(
        "data", "check", dataset, "--root", tmp_path if level == "above" else root / "nowhere"
    )
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "there is no" in done.err
    assert f"use root {root}" in done.err


@pytest.mark.parametrize("dataset", WRITERS)
def test_stats_of_every_layout(command: Command, tmp_path: Path, dataset: str) -> None:
    root = WRITERS[dataset](tmp_path)
    done = command("data", "stats", dataset, "--root", root)
    assert done.code == 0, done.err
    images_alone = dataset in ("cityscapes", "acdc")
    assert ("intensity: mean" in done.out) != images_alone
    assert ("  road: " in done.out and " pixels (" in done.out) == images_alone
