"""Splits, classes and label maps of SemanticSTF, the official one and the published one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_files import POINTS, write, write_semantic_stf
from lidarssl.datasets.semantic_kitti import SemanticKitti
from lidarssl.datasets.semantic_stf import LEARNING_MAP, PUBLISHED_MAP, SEQUENCES, SemanticStf
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import FrameId
from lidarssl.metrics.segmentation import confusion, iou_report

# Raw ids of each train id; every other id up to 22 is ignored.
PUBLISHED = {
    1: (4, 5), 2: (6,), 3: (7,), 4: (8,), 5: (9,), 6: (10, 11, 12), 7: (13,), 8: (14,), 9: (15,),
    10: (16,), 11: (17,), 12: (21,), 13: (22,),
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_semantic_stf(tmp_path / "stf")


def test_splits_are_the_folders(root: Path) -> None:
    assert list(SEQUENCES) == ["train", "val", "test"]
    dataset = SemanticStf(root)
    assert [str(frame) for frame in dataset.frames("val")] == [
        "semantic_stf/val/2018-02-04_11-34-00_00600",
        "semantic_stf/val/2018-02-04_11-34-01_00600",
    ]
    assert [len(dataset.frames(split)) for split in dataset.splits] == [3, 2, 1]


def test_half_of_the_train_scans_are_663(tmp_path: Path) -> None:
    root = write_semantic_stf(tmp_path, scans=())
    folder = root / "train" / "velodyne"
    folder.mkdir(parents=True)
    for scan in range(1326):
        (folder / f"{scan:06d}.bin").touch()
    dataset = SemanticStf(root)
    kept = dataset.label_fraction("train", 2)
    assert len(kept) == 663
    assert [frame.token for frame in kept[:3]] == ["000000", "000002", "000004"]
    assert dataset.label_fraction("train", 1) == dataset.frames("train")
    assert dataset.absent("train") == ""


def test_scans_that_are_not_there_are_counted(root: Path) -> None:
    dataset = SemanticStf(root)
    assert [dataset.absent(split) for split in dataset.splits] == [
        "1323 of the 1326 scans of the split",
        "248 of the 250 scans of the split",
        "499 of the 500 scans of the split",
    ]


def test_official_labels_are_those_of_semantic_kitti(root: Path) -> None:
    assert {raw: raw % 20 for raw in range(21)} == LEARNING_MAP
    assert SemanticStf.classes == SemanticKitti.classes
    dataset = SemanticStf(root)
    semantic = dataset.load(dataset.frames("train")[0]).semantic
    assert semantic is not None
    assert semantic.tolist() == [point % 21 % 20 for point in range(POINTS)]


def test_label_table(data_root: Path) -> None:
    path = data_root.parent / "specs" / "tables" / "label_maps.json"
    if not path.is_file():
        pytest.skip(f"no label tables at {path}")
    truth = json.loads(path.read_text())["semantic_stf"]
    assert {str(raw): train for raw, train in LEARNING_MAP.items()} == truth["map"]


def test_published_labels_are_read_by_another_table(root: Path) -> None:
    expected = dict.fromkeys(range(23), 0)
    expected |= {raw: train for train, ids in PUBLISHED.items() for raw in ids}
    assert expected == PUBLISHED_MAP
    dataset = SemanticStf(root, labels="published")
    semantic = dataset.load(dataset.frames("train")[0]).semantic
    assert semantic is not None
    assert semantic.tolist() == [expected[point % 21] for point in range(POINTS)]
    # Of 20 ids only these can occur in files that hold 0..20.
    assert set(semantic.tolist()) == set(range(12))


def test_published_classes_are_named_after_what_they_hold(root: Path) -> None:
    assert SemanticStf(root, labels="published").classes.names == (
        "unlabeled", "truck or other-vehicle", "person", "bicyclist", "motorcyclist", "road",
        "parking or sidewalk or other-ground", "building", "fence", "vegetation", "trunk",
        "terrain", *(f"unused-{train}" for train in range(12, 20)),
    )  # fmt: skip
    assert SemanticStf(root).classes == SemanticKitti.classes


def test_classes_that_never_occur_count_as_perfect_in_the_published_score(root: Path) -> None:
    dataset = SemanticStf(root, labels="published")
    semantic = dataset.load(dataset.frames("train")[0]).semantic
    assert semantic is not None
    wrong = torch.where(semantic == 1, 2, 1)
    counts = confusion(wrong, semantic, 20)
    assert iou_report(counts, "slidr").miou == pytest.approx(8 / 19)
    assert iou_report(counts, "nan").miou == 0


def test_unknown_labels_option_names_the_known(root: Path) -> None:
    with pytest.raises(ConfigError, match="known: official, published") as caught:
        SemanticStf(root, labels="olivine")  # type: ignore[arg-type]
    assert caught.value.field == "labels"


def test_published_table_knows_no_more_than_22(root: Path) -> None:
    path = root / "train" / "labels" / "2018-02-04_11-34-00_00600.label"
    path.write_bytes(np.full(POINTS, 22, "<u4").tobytes())
    frame = FrameId("semantic_stf", "train", path.stem)
    loaded = SemanticStf(root, labels="published").load(frame).semantic
    assert loaded is not None
    assert loaded.tolist() == [13] * POINTS
    path.write_bytes(np.full(POINTS, 23, "<u4").tobytes())
    with pytest.raises(DataError, match=r"50 points .*: 23"):
        SemanticStf(root, labels="published").load(frame)


def test_scans_of_four_columns_are_refused(root: Path) -> None:
    path = root / "train" / "velodyne" / "2018-02-04_11-34-00_00600.bin"
    write(path, np.zeros((49, 4), "<f4").tobytes())
    with pytest.raises(DataError, match=r"20-byte points(.|\n)*x y z intensity ring"):
        SemanticStf(root).load(FrameId("semantic_stf", "train", path.stem))


def test_beams_are_whole_and_not_negative(root: Path) -> None:
    path = root / "train" / "velodyne" / "2018-02-04_11-34-00_00600.bin"
    table = np.fromfile(path, "<f4").reshape(-1, 5)
    table[3, 4] = -1
    write(path, table.tobytes())
    with pytest.raises(DataError, match="beam index of row 3 is -1") as error:
        SemanticStf(root).load(FrameId("semantic_stf", "train", path.stem))
    assert error.value.field == "ring"


def test_wrong_root_suggests_the_right_one(root: Path) -> None:
    for level in (root.parent, root / "train", root / "train" / "velodyne"):
        with pytest.raises(DataError) as error:
            SemanticStf(level)
        assert error.value.remedy == f"use root {root}"
    with pytest.raises(DataError, match="train/velodyne"):
        SemanticStf(root / "train" / "labels" / "nowhere" / "a" / "b" / "c" / "d")
