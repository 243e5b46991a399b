"""Splits, classes and label map of DAPS-3D, and the published validation split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset_files import write_daps3d
from lidarssl.datasets.daps3d import LEARNING_MAP, SEQUENCES, Daps3d
from lidarssl.errors import DataError
from lidarssl.frame import FrameId

# Raw ids of SemanticKITTI by what they are.
VEHICLES = {10, 11, 13, 15, 16, 18, 20, 252, 256, 257, 258, 259}
HUMANS = {30, 31, 32, 253, 254, 255}
SURFACES = {40, 44, 48, 49, 60, 72}
OTHERS = {50, 51, 70, 71, 80, 81}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_daps3d(tmp_path / "daps")


def test_label_map() -> None:
    groups = (set(LEARNING_MAP) & {0, 1, 52, 99}, VEHICLES, HUMANS, SURFACES, OTHERS)
    assert {raw: train for train, ids in enumerate(groups) for raw in ids} == LEARNING_MAP
    assert len(LEARNING_MAP) == 34


def test_label_table(data_root: Path) -> None:
    path = data_root.parent / "specs" / "tables" / "label_maps.json"
    if not path.is_file():
        pytest.skip(f"no label tables at {path}")
    truth = json.loads(path.read_text())["daps3d_olivine"]
    assert {str(raw): train for raw, train in LEARNING_MAP.items()} == truth["map"]
    assert list(Daps3d.classes.names) == truth["train_names"]


def test_default_validation_shares_nothing_with_training(root: Path) -> None:
    dataset = Daps3d(root)
    train, val = (set(dataset.frames(split)) for split in ("train", "val"))
    assert not train & val
    assert dataset.sequences("train") == ["38-18_7_72_90"]
    assert dataset.sequences("val") == ["42-48_10_78_90", "44-18_11_15_32"]


def test_published_validation_holds_the_training_sequence(root: Path) -> None:
    dataset = Daps3d(root)
    published = dataset.frames("val_published")
    assert published == dataset.frames("train") + dataset.frames("val")
    assert list(SEQUENCES["val_published"]) == sorted(SEQUENCES["val_published"])


def test_labels_and_points_without_an_echo(root: Path) -> None:
    frame = Daps3d(root).load(FrameId("daps3d", "38-18_7_72_90", "000000"))
    assert frame.semantic is not None
    assert frame.semantic.tolist() == [2] * 10 + [3] * 15 + [0] * 25
    assert not frame.points[25:].any()


def test_sequences_that_are_not_there_are_named(tmp_path: Path) -> None:
    dataset = Daps3d(write_daps3d(tmp_path, scans=(("42-48_10_78_90", 2),)))
    assert dataset.absent("val") == "sequences 44-18_11_15_32"
    assert len(dataset.frames("val_published")) == 2
    with pytest.raises(DataError, match="38-18_7_72_90"):
        dataset.frames("train")


@pytest.mark.parametrize("level", ["", "DAPS-2"])
def test_root_may_be_given_at_two_levels(root: Path, level: str) -> None:
    assert Daps3d(root / level).frames("val") == Daps3d(root).frames("val")


@pytest.mark.parametrize("level", ["..", "DAPS-2/data", "DAPS-2/data/38-18_7_72_90/clouds"])
def test_wrong_root_suggests_a_right_one(root: Path, level: str) -> None:
    with pytest.raises(DataError, match="remedy: use root") as error:
        Daps3d((root / level).resolve())
    suggested = str(error.value.remedy).removeprefix("use root ")
    assert Daps3d(suggested).frames("train")


def test_hopeless_root_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="DAPS-2/data/38-18_7_72_90"):
        Daps3d(tmp_path / "a" / "b" / "c" / "d")
