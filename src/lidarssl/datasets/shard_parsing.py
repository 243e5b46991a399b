"""Tables of shards from files that nobody has vouched for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.files import check_name, parse_json
from lidarssl.datasets.shard_files import BLOCK, member, padded
from lidarssl.datasets.shard_frames import CAMERA_LIMIT, REMEDY
from lidarssl.datasets.shard_index import (
    FORMAT,
    FrameTable,
    Layout,
    Row,
    ShardFile,
    ShardsIndex,
    Share,
    SplitEntry,
)
from lidarssl.errors import DataError
from lidarssl.frame import Field

_BYTES_LIMIT = 1 << 50
_TEXT_LIMIT = 2000


def parse_index(data: bytes, path: Path) -> ShardsIndex:
    """Content of ``index.json``.

    Raises:
        DataError: not such a file.
    """
    try:
        value = _of_format(parse_json(data, path))
        names, colors = value["classes"]["names"], value["classes"]["colors"]
        statistics = value["intensity_statistics"]
        return ShardsIndex(
            dataset=_name(value["dataset"]),
            lidar=_true_or_false(value["lidar"]),
            classes=_class_table(names, colors),
            box_classes=_texts(value["box_classes"]),
            forward=_pair(value["forward"]),
            intensity_statistics=None if statistics is None else _pair(statistics),
            splits={_name(split): _entry(entry) for split, entry in value["splits"].items()},
        )
    except _MALFORMED as error:
        raise _malformed(error, path) from error


def parse_frame_table(data: bytes, path: Path) -> FrameTable:
    """Content of ``<split>.frames.json``.

    Raises:
        DataError: not such a file, or one in which frames lie outside of their shards.
    """
    try:
        value = _of_format(parse_json(data, path))
        table = _table(value, path)
        count = len(table.rows)
        conditions = {
            _text(name): tuple((_text(sequence), _text(token)) for sequence, token in frames)
            for name, frames in value["conditions"].items()
        }
        shares = value["shares"]
        if shares is not None:
            shares = {_skip(text): _share(one, count) for text, one in shares.items()}
        return replace(
            table,
            fields=_fields(value["fields"]),
            shares=shares,
            conditions=conditions,
            absent=_text(value["absent"]),
        )
    except _MALFORMED as error:
        raise _malformed(error, path) from error


def parse_part(value: Any, path: Path) -> FrameTable:
    """The table of a single shard: shards, layouts and frames alone.

    Raises:
        DataError: of another shape.
    """
    try:
        table = _table(_of_format(value), path)
        if len(table.shards) != 1:
            raise ValueError("it is not of one shard")
        return table
    except _MALFORMED as error:
        raise _malformed(error, path) from error


def _table(value: Mapping[str, Any], path: Path) -> FrameTable:
    shards = tuple(
        ShardFile(
            _tar_name(shard["name"]),
            _count(shard["bytes"], _BYTES_LIMIT),
            _count(shard["frames"]),
        )
        for shard in value["shards"]
    )
    layouts = tuple(_layout(layout, path) for layout in value["layouts"])
    limits = [[member(suffix, path).limit for suffix in layout.members] for layout in layouts]
    rows = tuple(_row(row, limits) for row in value["frames"])
    if sum(shard.frames for shard in shards) != len(rows) or not rows:
        raise ValueError(f"{len(rows)} frames in shards of another number")
    table = FrameTable(shards, layouts, rows)
    _check_ends(table)
    return table


def _check_ends(table: FrameTable) -> None:
    row = 0
    for shard in table.shards:
        free = 0
        for frame in table.rows[row : row + shard.frames]:
            if frame.offset < free or frame.offset % BLOCK:
                raise ValueError(f"frame {row} starts inside of another file")
            free = frame.offset + sum(map(padded, frame.sizes))
            row += 1
        if free > shard.bytes:
            raise ValueError(f"the frames of {shard.name} need more than its bytes")


# What reading a value of another shape raises.
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, IndexError)


def _malformed(error: Exception, path: Path) -> DataError:
    return DataError(
        f"is not an index of shards ({type(error).__name__}: {str(error)[:120]})",
        path=path,
        field="index",
        remedy=REMEDY,
    )


def _of_format(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"its format is not '{FORMAT}'")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_LIMIT:
        raise ValueError("a text is none, or too long")
    return value


def _name(value: Any) -> str:
    """A text that can be a part of a file name."""
    try:
        return check_name(_text(value), None, "name")
    except DataError as error:
        raise ValueError(error.problem) from None


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("names are no list")
    return tuple(map(_text, value))


def _true_or_false(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _count(value: Any, most: int = 1 << 40) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("a number is not a count")
    return value


def _pair(value: Any) -> tuple[float, float]:
    first, second = (float(number) for number in value)
    if not (math.isfinite(first) and math.isfinite(second)):
        raise ValueError("a number is not finite")
    return first, second


def _class_table(names: Any, colors: Any) -> ClassTable:
    table = ClassTable(
        _texts(names), tuple((_count(r, 255), _count(g, 255), _count(b, 255)) for r, g, b in colors)
    )
    if not len(table.names) == len(table.colors) == len(set(table.names)) > 0:
        raise ValueError("names and colours of the classes do not fit")
    return table


def _entry(value: Any) -> SplitEntry:
    return SplitEntry(
        _count(value["frames"]),
        _count(value["shards"]),
        _fields(value["fields"]),
        _texts(value["cameras"]),
    )


def _fields(value: Any) -> tuple[str, ...]:
    fields = _texts(value)
    if not set(fields) <= {str(one.name).lower() for one in Field.ALL}:
        raise ValueError("an unknown field")
    return fields


def _tar_name(value: Any) -> str:
    if not _text(value).endswith(".tar"):
        raise ValueError("a shard is no .tar file")
    return _name(value)


def _layout(value: Any, path: Path) -> Layout:
    cameras, members = _texts(value["cameras"]), _texts(value["members"])
    found = [member(suffix, path) for suffix in members]
    owners = [one.camera for one in found if one.camera is not None]
    if len(cameras) > CAMERA_LIMIT or any(owner >= len(cameras) for owner in owners):
        raise ValueError("a file of a camera that is not there")
    kinds = [(one.kind, one.camera) for one in found]
    missing = {"frame", "points", "intensity"} - {one.kind for one in found}
    if missing or len(set(kinds)) != len(kinds):
        raise ValueError("a file is missing, or there twice")
    return Layout(cameras, members)


def _row(value: Any, limits: Sequence[Sequence[int]]) -> Row:
    """One frame; ``limits`` are the most bytes of each file of each layout."""
    sequence, token, layout, offset, sizes = value
    if {"/", "\0"} & {*_text(sequence), *_text(token)}:
        raise ValueError("a name with a slash")
    most = limits[_count(layout)]
    found = tuple(_count(size, limit) for size, limit in zip(sizes, most, strict=True))
    return Row(sequence, token, layout, _count(offset, _BYTES_LIMIT), found)


def _skip(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise ValueError("a share is no number")
    return int(text)


def _share(value: Any, frames: int) -> Share:
    rows, size = value["rows"], value["size"]
    return Share(
        rows=tuple(_count(row, frames - 1) for row in rows),
        size=None if size is None else _count(size),
        note=_text(value["note"]),
    )
