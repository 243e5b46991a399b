"""Own recordings: layouts, formats, labels, calibration, and every way they can be wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_files import (
    HEIGHT,
    WIDTH,
    image_bytes,
    npy_bytes,
    pcd_bytes,
    ply_bytes,
    scene_points,
    write,
    write_folder,
)
from lidarssl.datasets.folder import Folder
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId

FIRST = FrameId("folder", "monday", "0000")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "logs")


def test_splits_come_from_the_json_file(root: Path) -> None:
    dataset = Folder(root)
    assert dataset.splits == ("train", "val")
    assert [str(frame) for frame in dataset.frames("val")] == [
        "folder/tuesday/0000",
        "folder/tuesday/0001",
    ]


def test_splits_are_sub_folders_without_it(root: Path, tmp_path: Path) -> None:
    (root / "splits.json").unlink()
    assert Folder(root).splits == ("all",)
    assert Folder(root).sequences("all") == ["monday", "tuesday"]
    other = tmp_path / "other"
    for split, sequence in (("train", "monday"), ("val", "tuesday")):
        (other / split).mkdir(parents=True)
        (root / sequence).rename(other / split / sequence)
    (root / "calibration.json").rename(other / "calibration.json")
    dataset = Folder(other)
    assert dataset.splits == ("train", "val")
    assert dataset.sequences("val") == ["tuesday"]
    assert len(dataset.load(FIRST).cameras) == 1


@pytest.mark.parametrize(
    ("suffix", "encode"),
    [
        (".npy", npy_bytes),
        (".pcd", lambda table: pcd_bytes(table, "binary_compressed")),
        (".ply", lambda table: ply_bytes(table, "ascii")),
    ],
)
def test_every_format_gives_the_same_frame(root: Path, suffix: str, encode: object) -> None:
    table = scene_points(0, 5)
    lidar = root / "monday" / "lidar"
    (lidar / "0000.bin").unlink()
    write(lidar / f"0000{suffix}", encode(table))  # type: ignore[operator]
    frame = Folder(root, columns=("x", "y", "z", "intensity", "ring")).load(FIRST)
    assert torch.equal(frame.points, torch.from_numpy(table[:, :3].copy()))
    assert torch.equal(frame.intensity, torch.from_numpy(table[:, 3].copy()))
    assert frame.ring is not None
    assert frame.ring.tolist() == table[:, 4].astype(int).tolist()


def test_labels_poses_and_cameras(root: Path) -> None:
    write(root / "monday" / "poses.txt", "1 0 0 7 0 1 0 0 0 0 1 0 0 0 0 1\n" * 3)
    frame = Folder(root).load(FIRST)
    assert frame.semantic is not None
    assert frame.semantic.tolist() == [1] * 20 + [2] * 30
    assert frame.pose is not None
    assert frame.pose[:3, 3].tolist() == [7, 0, 0]
    (camera,) = frame.cameras
    assert (camera.name, camera.token) == ("front", "monday_front_0000")
    assert camera.image is not None
    assert camera.image.shape == (3, HEIGHT, WIDTH)
    assert camera.intrinsics[0].tolist() == [40, 0, 24]


def test_only_sweeps_are_required(tmp_path: Path) -> None:
    write(tmp_path / "drive" / "lidar" / "a.bin", scene_points(0, 4).tobytes())
    dataset = Folder(tmp_path)
    assert dataset.provides("all") == Field.NONE
    frame = dataset.load(dataset.frames("all")[0])
    assert (frame.cameras, frame.pose, frame.semantic) == ((), None, None)


def test_a_sequence_may_have_its_own_calibration(root: Path) -> None:
    calibration = json.loads((root / "calibration.json").read_text())
    calibration["cameras"]["front"]["intrinsics"][0][2] = 20
    write(root / "tuesday" / "calibration.json", json.dumps(calibration))
    dataset = Folder(root)
    assert dataset.load(FIRST).cameras[0].intrinsics[0, 2] == 24
    assert dataset.load(FrameId("folder", "tuesday", "0000")).cameras[0].intrinsics[0, 2] == 20


def test_invalid_points_can_be_dropped_with_their_labels(root: Path) -> None:
    table = scene_points(0, 4)
    table[5, 0], table[30, 3] = np.nan, np.inf
    path = write(root / "monday" / "lidar" / "0000.bin", table.tobytes())
    with pytest.raises(DataError, match=r"2 of 50 .* first in row 5") as error:
        Folder(root).load(FIRST)
    assert str(error.value.path) == str(path)
    frame = Folder(root, drop_invalid=True).load(FIRST)
    assert len(frame) == 48
    assert frame.semantic is not None
    assert frame.semantic.tolist() == [1] * 19 + [2] * 29


def camera(**changes: object) -> str:
    good = {
        "intrinsics": [[40, 0, 24], [0, 40, 18], [0, 0, 1]],
        "camera_from_lidar": [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]],
    }
    return json.dumps({"cameras": {"front": {**good, **changes}}})


TRANSPOSED = [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [5, 0, 0, 1]]
MIRRORED = [[0, 1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
BAD = {
    "NaN json": ("calibration.json", '{"cameras": NaN}', "NaN is not a number"),
    "deep json": ("calibration.json", "[" * 100_000, "malformed JSON"),
    "no cameras": ("calibration.json", "{}", "not a filled json object"),
    "bad name": ("calibration.json", camera().replace("front", "../x"), "cannot be used"),
    "3x4": ("calibration.json", camera(camera_from_lidar=[[1, 0, 0, 0]] * 3), "4 rows of 4"),
    "mirrored": ("calibration.json", camera(camera_from_lidar=MIRRORED), "not a rotation"),
    "transposed": ("calibration.json", camera(camera_from_lidar=TRANSPOSED), "not a rotation"),
    "K transposed": (
        "calibration.json", camera(intrinsics=[[40, 0, 0], [0, 40, 0], [24, 18, 1]]), r"\[fx, skew"
    ),
    "truth as number": ("calibration.json", camera(intrinsics=[[True] * 3] * 3), "3 rows of 3"),
    "one class": ("classes.json", '{"names": ["ignored"]}', "at least two"),
    "bad raw": ("classes.json", '{"names": ["a", "b"], "map": {"-1": "b"}}', "raw label 0..65535"),
    "bad target": ("classes.json", '{"names": ["a", "b"], "map": {"1": "c"}}', "not in 'names'"),
    "bad colour": ("classes.json", '{"names": ["a", "b"], "colors": [[0, 0, 256]]}', "0..255"),
    "bad splits": ("splits.json", '{"train": "monday"}', "not a list of names"),
    "climbing split": ("splits.json", '{"train": ["../logs/monday"]}', "cannot be used"),
    "lost sequence": ("splits.json", '{"train": ["sunday"]}', "no folder 'lidar'"),
    "missing image": ("monday/images/front/0000.jpg", None, "no image of this sweep"),
    "truncated image": ("monday/images/front/0000.jpg", image_bytes(0)[:99], "does not decode"),
    "missing labels": ("monday/labels/0000.label", None, "not found"),
    "few labels": ("monday/labels/0000.label", bytes(8), "2 labels, but .* 50 points"),
    "unknown label": ("monday/labels/0000.label", b"\x63\0\0\0" * 50, "50 points .*: 99"),
    "few poses": ("monday/poses.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n", "1 pose for 3 sweeps"),
    "flat pose": ("monday/poses.txt", "0 0 0 0 0 0 0 0 0 0 0 0\n" * 3, "line 1 is not a rotation"),
    "bad last row": ("monday/poses.txt", "1 0 0 0 0 1 0 0 0 0 1 0 0 0 1 1\n" * 3, "0 0 0 1"),
    "two formats": ("monday/lidar/0000.npy", npy_bytes(scene_points(0, 4)), "different formats"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(root: Path, case: str) -> None:
    name, content, message = BAD[case]
    (root / name).unlink(missing_ok=True)
    if content is not None:
        write(root / name, content)
    with pytest.raises(DataError, match=message) as error:
        Folder(root).load(FIRST)
    assert str(error.value.path).startswith(str(root))


def test_wrong_roots(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"use root {root}")):
        Folder(root / "monday" / "lidar")
    with pytest.raises(DataError, match="put sweeps into"):
        Folder(tmp_path / "nowhere")


def test_one_name_in_two_splits_is_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split / "drive" / "lidar" / "0.bin", scene_points(0, 4).tobytes())
    with pytest.raises(DataError, match="sequence 'drive' stands in several splits"):
        Folder(tmp_path)


def test_options_are_checked(root: Path) -> None:
    with pytest.raises(ConfigError, match="do not name x, y and z once"):
        Folder(root, columns=("x", "y", "intensity"))
    with pytest.raises(ConfigError, match="did you mean 'front'"):
        Folder(root, cameras=("fron",)).load(FIRST)
    with pytest.raises(DataError, match="28-byte points"):
        Folder(root, columns=(*"xyz", "intensity", "_", "_", "_")).load(FIRST)
