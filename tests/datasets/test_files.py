"""Bounded reads, streamed JSON, and names that stay where they belong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.datasets.files import (
    check_name,
    iterate_json_rows,
    parse_json,
    read_bytes,
    read_json_rows,
    resolve_inside,
)
from lidarssl.errors import DataError

PATH = Path("table.json")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=40)
@given(
    rows=st.lists(st.dictionaries(st.text(), VALUES), max_size=6),
    size=st.integers(1, 50),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
)
def test_streamed_rows_are_those_of_the_whole_document(
    rows: list[dict[str, object]], size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    chunks = (text[first : first + size] for first in range(0, len(text), size))
    assert list(iterate_json_rows(chunks, PATH)) == rows


@pytest.mark.parametrize(
    "text",
    ["", " ", "{}", "[1]", "[{}", "[{},]", "[,{}]", "[{} {}]", "[{}] x", '[{"a": NaN}]', '[{"a"}]'],
)
def test_anything_but_an_array_of_objects_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="JSON"):
        list(iterate_json_rows(iter([text]), PATH))


def test_an_endless_object_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('[{"a": "' + "x" * (12 << 20))
    with pytest.raises(DataError, match="malformed"):
        list(read_json_rows(path))


@pytest.mark.parametrize("data", [b"\xff", b"{", b"[" * 200_000, b"Infinity", b"1" * 5000])
def test_bad_documents_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="malformed"):
        parse_json(data, PATH)


def test_reads_are_bounded_and_only_of_regular_files(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(DataError, match="has 5 bytes; at most 4"):
        read_bytes(path, 4)
    with pytest.raises(DataError, match="not a regular file"):
        read_bytes(tmp_path, 5)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        read_bytes(tmp_path / "pipe", 5)
    with pytest.raises(DataError, match="not found"):
        read_bytes(tmp_path / "nothing", 5)


@given(name=st.text(max_size=30))
def test_no_name_leaves_the_root(name: str) -> None:
    root = Path("/data/root")
    try:
        path = resolve_inside(root, name, PATH)
    except DataError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(root)
    assert path != root


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/a", "", ".", "a\0", "..\\a", "C:/a"])
def test_climbing_names_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="does not stay inside"):
        resolve_inside(Path("/data"), name, PATH)
    with pytest.raises(DataError, match="cannot be used"):
        check_name(name, PATH, "name")
