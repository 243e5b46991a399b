"""What the datasets of scans and labels alone share, and every way their files can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_files import POINTS, scene_points, write, write_daps3d, write_semantic_stf
from lidarssl.datasets.daps3d import Daps3d
from lidarssl.datasets.inspect import check
from lidarssl.datasets.scan_folders import ScanFolders
from lidarssl.datasets.semantic_stf import SemanticStf
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId


@dataclass(frozen=True)
class Layout:
    """One of the datasets: how to write and read it, and where its first training scan lies."""

    dataset: Callable[..., ScanFolders]
    write: Callable[..., Path]
    folder: str
    scan: str
    columns: int
    unknown: int


LAYOUTS = {
    "semantic_stf": Layout(
        SemanticStf,
        write_semantic_stf,
        "train",
        "velodyne/2018-02-04_11-34-00_00600.bin",
        5,
        21,
    ),
    "daps3d": Layout(Daps3d, write_daps3d, "DAPS-2/data/38-18_7_72_90", "clouds/000000.bin", 4, 2),
}


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture
def root(layout: Layout, tmp_path: Path) -> Path:
    return layout.write(tmp_path / "data")


def paths(layout: Layout, root: Path) -> tuple[Path, Path]:
    """The first training scan and its labels."""
    scan = root / layout.folder / layout.scan
    return scan, scan.parents[1] / "labels" / f"{scan.stem}.label"


def first(layout: Layout, root: Path) -> FrameId:
    return layout.dataset(root).frames("train")[0]


def test_shares_are_every_nth_of_the_sorted_paths(layout: Layout, root: Path) -> None:
    folder = (root / layout.folder / layout.scan).parent
    for name in ("9", "10", "a", "B"):
        write(folder / f"{name}.bin", b"")
    for name in ("notes.txt", ".hidden.bin"):
        write(folder / name, b"")
    listed = sorted(str(path) for path in folder.glob("[!.]*.bin"))
    for skip in (1, 2, 3, 100):
        kept = layout.dataset(root).label_fraction("train", skip)
        assert [str(folder / f"{frame.token}.bin") for frame in kept] == listed[::skip]


def test_points_and_intensity_are_as_stored(layout: Layout, root: Path) -> None:
    frame = layout.dataset(root).load(first(layout, root))
    scan, _ = paths(layout, root)
    table = np.fromfile(scan, "<f4").reshape(-1, layout.columns)
    np.testing.assert_array_equal(frame.points.numpy(), table[:, :3])
    np.testing.assert_array_equal(frame.intensity.numpy(), table[:, 3])
    assert (frame.ring is None) == (layout.columns == 4)
    if frame.ring is not None:
        np.testing.assert_array_equal(frame.ring.numpy(), table[:, 4])


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_labels_are_looked_up_in_their_lower_half(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    layout = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    root = layout.write(tmp_path_factory.mktemp("labels"))
    table = layout.dataset.learning_map  # type: ignore[attr-defined]
    raw = data.draw(st.lists(st.sampled_from(sorted(table)), min_size=POINTS, max_size=POINTS))
    upper = data.draw(st.lists(st.integers(0, 65_535), min_size=POINTS, max_size=POINTS))
    _, labels = paths(layout, root)
    entries = np.array([r + (u << 16) for r, u in zip(raw, upper, strict=True)], "<u4")
    labels.write_bytes(entries.tobytes())
    semantic = layout.dataset(root).load(first(layout, root)).semantic
    assert semantic is not None
    assert semantic.tolist() == [table[label] for label in raw]


def test_unknown_labels_are_an_error_or_ignored_on_request(layout: Layout, root: Path) -> None:
    _, path = paths(layout, root)
    raw = np.zeros(POINTS, "<u4")
    raw[7:9] = layout.unknown, 65_535
    path.write_bytes(raw.tobytes())
    with pytest.raises(DataError, match=rf"2 points .*: {layout.unknown}, 65535") as error:
        layout.dataset(root).load(first(layout, root))
    assert (error.value.path, error.value.field) == (path, "labels")
    assert error.value.remedy
    lenient = layout.dataset(root, ignore_unknown_labels=True).load(first(layout, root))
    assert lenient.semantic is not None
    assert not lenient.semantic.any()


def test_without_labels_the_scans_load(layout: Layout, root: Path) -> None:
    dataset = layout.dataset(root)
    assert dataset.provides("train") == Field.SEMANTIC
    _, path = paths(layout, root)
    for label in path.parent.iterdir():
        label.unlink()
    path.parent.rmdir()
    assert dataset.provides("train") == Field.NONE
    frame = dataset.load(first(layout, root))
    assert len(frame) == POINTS
    assert frame.semantic is None


def test_nothing_but_the_scan_is_read_when_nothing_else_is_asked_for(
    layout: Layout, root: Path
) -> None:
    _, path = paths(layout, root)
    path.write_bytes(b"\x00garbage")
    assert len(layout.dataset(root).load(first(layout, root), Field.NONE)) == POINTS


@given(sequence=st.text(max_size=20), token=st.text(max_size=20))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
def test_ids_lead_nowhere_else(layout: Layout, root: Path, sequence: str, token: str) -> None:
    dataset = layout.dataset(root)
    good = first(layout, root)
    for frame in (
        FrameId(good.dataset, sequence, token),
        FrameId(good.dataset, good.sequence, token),
        FrameId(good.dataset, f"../{good.sequence}", good.token),
        FrameId(good.dataset, good.sequence, f"../velodyne/{good.token}"),
        FrameId("another", good.sequence, good.token),
    ):
        with pytest.raises(DataError) as error:
            dataset.load(frame)
        assert error.value.path
        assert error.value.remedy


NAN = scene_points(0, 4)
NAN[10, 0] = np.nan
FAR = np.full((2, 20), 5e5, "<f4")
BAD_SCANS = {
    "missing": (None, "not found"),
    "truncated": (bytes(30), "30 bytes .*-byte points"),
    "empty": (b"", "has 0 points"),
    "NaN": (NAN.tobytes(), "1 of [0-9]+ points are NaN or infinite"),
    "map coordinates": (FAR.tobytes(), "500000 m"),
}
BAD_LABELS = {
    "missing": (None, "not found"),
    "too few": (bytes(4 * 49), "49 labels, but .* 50 points"),
    "too many": (bytes(4 * 51), "51 labels, but .* 50 points"),
    "bytes": (bytes(POINTS), "12.5 labels"),
}


@pytest.mark.parametrize("case", BAD_SCANS)
def test_bad_scans_are_named_with_a_remedy(layout: Layout, root: Path, case: str) -> None:
    content, message = BAD_SCANS[case]
    _assert_named(layout, root, paths(layout, root)[0], content, message)


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_named_with_a_remedy(layout: Layout, root: Path, case: str) -> None:
    content, message = BAD_LABELS[case]
    _assert_named(layout, root, paths(layout, root)[1], content, message)


def _assert_named(
    layout: Layout, root: Path, path: Path, content: bytes | None, message: str
) -> None:
    frame = first(layout, root)
    path.unlink()
    if content is not None:
        write(path, content)
    with pytest.raises(DataError, match=message) as error:
        layout.dataset(root).load(frame)
    assert error.value.path == path
    assert error.value.remedy


def test_check_finds_the_bad_file(layout: Layout, root: Path) -> None:
    assert check(layout.dataset(root), "train", progress=False).ok
    _, path = paths(layout, root)
    path.write_bytes(b"")
    report = check(layout.dataset(root), "train", progress=False)
    assert [problem.frame for problem in report.problems] == [str(first(layout, root))]
    assert str(path) in report.problems[0].message


def test_unknown_splits_and_empty_ones(layout: Layout, root: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'val'"):
        layout.dataset(root).frames("vla")
    scan, _ = paths(layout, root)
    for name in scan.parent.iterdir():
        name.unlink()
    with pytest.raises(DataError, match="no scan of split 'train'") as error:
        layout.dataset(root).frames("train")
    assert (error.value.field, error.value.path) == (scan.parent.name, scan.parents[2])
    assert "unpack" in str(error.value.remedy)


def test_loading_twice_gives_equal_and_independent_frames(layout: Layout, root: Path) -> None:
    dataset = layout.dataset(root)
    one, two = (dataset.load(first(layout, root)) for _ in range(2))
    one.points.zero_()
    assert not torch.equal(one.points, two.points)
