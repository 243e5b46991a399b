"""What SemanticPOSS has of its own, and every way its files can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset_files import POINTS, POSS_CELLS, tag_bytes, write, write_semantic_poss
from lidarssl.datasets.inspect import check
from lidarssl.datasets.semantic_poss import LEARNING_MAP, SEQUENCES, SemanticPoss, parse_tag
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId

FIRST = FrameId("semantic_poss", "00", "000000")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_semantic_poss(tmp_path / "poss")


def sequence(root: Path) -> Path:
    return root / "dataset" / "sequences" / "00"


def test_splits_are_the_official_ones() -> None:
    assert SEQUENCES["train"] == ("00", "01", "02", "04", "05")
    assert SEQUENCES["val"] == ("03",)


def test_label_table(data_root: Path) -> None:
    path = data_root.parent / "specs" / "tables" / "label_maps.json"
    if not path.is_file():
        pytest.skip(f"no label tables at {path}")
    truth = json.loads(path.read_text())["semantic_poss"]
    assert {str(raw): train for raw, train in LEARNING_MAP.items()} == truth["map"]
    assert list(SemanticPoss.classes.names) == truth["train_names"]


def test_a_fraction_is_taken_of_each_sequence(tmp_path: Path) -> None:
    root = write_semantic_poss(tmp_path, scans=(("00", 1), ("01", 1), ("03", 1)))
    for name, count in (("00", 25), ("01", 8)):
        for scan in range(count):
            write(root / f"dataset/sequences/{name}/velodyne/{scan:06d}.bin", b"")
    kept = SemanticPoss(root).label_fraction("train", 10)
    assert [f"{frame.sequence}/{frame.token}" for frame in kept] == [
        "00/000000",
        "00/000010",
        "00/000020",
        "01/000000",
    ]
    with pytest.raises(ConfigError, match="skip is 0"):
        SemanticPoss(root).label_fraction("train", 0)


def test_labels_split_into_class_and_object(root: Path) -> None:
    frame = SemanticPoss(root).load(FIRST)
    assert frame.semantic is not None
    assert frame.instance is not None
    assert frame.semantic.tolist() == [3] * 30 + [13] * 20
    assert frame.instance.tolist() == [7 + 65536] * 20 + [7 + 2 * 65536] * 10 + [0] * 20


def test_intensity_is_as_stored(root: Path) -> None:
    intensity = SemanticPoss(root).load(FIRST).intensity
    assert 200 < float(intensity.max()) <= 255


def test_the_tag_tells_the_beam(root: Path) -> None:
    """Cells 0, 100, 200, ... of rows of 1800 cells."""
    ring = SemanticPoss(root).load(FIRST).ring
    assert ring is not None
    assert ring.tolist() == [100 * point // 1800 for point in range(POINTS)]
    assert SemanticPoss(root, tags=False).load(FIRST).ring is None


@given(st.sets(st.integers(0, POSS_CELLS - 1), min_size=1, max_size=60))
def test_beams_of_any_cells(cells: set[int]) -> None:
    tag = bytearray(POSS_CELLS)
    for cell in cells:
        tag[cell] = 1
    ring = parse_tag(bytes(tag), Path("a.tag"), len(cells))
    grid = np.frombuffer(tag, np.uint8).reshape(40, 1800)
    assert torch.bincount(ring, minlength=40).tolist() == grid.sum(1).tolist()
    assert ring.tolist() == sorted(ring.tolist())


def test_poses_are_turned_to_the_lidar_where_the_calibration_tells_how(root: Path) -> None:
    step = "1 0 0 0 0 1 0 0 0 0 1 0\n" + "1 0 0 0 0 1 0 0 0 0 1 5\n" * 2
    write(sequence(root) / "poses.txt", step)
    second = FrameId("semantic_poss", "00", "000001")

    def moved() -> list[float]:
        pose = SemanticPoss(root).load(second, Field.POSE).pose
        assert pose is not None
        return pose[:3, 3].tolist()

    assert moved() == pytest.approx([5, 0, 0])
    (sequence(root) / "calib.txt").unlink()
    assert moved() == pytest.approx([0, 0, 5])


def test_nothing_but_scan_and_tag_is_read_when_nothing_else_is_asked_for(root: Path) -> None:
    for name in ("labels/000000.label", "calib.txt", "poses.txt"):
        write(sequence(root) / name, b"\x00garbage")
    assert len(SemanticPoss(root).load(FIRST, Field.NONE)) == POINTS
    write(sequence(root) / "tag/000000.tag", b"garbage")
    assert len(SemanticPoss(root, tags=False).load(FIRST, Field.NONE)) == POINTS


UNKNOWN = np.full(POINTS, 7, "<u4")
UNKNOWN[3] = 23
BAD = {
    "truncated scan": ("velodyne/000000.bin", bytes(30), "30 bytes .* 16-byte points"),
    "too few labels": ("labels/000000.label", bytes(4 * 49), "49 labels, but .* 50 points"),
    "unknown class": ("labels/000000.label", UNKNOWN.tobytes(), "1 point .*: 23"),
    "missing tag": ("tag/000000.tag", None, "not found"),
    "short tag": ("tag/000000.tag", tag_bytes()[:-1], "71999 bytes"),
    "tag of another scan": ("tag/000000.tag", bytes(POSS_CELLS), "0 cells .* 50 points"),
    "scaled Tr": ("calib.txt", "Tr: 0 -2 0 0 0 0 -1 0 1 0 0 0", "not a rotation"),
    "no Tr": ("calib.txt", "P0: 0 0 0 0 0 0 0 0 0 0 0 0\n", "no line 'Tr:'.*(.|\n)*remove"),
    "few poses": ("poses.txt", "", "has 0 poses"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_a_remedy(root: Path, case: str) -> None:
    name, content, message = BAD[case]
    path = sequence(root) / name
    path.unlink()
    if content is not None:
        write(path, content)
    with pytest.raises(DataError, match=message) as error:
        SemanticPoss(root).load(FIRST)
    assert str(error.value.path) == str(path)
    assert error.value.remedy


def test_check_finds_the_bad_tag(root: Path) -> None:
    assert check(SemanticPoss(root), "train", progress=False).ok
    path = write(sequence(root) / "tag/000002.tag", b"")
    report = check(SemanticPoss(root), "train", progress=False)
    assert [problem.frame for problem in report.problems] == ["semantic_poss/00/000002"]
    assert str(path) in report.problems[0].message
