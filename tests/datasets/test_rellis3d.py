"""RELLIS-3D: lists of scans that nobody has vouched for, and rays that came back from nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset_files import POINTS, scene_points, write
from lidarssl.datasets.inspect import check
from lidarssl.datasets.point_files import KITTI_COLUMNS, make_cloud, parse_bin
from lidarssl.datasets.rellis3d import LEARNING_MAP, Rellis3d, drop_empty_returns, parse_list
from lidarssl.errors import DataError
from lidarssl.frame import Field, Frame, FrameId
from scribble_rellis_files import (
    EMPTY,
    RELLIS_LABELS,
    RELLIS_SCANS,
    rellis_line,
    write_rellis,
    write_rellis_scan,
)

FIRST = FrameId("rellis3d", "00000", "000000")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_rellis(tmp_path / "rellis")


def semantic(frame: Frame) -> list[int]:
    assert frame.semantic is not None
    return frame.semantic.tolist()


def test_label_table(data_root: Path) -> None:
    path = data_root.parent / "specs" / "tables" / "label_maps.json"
    if not path.is_file():
        pytest.skip(f"no label tables at {path}")
    truth = json.loads(path.read_text())["rellis3d_olivine"]
    assert {str(raw): train for raw, train in LEARNING_MAP.items()} == truth["map"]
    assert list(Rellis3d.classes.names) == truth["train_names"]


def test_every_raw_id(root: Path) -> None:
    """Those of the table have their class, those between are ignored, those above are refused."""
    path = root / "00000" / RELLIS_LABELS / "000000.label"
    dataset = Rellis3d(root, empty_returns=True)
    raw = np.minimum(np.arange(POINTS), 34).astype("<u4") + (9 << 16)
    write(path, raw.astype("<u4").tobytes())
    found = semantic(dataset.load(FIRST))
    listed = [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 17, 18, 19, 23, 27, 31, 33, 34]
    assert [found[raw_id] for raw_id in listed] == list(range(20))
    assert [found[raw_id] for raw_id in (2, 11, 13, 14, 16, 29, 30, 32)] == [0] * 8
    raw[7] = 35
    write(path, raw.astype("<u4").tobytes())
    with pytest.raises(DataError, match=r"1 point .*: 35"):
        dataset.load(FIRST)
    found = semantic(Rellis3d(root, True, ignore_unknown_labels=True).load(FIRST))
    assert found[6:9] == [5, 0, 7]
    assert [found[raw_id] for raw_id in (6, 8, 34)] == [5, 7, 19]


def test_the_lists_are_sorted(root: Path) -> None:
    names = [f"{frame.sequence}/{frame.token}" for frame in Rellis3d(root).frames("train")]
    assert names == ["00000/000000", "00000/000002", "00001/000001"]


def test_rays_without_a_return_are_left_out_with_their_labels(root: Path) -> None:
    frame = Rellis3d(root).load(FIRST)
    points = scene_points(0, 4)
    kept = np.delete(points, np.arange(POINTS)[EMPTY], axis=0)
    assert np.array_equal(frame.points.numpy(), kept[:, :3])
    assert np.array_equal(frame.intensity.numpy(), kept[:, 3])
    assert semantic(frame) == [2] * 10 + [19] * 25


def test_rays_without_a_return_can_be_kept(root: Path) -> None:
    frame = Rellis3d(root, empty_returns=True).load(FIRST)
    assert len(frame) == POINTS
    assert not frame.points[EMPTY].any()
    assert semantic(frame) == [2] * 10 + [0] * 15 + [19] * 25


@given(st.lists(st.sampled_from(["0", "-0", "x", "y", "z", "i"]), min_size=1, max_size=30))
def test_a_point_is_dropped_when_all_three_coordinates_are_zero(kinds: list[str]) -> None:
    table = np.zeros((len(kinds), 4), "<f4")
    for row, kind in enumerate(kinds):
        if kind == "-0":
            table[row, :3] = -0.0
        elif kind != "0":
            table[row, "xyzi".index(kind)] = 1e-30
    expected = [row for row, kind in enumerate(kinds) if kind in "xyz"]
    path = Path("a.bin")
    cloud = make_cloud(parse_bin(table.tobytes(), path, KITTI_COLUMNS), path)
    if not expected:
        with pytest.raises(DataError, match="at the origin"):
            drop_empty_returns(cloud, path)
        return
    left = drop_empty_returns(cloud, path)
    assert torch.nonzero(left.kept).flatten().tolist() == expected
    assert np.array_equal(left.points.numpy(), table[expected, :3])


def test_fractions_are_of_the_list_and_not_of_the_disk(tmp_path: Path) -> None:
    """Ten scans listed, of which 0, 4 and 8 are a quarter; scan 4 is not there."""
    scans = [("00000", scan) for scan in range(7)] + [("00003", scan) for scan in range(3)]
    lines = [rellis_line(*scan) for scan in scans]
    write(tmp_path / "pt_train.lst", "\n".join(reversed(lines)))
    for sequence, scan in scans:
        if scan != 4:
            write_rellis_scan(tmp_path, sequence, scan)
    dataset = Rellis3d(tmp_path)
    kept = [(frame.sequence, int(frame.token)) for frame in dataset.label_fraction("train", 4)]
    assert kept == [("00000", 0), ("00003", 1)]
    assert dataset.fraction_size("train", 4) == 3
    assert dataset.absent("train") == "1 of the 10 scans of the split"
    write_rellis_scan(tmp_path, "00000", 4)
    assert len(dataset.label_fraction("train", 4)) == 3
    assert not dataset.absent("train")


def test_one_sequence_alone_is_read(root: Path) -> None:
    (root / "00000").rename(root / "elsewhere")
    dataset = Rellis3d(root)
    assert [frame.sequence for frame in dataset.frames("train")] == ["00001"]
    assert dataset.absent("train") == "2 of the 3 scans of the split"


def test_scans_without_labels_load(root: Path) -> None:
    for sequence in ("00000", "00001", "00002"):
        (root / sequence / RELLIS_LABELS).rename(root / sequence / "gone")
    dataset = Rellis3d(root)
    assert dataset.provides("train") == Field.NONE
    assert dataset.load(FIRST).semantic is None


GOOD = rellis_line("00000", 0)
BAD_LISTS = {
    "climbs": GOOD.replace("00000/", "../../", 1),
    "climbs inside": GOOD.replace("/0000", "/../0000", 1),
    "absolute": f"/{GOOD}",
    "another folder": GOOD.replace(RELLIS_SCANS, "vel_cloud_node_kitti_bin"),
    "labels of another scan": GOOD.replace("000000.label", "000001.label"),
    "labels of another sequence": GOOD.replace(f"00000/{RELLIS_LABELS}", f"00001/{RELLIS_LABELS}"),
    "one column": GOOD.split()[0],
    "three columns": f"{GOOD.strip()} more",
    "long name": GOOD.replace("000000.bin", "0000000.bin"),
    "other digits": GOOD.replace("000000.bin", "\u0660\u0660\u0660\u0660\u0660\u0660.bin"),
    "comment": f"{GOOD}# scans\n",
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_line_that_is_no_scan_is_refused(root: Path, case: str) -> None:
    path = write(root / "pt_train.lst", BAD_LISTS[case])
    with pytest.raises(DataError, match=r"line [12] is not a scan and its labels") as error:
        Rellis3d(root).frames("train")
    assert str(error.value.path) == str(path)
    assert error.value.field == "split"
    assert error.value.remedy
    assert len(str(error.value)) < 1000


def test_a_long_line_makes_a_short_message() -> None:
    with pytest.raises(DataError) as error:
        parse_list(b"x" * 100_000, Path("pt_train.lst"))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "names no scan"), (" \n\n", "names no scan"), (GOOD * 2, "stands twice")],
)
def test_lists_of_nothing_or_the_same(root: Path, content: str, message: str) -> None:
    write(root / "pt_train.lst", content)
    with pytest.raises(DataError, match=message) as error:
        Rellis3d(root).frames("train")
    assert error.value.remedy


def test_a_missing_list_names_its_archive(root: Path) -> None:
    path = root / "pt_val.lst"
    path.unlink()
    with pytest.raises(DataError, match="LiDAR Split File") as error:
        Rellis3d(root).frames("val")
    assert str(error.value.path) == str(path)


def test_a_huge_list_is_not_read(root: Path) -> None:
    with (root / "pt_train.lst").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DataError, match="at most"):
        Rellis3d(root).frames("train")


@given(
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 999_999)), min_size=1, max_size=30),
    st.sampled_from(["\n", "\r\n", "\n\n", " \n"]),
)
def test_any_list_round_trips(scans: set[tuple[int, int]], ending: str) -> None:
    lines = [rellis_line(f"{sequence:05d}", scan).strip() for sequence, scan in scans]
    found = parse_list(ending.join(lines).encode(), Path("pt_train.lst"))
    assert [(int(sequence), int(scan)) for sequence, scan in found] == sorted(scans)


SCAN, LABEL = (f"00000/{name}" for name in (RELLIS_SCANS, RELLIS_LABELS))
BAD = {
    "truncated scan": (f"{SCAN}/000000.bin", bytes(30), "30 bytes .* 16-byte points"),
    "no return at all": (f"{SCAN}/000000.bin", bytes(16 * POINTS), "all 50 points are at the"),
    "too few labels": (f"{LABEL}/000000.label", bytes(4 * 49), "49 labels, but .* 50 points"),
    "labels of returns alone": (f"{LABEL}/000000.label", bytes(4 * 35), "35 labels, but .* 50"),
    "missing labels": (f"{LABEL}/000000.label", None, "not found"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_a_remedy(root: Path, case: str) -> None:
    name, content, message = BAD[case]
    path = root / name
    path.unlink()
    if content is not None:
        write(path, content)
    with pytest.raises(DataError, match=message) as error:
        Rellis3d(root).load(FIRST)
    assert str(error.value.path) == str(path)
    assert error.value.remedy
    if content is not None:
        report = check(Rellis3d(root), "train", progress=False)
        assert [problem.frame for problem in report.problems] == ["rellis3d/00000/000000"]
