"""Parsers of sweeps and labels: what was encoded comes back, what cannot be is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset_files import lzf_literals, npy_bytes, pcd_bytes, ply_bytes, scene_points
from lidarssl.datasets import lzf
from lidarssl.datasets.pcd import parse_pcd
from lidarssl.datasets.ply import parse_ply
from lidarssl.datasets.point_files import (
    KITTI_COLUMNS,
    NUSCENES_COLUMNS,
    PointCloud,
    make_cloud,
    map_labels,
    parse_array,
    parse_bin,
    parse_labels,
    parse_npy,
)
from lidarssl.errors import DataError

PATH = Path("sweep")


def assert_same(cloud: PointCloud, table: np.ndarray) -> None:
    assert torch.equal(cloud.points, torch.from_numpy(table[:, :3].astype(np.float32)))
    assert torch.equal(cloud.intensity, torch.from_numpy(table[:, 3].astype(np.float32)))


@given(count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_every_format_returns_what_was_written(count: int, seed: int) -> None:
    table = np.resize(scene_points(seed, 5), (count, 5))
    assert_same(make_cloud(parse_bin(table.tobytes(), PATH, NUSCENES_COLUMNS), PATH), table)
    assert_same(make_cloud(parse_npy(npy_bytes(table), PATH, NUSCENES_COLUMNS), PATH), table)
    for encoding in ("ascii", "binary", "binary_compressed"):
        cloud = make_cloud(parse_pcd(pcd_bytes(table, encoding), PATH), PATH)
        assert_same(cloud, table)
        assert cloud.ring is not None
        assert cloud.ring.tolist() == table[:, 4].astype(int).tolist()
    for encoding in ("ascii", "binary_little_endian", "binary_big_endian"):
        assert_same(make_cloud(parse_ply(ply_bytes(table, encoding), PATH), PATH), table)


@given(
    runs=st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 300)), max_size=8)
)
def test_lzf_expands_literals_and_runs(runs: list[tuple[bytes, int]]) -> None:
    data = b"".join(pattern * times for pattern, times in runs)
    assert lzf.decompress(lzf_literals(data), len(data)) == data


def test_lzf_reference_by_hand() -> None:
    """'abc', then 7 bytes from 3 back (overlapping), then 'd', then 9 + 5 bytes from 11 back."""
    stream = b"\x02abc" + bytes([5 << 5, 2]) + b"\x00d" + bytes([7 << 5, 5, 10])
    expected = b"abc" + b"abcabca" + b"d"
    expected += (expected * 2)[:14]
    assert lzf.decompress(stream, len(expected)) == expected


@pytest.mark.parametrize(
    ("stream", "size"),
    [(b"\x05ab", 6), (bytes([1 << 5]), 3), (bytes([1 << 5, 0]), 3), (b"\x00a", 2), (b"\x01ab", 1)],
)
def test_lzf_refuses_streams_that_do_not_add_up(stream: bytes, size: int) -> None:
    with pytest.raises(ValueError, match=r"ends|before|expands"):
        lzf.decompress(stream, size)


@given(
    count=st.integers(1, 60),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["f4", "f8", "i4", "u1"]),
    bad=st.sampled_from([None, np.nan, np.inf, -np.inf]),
)
def test_columns_of_any_type_as_one_table(
    count: int, seed: int, dtype: str, bad: float | None
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 200, (count, 5)).astype(dtype)
    if bad is not None and table.dtype.kind == "f":
        table[rng.integers(count), rng.integers(4)] = bad
    kept = np.isfinite(table[:, :4].astype(np.float64)).all(1)
    columns = dict(zip(NUSCENES_COLUMNS, table.T, strict=True))
    if not kept.any():
        return
    cloud = make_cloud(columns, PATH, drop_invalid=True)
    assert_same(cloud, table[kept])
    assert cloud.kept.tolist() == kept.tolist()
    assert cloud.ring is not None
    assert cloud.ring.tolist() == table[kept, 4].astype(np.int64).tolist()


@given(st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 9), max_size=40))
def test_labels_are_looked_up_one_by_one(raw: list[int]) -> None:
    lookup = np.array([0, 3, -1, 2, 1, 1, 1, 4, 5, 6])
    known = all(label < len(lookup) and lookup[label] >= 0 for label in raw)
    if known:
        found = map_labels(np.array(raw, np.int64), lookup, PATH)
        assert found.dtype == torch.int64
        assert found.tolist() == [lookup[label] for label in raw]
    else:
        with pytest.raises(DataError, match="class table"):
            map_labels(np.array(raw, np.int64), lookup, PATH)


def test_names_decide_what_a_column_is() -> None:
    table = scene_points(0, 4)[:, [2, 3, 0, 1]]
    cloud = make_cloud(parse_bin(table.tobytes(), PATH, ("z", "intensity", "x", "y")), PATH)
    assert_same(cloud, scene_points(0, 4))
    columns = {"X": table[:, 2], "Y": table[:, 3], "Z": table[:, 0], "Reflectance": table[:, 1]}
    assert_same(make_cloud(columns, PATH), scene_points(0, 4))
    assert make_cloud(
        {"x": np.ones(2), "y": np.ones(2), "z": np.ones(2)}, PATH
    ).intensity.tolist() == [
        0,
        0,
    ]


def test_invalid_points_are_counted_or_dropped() -> None:
    table = scene_points(0, 4)
    table[2, 0], table[8, 3], table[8, 1] = np.nan, np.inf, -np.inf
    columns = parse_bin(table.tobytes(), PATH, KITTI_COLUMNS)
    with pytest.raises(DataError, match=r"2 of 50 points .* row 2 \(from 0\)"):
        make_cloud(columns, PATH)
    cloud = make_cloud(columns, PATH, drop_invalid=True)
    assert len(cloud.points) == 48
    assert cloud.kept.nonzero()[:, 0].tolist() == [i for i in range(50) if i not in (2, 8)]


def test_double_values_that_do_not_fit_float32_are_refused() -> None:
    columns = {axis: np.array([1.0, 1e300]) for axis in "xyz"}
    with pytest.raises(DataError, match="1 of 2 points"):
        make_cloud(columns, PATH)


HUGE = pcd_bytes(scene_points(0, 5), "binary").replace(b"POINTS 50", b"POINTS 2000000000000")
PICKLED = npy_bytes(np.zeros(2)).replace(b"<f8", b"|O8")
BAD_PCD = {
    "absurd count": (HUGE, "out of range"),
    "no data line": (b"VERSION 0.7\nFIELDS x y z\n", "no DATA line"),
    "unknown encoding": (pcd_bytes(scene_points(0, 5), "secret"), "DATA secret is unknown"),
    "truncated": (pcd_bytes(scene_points(0, 5), "binary")[:-1], "899 bytes, not 50 records of 18"),
    "truncated ascii": (pcd_bytes(scene_points(0, 5), "ascii")[:-4], "values, not 50 rows of 5"),
    "truncated lzf": (pcd_bytes(scene_points(0, 5), "binary_compressed")[:-3], "announced"),
}


@pytest.mark.parametrize("case", BAD_PCD)
def test_bad_pcd(case: str) -> None:
    data, message = BAD_PCD[case]
    with pytest.raises(DataError, match=message):
        parse_pcd(data, PATH)


def test_pcd_without_a_position_is_refused() -> None:
    data = pcd_bytes(scene_points(0, 5), "binary").replace(b"FIELDS x y z", b"FIELDS a b z")
    with pytest.raises(DataError, match="no column x, y"):
        make_cloud(parse_pcd(data, PATH), PATH)


BAD_PLY = {
    "absurd count": (b"element vertex 50", b"element vertex 99999999999", "99999999999 vertices"),
    "list property": (b"property float x", b"property list uchar int x", "header line"),
    "unknown type": (b"property float x", b"property quad x", "quad"),
    "vertex later": (b"element vertex", b"element edge", "first element is not 'vertex'"),
    "version": (b" 1.0\n", b" 2.0\n", "header line 'format"),
    "no end": (b"end_header", b"the_end", "no header"),
    "one more": (b"element vertex 50", b"element vertex 51", "not 51 records"),
}


@pytest.mark.parametrize("case", BAD_PLY)
def test_bad_ply(case: str) -> None:
    before, after, message = BAD_PLY[case]
    data = ply_bytes(scene_points(0, 5), "binary_little_endian").replace(before, after)
    with pytest.raises(DataError, match=message):
        parse_ply(data, PATH)


def test_npy_never_unpickles_nor_allocates_what_is_not_there() -> None:
    with pytest.raises(DataError, match="type object"):
        parse_array(PICKLED, PATH)
    absurd = npy_bytes(np.zeros((2, 4), np.float32)).replace(b"(2, 4), }   ", b"(2000000, 4), }")
    with pytest.raises(DataError, match="does not match"):
        parse_array(absurd, PATH)
    with pytest.raises(DataError, match=r"not \(points, 4\)"):
        parse_npy(npy_bytes(np.zeros((3, 5))), PATH, KITTI_COLUMNS)


def test_labels_are_mapped_and_unknown_ones_named() -> None:
    raw = parse_labels(np.array([0, 2, 65535 << 16 | 1], "<u4").tobytes(), PATH, "<u4", 3)
    assert raw.tolist() == [0, 2, 65535 << 16 | 1]
    lookup = np.array([0, 5, 7])
    assert map_labels(raw & 0xFFFF, lookup, PATH).tolist() == [0, 7, 5]
    with pytest.raises(DataError, match=r"2 points .* 3, 900"):
        map_labels(np.array([1, 3, 900]), lookup, PATH)
