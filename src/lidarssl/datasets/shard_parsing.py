"""Tables of shards from files that nobody has vouched for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.files import check_name, parse_json
from lidarssl.datasets.shard_files import BLOCK, CHECKSUM, Member, member, padded
from lidarssl.datasets.shard_frames import CAMERA_LIMIT
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
_REMEDY = (
    "get the file again; or delete it and run the same `lidarssl data shard` once more, which "
    "writes it again and keeps whole shards"
)
_Key = TypeVar("_Key")
_Read = TypeVar("_Read")


def parse_index(data: bytes, path: str | Path) -> ShardsIndex:
    """Content of ``index.json``.

    Raises:
        DataError: not such a file.
    """
    value = _of_format(_document(data, path), path)
    with _telling(path):
        return ShardsIndex(
            dataset=_at(value, "dataset", _name),
            lidar=_at(value, "lidar", _true_or_false),
            classes=_at(value, "classes", _class_table),
            box_classes=_at(value, "box_classes", _texts),
            forward=_at(value, "forward", _pair),
            intensity_statistics=_at(value, "intensity_statistics", _optional(_pair)),
            splits=_at(value, "splits", _each(_name, _entry)),
        )


def parse_frame_table(data: bytes, path: str | Path) -> FrameTable:
    """Content of ``<split>.frames.json``.

    Raises:
        DataError: not such a file, or one in which frames lie outside of their shards.
    """
    value = _of_format(_document(data, path), path)
    with _telling(path):
        table = _table(value)
        shares = _each(_skip, lambda share: _share(share, len(table.rows)))
        return replace(
            table,
            fields=_at(value, "fields", _fields),
            shares=_at(value, "shares", _optional(shares)),
            conditions=_at(value, "conditions", _each(_text, _frames)),
            absent=_at(value, "absent", _text),
            superpixels=_at(value, "superpixels", _made_with),
        )


def parse_part(value: Any, path: Path) -> FrameTable:
    """The table of a single shard: shards, layouts and frames alone.

    Raises:
        DataError: of another shape.
    """
    value = _of_format(value, path)
    with _telling(path):
        table = _table(value)
        if len(table.shards) != 1:
            raise _Wrong("it is not of one shard", "shards")
        return table


def _document(data: bytes, path: str | Path) -> Any:
    try:
        return parse_json(data, path)
    except DataError as error:
        raise DataError(error.problem, path=path, field="JSON", remedy=_REMEDY) from error


def _of_format(value: Any, path: str | Path) -> Any:
    found = value.get("format") if isinstance(value, dict) else None
    if found == FORMAT:
        return value
    raise DataError(
        "is no table of shards"
        if found is None
        else f"has the format {_short(found)}, and '{FORMAT}' is what this version reads",
        path=path,
        field="format",
        remedy="give a folder that `lidarssl data shard` of this version has packed",
    )


class _Wrong(Exception):
    """What is wrong with a value, and the keys that lead to it."""

    def __init__(self, problem: str, *keys: str) -> None:
        super().__init__(problem)
        self.problem, self.keys = problem, keys


@contextmanager
def _telling(path: str | Path) -> Iterator[None]:
    try:
        yield
    except _Wrong as wrong:
        raise DataError(
            f"is not as it was packed: {wrong.problem}",
            path=path,
            field=".".join(wrong.keys),
            remedy=_REMEDY,
        ) from wrong


# What reading a value of another shape raises.
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, OverflowError, IndexError)


def _at(value: Any, key: str, read: Callable[[Any], _Read]) -> _Read:
    """What ``read`` makes of a key of an object."""
    if key not in _object(value):
        raise _Wrong("it is missing", key)
    try:
        return read(value[key])
    except _Wrong as wrong:
        raise _Wrong(wrong.problem, key, *wrong.keys) from wrong
    except _MALFORMED as error:
        raise _Wrong("it has another shape", key) from error


def _each(
    name: Callable[[Any], _Key], read: Callable[[Any], _Read]
) -> Callable[[Any], dict[_Key, _Read]]:
    """Reads every key of an object."""
    return lambda value: {name(key): _at(value, key, read) for key in _object(value)}


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong("it is no object")
    return value


def _optional(read: Callable[[Any], _Read]) -> Callable[[Any], _Read | None]:
    return lambda value: None if value is None else read(value)


def _made_with(value: Any) -> dict[str, float] | None:
    return None if value is None else _each(_text, _number)(value)


def _table(value: Any) -> FrameTable:
    shards = _at(value, "shards", lambda shards: tuple(map(_shard, shards)))
    layouts = _at(value, "layouts", lambda layouts: tuple(map(_layout, layouts)))
    limits = [[_member(suffix).limit for suffix in layout.members] for layout in layouts]
    rows = _at(value, "frames", lambda rows: tuple(_row(row, limits) for row in rows))
    if sum(shard.frames for shard in shards) != len(rows) or not rows:
        raise _Wrong(f"there are {len(rows)}, and another number is in the shards", "frames")
    table = FrameTable(shards, layouts, rows)
    _check_ends(table)
    return table


def _check_ends(table: FrameTable) -> None:
    row = 0
    for shard in table.shards:
        free = 0
        for frame in table.rows[row : row + shard.frames]:
            if frame.offset < free or frame.offset % BLOCK:
                raise _Wrong(f"number {row} starts inside of another file", "frames")
            free = frame.offset + sum(map(padded, frame.sizes))
            row += 1
        if free > shard.bytes:
            raise _Wrong(f"those of {shard.name} need more than its bytes", "frames")


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_LIMIT:
        raise _Wrong(f"{_short(value)} is no text, or too long")
    return value


def _short(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:60]


def _name(value: Any) -> str:
    """A text that can be a part of a file name."""
    try:
        return check_name(_text(value), None, "name")
    except DataError as error:
        raise _Wrong(error.problem) from error


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _Wrong(f"{_short(value)} is no list of names")
    return tuple(map(_text, value))


def _true_or_false(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"{_short(value)} is neither true nor false")
    return value


def _count(value: Any, most: int = 1 << 40) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise _Wrong(f"{_short(value)} is not a whole number from 0 to {most}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Wrong(f"{_short(value)} is no finite number")
    return value


def _pair(value: Any) -> tuple[float, float]:
    first, second = map(_number, value)
    return first, second


def _class_table(value: Any) -> ClassTable:
    colors = _at(value, "colors", lambda rows: tuple(map(_color, rows)))
    table = ClassTable(_at(value, "names", _texts), colors)
    if not len(table.names) == len(table.colors) == len(set(table.names)) > 0:
        raise _Wrong("names and colours do not fit")
    return table


def _color(value: Any) -> tuple[int, int, int]:
    red, green, blue = (_count(part, 255) for part in value)
    return red, green, blue


def _entry(value: Any) -> SplitEntry:
    return SplitEntry(
        _at(value, "frames", _count),
        _at(value, "shards", _count),
        _at(value, "fields", _fields),
        _at(value, "cameras", _texts),
        _at(value, "superpixels", _made_with),
    )


def _fields(value: Any) -> tuple[str, ...]:
    fields = _texts(value)
    unknown = set(fields) - {str(one.name).lower() for one in Field.ALL}
    if unknown:
        raise _Wrong(f"{_short(min(unknown))} is no field")
    return fields


def _shard(value: Any) -> ShardFile:
    return ShardFile(
        _at(value, "name", _tar_name),
        _at(value, "bytes", lambda size: _count(size, _BYTES_LIMIT)),
        _at(value, "frames", _count),
    )


def _tar_name(value: Any) -> str:
    if not _text(value).endswith(".tar"):
        raise _Wrong(f"{_short(value)} is no .tar file")
    return _name(value)


def _member(suffix: str) -> Member:
    try:
        return member(suffix, Path(suffix))
    except DataError as error:
        raise _Wrong(error.problem) from error


def _layout(value: Any) -> Layout:
    cameras, members = _at(value, "cameras", _texts), _at(value, "members", _texts)
    found = [_member(suffix) for suffix in members]
    owners = [one.camera for one in found if one.camera is not None]
    if len(cameras) > CAMERA_LIMIT or any(owner >= len(cameras) for owner in owners):
        raise _Wrong("a file is of a camera that is not there")
    kinds = [(one.kind, one.camera) for one in found]
    missing = {"frame", "points", "intensity"} - {one.kind for one in found}
    if missing or len(set(kinds)) != len(kinds):
        raise _Wrong("a file is missing, or there twice")
    return Layout(cameras, members)


def _row(value: Any, limits: Sequence[Sequence[int]]) -> Row:
    """One frame; ``limits`` are the most bytes of each file of each layout."""
    sequence, token, layout, offset, sizes, checks = value
    if {"/", "\0"} & {*_text(sequence), *_text(token)}:
        raise _Wrong("a name has a slash")
    most = limits[_count(layout)]
    found = tuple(_count(size, limit) for size, limit in zip(sizes, most, strict=True))
    if len(_text(checks)) != CHECKSUM * len(found):
        raise _Wrong(f"{_short(checks)} are not the checksums of {len(found)} files")
    return Row(sequence, token, layout, _count(offset, _BYTES_LIMIT), found, checks)


def _skip(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise _Wrong(f"{_short(text)} is no share")
    return int(text)


def _share(value: Any, frames: int) -> Share:
    return Share(
        rows=_at(value, "rows", lambda rows: tuple(_count(row, frames - 1) for row in rows)),
        size=_at(value, "size", _optional(_count)),
        note=_at(value, "note", _text),
    )


def _frames(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple((_text(sequence), _text(token)) for sequence, token in value)
