"""Every way the files of a PandaSet scene can be wrong, by the error that names them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_files import POINTS, image_bytes, write
from lidarssl.datasets.pandaset import Pandaset
from lidarssl.datasets.table_pickles import read_table
from lidarssl.errors import DataError
from lidarssl.frame import FrameId
from pandaset_files import call, document, name, table_file, value, write_pandaset

FIRST = FrameId("pandaset", "001", "00")
LAST = FrameId("pandaset", "001", "02")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_pandaset(tmp_path / "pandaset", {"001": 3})


def rewrite_json(path: Path, change: Callable[[Any], Any]) -> Path:
    content = json.loads(path.read_text())
    changed = change(content)
    return write(path, json.dumps(content if changed is None else changed))


LISTS = [
    "lidar/poses.json", "lidar/timestamps.json", "camera/back_camera/poses.json",
]  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_shorter_than_the_frames_are_named(root: Path, name: str) -> None:
    path = rewrite_json(root / "001" / name, lambda entries: entries[:2])
    assert len(Pandaset(root).load(FrameId("pandaset", "001", "01"))) == POINTS
    with pytest.raises(DataError, match="has 2 entries, but there is a frame 2") as error:
        Pandaset(root).load(LAST)
    assert error.value.path == path


def spoil(*keys: str | int, value: object) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


POSES, CAMERA = "lidar/poses.json", "camera/back_camera"
BAD_JSON = {
    "list of poses": (POSES, lambda _: {"0": 1}, "is not a list"),
    "pose": (POSES, spoil(0, value=[1, 2]), "is not a json object"),
    "no heading": (POSES, lambda poses: poses[0].pop("heading") and None, "is not a json object"),
    "text": (POSES, spoil(0, "position", "x", value="1"), "is not a finite number"),
    "true": (POSES, spoil(0, "position", "x", value=True), "is not a finite number"),
    "huge": (POSES, spoil(0, "position", "x", value=10**400), "is not a finite number"),
    "far": (POSES, spoil(0, "position", "x", value=1e12), "unit quaternion"),
    "scaled": (POSES, spoil(0, "heading", "w", value=2), "unit quaternion"),
    "no focal length": (f"{CAMERA}/intrinsics.json", spoil("fx", value=0), "focal length"),
    "no fy": (f"{CAMERA}/intrinsics.json", spoil("fy", value=None), "finite number"),
    "list of intrinsics": (f"{CAMERA}/intrinsics.json", lambda _: [1, 2, 3, 4], "json object"),
    "camera pose": (f"{CAMERA}/poses.json", spoil(0, "heading", value={}), "finite number"),
    "time": ("lidar/timestamps.json", spoil(0, value=None), "finite number"),
    "no time": ("lidar/timestamps.json", lambda _: [], "has 0 entries"),
    "latitude": ("meta/gps.json", spoil(0, "lat", value="north"), "finite number"),
    "no place": ("meta/gps.json", lambda _: [], "has no entry"),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_values_of_json_files_are_named(root: Path, case: str) -> None:
    name, change, message = BAD_JSON[case]
    path = rewrite_json(root / "001" / name, change)
    dataset = Pandaset(root)
    with pytest.raises(DataError, match=message) as error:
        dataset.load(dataset.frames("train")[0])
    assert error.value.path == path
    assert error.value.field
    assert error.value.remedy


SCAN, LABELS, BOXES = "lidar", "annotations/semseg", "annotations/cuboids"
SHORT = np.zeros(2 * POINTS - 1, np.int64)
BAD_TABLES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no sensor": (SCAN, {"d": None}, "no column of numbers 'd'"),
    "x of text": (SCAN, {"x": ["1"] * 2 * POINTS}, "no column of numbers 'x'"),
    "NaN": (SCAN, {"x": np.full(2 * POINTS, np.nan)}, "NaN or infinite"),
    "far": (SCAN, {"x": np.full(2 * POINTS, 1e6)}, "m from the lidar"),
    "other sensor": (SCAN, {"d": np.ones(2 * POINTS)}, "no point of pandar64"),
    "NaN time": (SCAN, {"t": np.full(2 * POINTS, np.nan)}, "far from that of its scan"),
    "old time": (SCAN, {"t": np.zeros(2 * POINTS)}, "far from that of its scan"),
    "few labels": (LABELS, {"class": SHORT}, "has 99 labels"),
    "label 43": (LABELS, {"class": np.full(2 * POINTS, 43)}, "label 43 in row 0"),
    "label -1": (LABELS, {"class": np.full(2 * POINTS, -1)}, "label -1 in row 0"),
    "huge label": (LABELS, {"class": np.full(2 * POINTS, 2**63, np.uint64)}, "not 0..42"),
    "half a label": (LABELS, {"class": np.full(2 * POINTS, 0.5)}, "labels are integers"),
    "labels of another name": (LABELS, {"class": None, "label": SHORT}, "'class'"),
    "unknown box": (BOXES, {"label": ["Car", "Cat", "Car", "Car"]}, "unknown class 'Cat'"),
    "box without a name": (BOXES, {"label": ["Car", None, "Car", "Car"]}, "class 'None'"),
    "boxes without names": (BOXES, {"label": None}, "no column 'label'"),
    "boxes without yaw": (BOXES, {"yaw": None}, "no column of numbers 'yaw'"),
    "flat box": (BOXES, {"dimensions.z": np.array([1, 1, 0, 1.0])}, "impossible box in row 2"),
    "huge box": (BOXES, {"dimensions.x": np.full(4, 1e9)}, "impossible box in row 0"),
    "NaN box": (BOXES, {"position.x": np.array([1, np.nan, 1, 1])}, "impossible box in row 1"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_values_of_tables_are_named(root: Path, case: str) -> None:
    folder, columns, message = BAD_TABLES[case]
    path = root / "001" / folder / "00.pkl.gz"
    table = {**read_table(path), **columns}
    if "class" in columns:
        table = {key: column for key, column in columns.items() if column is not None}
    write(path, table_file({key: column for key, column in table.items() if column is not None}))
    with pytest.raises(DataError, match=message) as error:
        Pandaset(root).load(FIRST)
    assert error.value.path == path
    assert error.value.field


FORBIDDEN = gzip.compress(document(call(name("os", "system"), value("touch ran"))))
BAD_FILES = {
    "missing scan": (f"{SCAN}/00.pkl.gz", None, "not found"),
    "missing labels": (f"{LABELS}/00.pkl.gz", None, "not found"),
    "missing boxes": (f"{BOXES}/00.pkl.gz", None, "not found"),
    "truncated scan": (f"{SCAN}/00.pkl.gz", "half", "not a whole gzip file"),
    "garbage": (f"{SCAN}/00.pkl.gz", b"\xff garbage", "not a whole gzip file"),
    "empty": (f"{LABELS}/00.pkl.gz", b"", "not a whole gzip file"),
    "a program": (f"{BOXES}/00.pkl.gz", FORBIDDEN, "nothing was run"),
    "poses": (POSES, None, "not found"),
    "no json": (POSES, b"{", "malformed JSON"),
    "missing image": (f"{CAMERA}/00.jpg", None, "not found"),
    "truncated image": (f"{CAMERA}/00.jpg", image_bytes(0, "JPEG")[:200], "does not decode"),
    "intrinsics": (f"{CAMERA}/intrinsics.json", None, "not found"),
    "gps": ("meta/gps.json", None, "not found"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(root: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    path = root / "001" / name
    whole = path.read_bytes()
    path.unlink()
    if isinstance(content, bytes):
        write(path, content)
    elif content == "half":
        write(path, whole[: len(whole) // 2])
    dataset = Pandaset(root)
    with pytest.raises(DataError, match=message) as error:
        dataset.load(dataset.frames("train")[0] if case == "gps" else FIRST)
    assert error.value.path == path
