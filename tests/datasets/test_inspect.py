"""``check`` finds what training would stumble over; ``stats`` agrees with numbers made plainly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from box_dataset_files import write_kitti_object, write_once
from dataset_files import (
    CALIB,
    scene_points,
    write,
    write_folder,
    write_kitti_360,
    write_semantic_kitti,
)
from image_dataset_files import write_a2d2, write_acdc, write_cityscapes
from lidarssl.datasets.a2d2 import A2d2
from lidarssl.datasets.acdc import Acdc
from lidarssl.datasets.base import Dataset
from lidarssl.datasets.cityscapes import Cityscapes
from lidarssl.datasets.folder import Folder
from lidarssl.datasets.inspect import check, stats
from lidarssl.datasets.kitti_360 import Kitti360
from lidarssl.datasets.kitti_object import KittiObject
from lidarssl.datasets.once import Once
from lidarssl.datasets.semantic_kitti import SemanticKitti
from lidarssl.errors import ConfigError
from lidarssl.frame import Field, Frame, FrameId


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_semantic_kitti(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_good_split_passes(root: Path, workers: int) -> None:
    report = check(SemanticKitti(root), "train", workers=workers, progress=False)
    assert report.ok
    assert (report.frames, report.checked, report.sequences) == (5, 5, 2)
    assert report.provides == ["images", "semantic", "instance", "pose"]
    assert report.pairs["image_2"] > 0
    assert json.loads(report.to_json())["ok"] is True
    assert "5 checked, 0 bad" in str(report)


def test_every_bad_frame_is_listed_with_its_file(root: Path) -> None:
    folder = root / "dataset" / "sequences" / "00"
    bad_scan = write(folder / "velodyne" / "000001.bin", bytes(7))
    write(folder / "image_2" / "000002.png", b"no image")
    report = check(SemanticKitti(root), "train", progress=False)
    assert not report.ok
    assert [problem.frame for problem in report.problems] == [
        "semantic_kitti/00/000001",
        "semantic_kitti/00/000002",
    ]
    assert str(bad_scan) in report.problems[0].message
    assert "does not decode" in str(report)


def test_a_blind_camera_is_a_problem(root: Path) -> None:
    """A calibration that looks straight down sees no point."""
    down = "Tr: 0 -1 0 0 -1 0 0 0 0 0 -1 -30\n"
    write(root / "dataset/sequences/00/calib.txt", CALIB.split("Tr:")[0] + down)
    report = check(SemanticKitti(root), "train", progress=False)
    assert len(report.problems) == 3
    assert "no lidar point falls into image_2" in report.problems[0].message


def test_what_is_not_there_is_told(root: Path, tmp_path: Path) -> None:
    report = check(SemanticKitti(root), "train", progress=False)
    assert report.ok
    assert report.absent == "sequences 02, 03, 04, 05, 06, 07, 09, 10"
    assert "not here: sequences 02" in str(report)
    assert json.loads(report.to_json())["absent"] == report.absent
    held_out = check(SemanticKitti(root), "val", progress=False)
    assert held_out.absent == "4069 of the 4071 scans of the split"
    own = check(Folder(write_folder(tmp_path / "folder")), "train", progress=False)
    assert own.absent == ""
    assert "not here" not in str(own)
    objects = KittiObject(write_kitti_object(tmp_path / "objects"))
    assert objects.absent("train") == "3709 of the 3712 scans of the list"
    assert objects.absent("val_20th") == "188 of the 189 scans of the list"
    drives = Kitti360(write_kitti_360(tmp_path / "drives"))
    assert drives.absent("val") == "14598 of the 14600 scans of the list"
    assert drives.absent("test") == ""
    once = write_once(tmp_path / "once")
    assert Once(once).absent("train") == Once(once).absent("val_100") == ""
    (once / "ImageSets" / "train.txt").unlink()
    assert Once(once).absent("train") == "5 of the 6 sequences"


def test_limit_spreads_over_the_split(root: Path) -> None:
    assert check(SemanticKitti(root), "train", limit=2, progress=False).checked == 2
    assert stats(SemanticKitti(root), "train", limit=99, progress=False).frames == 5
    with pytest.raises(ConfigError, match="limit is 0"):
        check(SemanticKitti(root), "train", limit=0, progress=False)


@pytest.mark.parametrize("workers", [0, 3])
def test_numbers_are_those_of_all_points_at_once(root: Path, workers: int) -> None:
    report = stats(SemanticKitti(root), "train", workers=workers, progress=False)
    points = np.concatenate([scene_points(seed, 4) for seed in (0, 1, 2, 0, 1)]).astype(np.float64)
    assert report.points == len(points) == 250
    assert report.intensity.mean == pytest.approx(points[:, 3].mean(), rel=1e-9)
    assert report.intensity.std == pytest.approx(points[:, 3].std(), rel=1e-9)
    assert report.intensity.minimum == points[:, 3].min()
    assert report.intensity.maximum == points[:, 3].max()
    distance = np.linalg.norm(points[:, :3], axis=1)
    for percent, value in report.range_percentiles.items():
        exact = np.percentile(distance, int(percent), method="inverted_cdf")
        assert exact == pytest.approx(value, abs=0.1)
    assert report.class_points["car"] == 150
    assert report.class_points["road"] == 100
    assert report.image_sizes == {"image_2 48x36": 5}
    assert report.matched_fraction is not None
    assert 0 < report.matched_fraction < 0.5
    assert json.loads(report.to_json())["points"] == 250
    assert "250" in str(report)


def _relabelled(dataset: Dataset, labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the camera of every frame these labels."""
    unpatched = dataset.load

    def load(frame: FrameId, fields: Field = Field.ALL) -> Frame:
        loaded = unpatched(frame, fields)
        cameras = tuple(replace(camera, labels=labels) for camera in loaded.cameras)
        return replace(loaded, cameras=cameras)

    monkeypatch.setattr(dataset, "load", load)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (torch.full((12, 34), 20), "class ids 20..20 are not in 0..19"),
        (torch.full((12, 34), -1), "class ids -1..-1 are not in 0..19"),
        (
            torch.full((6, 17), 1),
            "labels of leftImg8bit have shape (6, 17), its image (12, 34)",
        ),
    ],
)
def test_labels_of_images_must_be_classes_of_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: Tensor, problem: str
) -> None:
    dataset = Cityscapes(write_cityscapes(tmp_path))
    _relabelled(dataset, labels, monkeypatch)
    report = check(dataset, "val", progress=False)
    assert len(report.problems) == 2
    assert problem in report.problems[0].message


def test_images_without_the_labels_of_their_split_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Cityscapes(write_cityscapes(tmp_path))
    _relabelled(dataset, None, monkeypatch)  # type: ignore[arg-type]
    report = check(dataset, "val", progress=False)
    assert [problem.message for problem in report.problems] == ["lacks image_labels"] * 2


def test_conditions_are_counted_within_the_split(tmp_path: Path) -> None:
    report = check(Acdc(write_acdc(tmp_path)), "val", progress=False)
    assert report.conditions == {"fog": 1, "night": 3, "snow": 2}
    assert "conditions: fog 1, night 3, snow 2" in str(report)
    assert json.loads(report.to_json())["conditions"]["night"] == 3


def test_points_without_labels(tmp_path: Path) -> None:
    dataset = A2d2(write_a2d2(tmp_path))
    report = check(dataset, "all", progress=False)
    assert report.ok
    assert report.points
    assert report.pairs == {"cam_front_center": 40}
    numbers = stats(dataset, "all", progress=False)
    assert (numbers.frames, numbers.points) == (15, 600)
    assert numbers.class_points == numbers.class_pixels == {}
    assert numbers.matched_fraction == 1
    assert numbers.image_sizes == {"cam_front_center 64x40": 15}
