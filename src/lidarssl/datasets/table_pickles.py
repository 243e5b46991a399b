"""Tables that pandas has pickled, as plain columns: without pandas, and with no code run.

PandaSet stores scans, labels and boxes as gzip-compressed ``DataFrame.to_pickle`` files. Of such a
file ``pickle_records`` writes down what it would build; here that is checked part by part, and the
columns are views of the bytes in it. Both layouts of pandas are read: that of the published files
(``_data`` with a state named 0.14.1, pandas below 1.3) and that of today's (``_mgr``).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lidarssl.datasets.files import MEBIBYTE, read_bytes
from lidarssl.datasets.pickle_records import (
    OPERATION_LIMIT,
    MalformedPickle,
    Record,
    Symbol,
    read_records,
)
from lidarssl.errors import DataError

COMPRESSED_LIMIT = 128 * MEBIBYTE
SIZE_LIMIT = 256 * MEBIBYTE
ROW_LIMIT = 5_000_000
COLUMN_LIMIT = 1000

Table = Mapping[str, np.ndarray]

_ADMITTED = {
    ("pandas", "DataFrame"): "frame",
    ("pandas.core.frame", "DataFrame"): "frame",
    ("pandas.core.internals.managers", "BlockManager"): "manager",
    ("pandas._libs.internals", "_unpickle_block"): "block",
    ("pandas", "Index"): "index",
    ("pandas.core.indexes.base", "Index"): "index",
    ("pandas.core.indexes.numeric", "Int64Index"): "index",
    ("pandas", "RangeIndex"): "range",
    ("pandas.core.indexes.range", "RangeIndex"): "range",
    ("pandas.core.indexes.base", "_new_Index"): "make index",
    ("pandas.arrays", "StringArray"): "strings",
    ("pandas", "StringDtype"): "type of strings",
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"): "make strings",
    ("numpy", "ndarray"): "array",
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "make array",
    ("numpy._core.multiarray", "_reconstruct"): "make array",
    ("numpy.core.numeric", "_frombuffer"): "array of bytes",
    ("numpy._core.numeric", "_frombuffer"): "array of bytes",
    ("builtins", "slice"): "slice",
    ("__builtin__", "slice"): "slice",
    # Protocol 2 has no bytes: they travel as text of the code points 0..255.
    ("_codecs", "encode"): "bytes of text",
    ("__builtin__", "bytes"): "no bytes",
}
_NUMERIC = re.compile(r"b1|[iu][1248]|f[248]", re.ASCII)


def read_table(path: Path, remedy: str | None = None) -> Table:
    """``parse_table`` of a file; ``remedy`` says what to do when it is missing."""
    return parse_table(read_bytes(path, COMPRESSED_LIMIT, remedy), path)


def parse_table(data: bytes, path: Path) -> Table:
    """Columns of a gzip-compressed pickled DataFrame (see ``parse_pickled_table``)."""
    return parse_pickled_table(_decompress(data, path), path)


def parse_pickled_table(data: bytes, path: Path) -> Table:
    """Columns of a pickled DataFrame.

    Args:
        data: the pickle, protocol 2 to 5.
        path: its name, for messages.

    Returns:
        By name, in the order of the table: (rows,) boolean, integer or float arrays, which may be
        read-only views; columns of text are object arrays of ``str``, ``None`` and plain numbers.

    Raises:
        DataError: not such a table, damaged, too large, or it names a class that no table needs.
    """
    try:
        return _columns(read_records(data, _ADMITTED), len(data))
    except MalformedPickle as error:
        raise DataError(
            f"is not a table of plain columns: it {error}", path=path, remedy=error.remedy
        ) from error


def _decompress(data: bytes, path: Path) -> bytes:
    stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        content = stream.decompress(data, SIZE_LIMIT)
    except zlib.error as error:
        raise _bad_archive(f"is not a whole gzip file ({error})", path) from error
    if not stream.eof and (stream.unconsumed_tail or len(content) >= SIZE_LIMIT):
        raise _bad_archive(f"unpacks to more than {SIZE_LIMIT} bytes", path)
    if not stream.eof:
        raise _bad_archive("is not a whole gzip file (it is truncated)", path)
    if stream.unused_data:
        raise _bad_archive("has something after the end of the gzip file", path)
    return content


def _bad_archive(problem: str, path: Path) -> DataError:
    return DataError(problem, path=path, remedy="unpack the dataset's archive again")


def _columns(value: Any, size: int) -> Table:
    state = _record(value, "frame").state
    if not isinstance(state, dict):
        raise MalformedPickle("has no state of a DataFrame")
    axes, blocks = _manager(state.get("_mgr", state.get("_data")))
    names, rows = _names(axes[0]), _length(axes[1])
    found: dict[int, np.ndarray] = {}
    numeric = objects = 0
    for values, places in blocks:
        block = _block(values, rows)
        numeric += 0 if block.dtype.kind == "O" else block.nbytes
        objects += block.size if block.dtype.kind == "O" else 0
        # Blocks may refer to the same content: a small file must not become a large table.
        if numeric > size or objects > OPERATION_LIMIT:
            raise MalformedPickle("has more cells than it has content")
        for location, column in _placed(block, places, len(names)):
            if location in found:
                raise MalformedPickle(f"has two columns in place {location}")
            found[location] = column
    if len(found) != len(names):
        raise MalformedPickle(f"has {len(names)} names, but {len(found)} columns")
    return {name: found[location] for location, name in enumerate(names)}


def _manager(value: Any) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Axes (columns, rows), and (values, places) of each block."""
    manager = _record(value, "manager")
    if manager.state is None and len(manager.arguments) == 2:
        blocks, axes = manager.arguments
        pairs = [_new_block(block) for block in _sequence(blocks)]
    else:
        state = manager.state
        extra = state[3] if isinstance(state, tuple) and len(state) == 4 else None
        content = extra.get("0.14.1") if isinstance(extra, dict) else None
        if not isinstance(content, dict):
            raise MalformedPickle("has blocks in a layout that is not known")
        axes = content.get("axes")
        pairs = [_old_block(block) for block in _sequence(content.get("blocks"))]
    axes = _sequence(axes)
    if len(axes) != 2:
        raise MalformedPickle(f"has {len(axes)} axes, not columns and rows")
    return axes, pairs


def _new_block(value: Any) -> tuple[Any, Any]:
    arguments = _record(value, "block").arguments
    if len(arguments) != 3:
        raise MalformedPickle("has a block that is not values, places and dimensions")
    return arguments[0], arguments[1]


def _old_block(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, dict) or not {"values", "mgr_locs"} <= set(value):
        raise MalformedPickle("has a block that is not values and mgr_locs")
    return value["values"], value["mgr_locs"]


def _block(values: Any, rows: int) -> np.ndarray:
    """Columns of one type, (columns, rows)."""
    table = _array(values)
    # A block of text of pandas 3 is one column and has one dimension.
    table = table[None] if table.ndim == 1 else table
    if table.shape[1] != rows:
        raise MalformedPickle(f"has a block of shape {table.shape} in a table of {rows} rows")
    return table


def _placed(block: np.ndarray, places: Any, columns: int) -> list[tuple[int, np.ndarray]]:
    locations = _locations(places, columns)
    if len(locations) != len(block):
        raise MalformedPickle(f"has {len(locations)} places for {len(block)} columns")
    return list(zip(locations, block, strict=True))


def _locations(value: Any, columns: int) -> list[int]:
    if isinstance(value, Record) and value.role == "slice":
        parts = value.arguments
        if len(parts) != 3 or not all(part is None or type(part) is int for part in parts):
            raise MalformedPickle("has places of columns that are not a slice")
        if parts[2] == 0:
            raise MalformedPickle("has a slice of step 0")
        return list(range(columns))[slice(*parts)]
    places = _array(value)
    if places.ndim != 1 or places.dtype.kind not in "iu" or len(places) > columns:
        raise MalformedPickle("has places of columns that are not a row of integers")
    if len(places) and not 0 <= places.min() <= places.max() < columns:
        raise MalformedPickle(f"has places of columns that are not in 0..{columns - 1}")
    return [int(place) for place in places]


def _names(value: Any) -> list[str]:
    labels = _index(value)
    if isinstance(labels, int):
        raise MalformedPickle("has columns without names")
    names = labels.tolist() if labels.dtype.kind == "O" else []
    if len(names) != len(labels) or not all(isinstance(name, str) for name in names):
        raise MalformedPickle("has columns whose names are not text")
    if len(set(names)) != len(names) or len(names) > COLUMN_LIMIT:
        raise MalformedPickle(f"has columns of one name, or more than {COLUMN_LIMIT}")
    return names


def _length(value: Any) -> int:
    labels = _index(value)
    rows = labels if isinstance(labels, int) else len(labels)
    if rows > ROW_LIMIT:
        raise MalformedPickle(f"has {rows} rows; at most {ROW_LIMIT} are read")
    return rows


def _index(value: Any) -> np.ndarray | int:
    """Labels of an axis, or how many there are where it only counts them."""
    arguments = _record(value, "make index").arguments
    if len(arguments) != 2 or not isinstance(arguments[1], dict):
        raise MalformedPickle("has an axis that is not a class and its content")
    kind, content = arguments
    if kind == Symbol("range"):
        start, stop, step = (content.get(name) for name in ("start", "stop", "step"))
        if not type(start) is type(stop) is type(step) is int or step == 0:
            raise MalformedPickle("has an axis whose range is not of integers")
        return max(0, -((start - stop) // step))
    if kind != Symbol("index"):
        raise MalformedPickle("has an axis of another kind")
    labels = _array(content.get("data"))
    if labels.ndim != 1:
        raise MalformedPickle("has an axis of more than one dimension")
    return labels


def _array(value: Any) -> np.ndarray:
    """A plain array of one or two dimensions, or the text inside an array of pandas."""
    if not isinstance(value, Record):
        raise MalformedPickle("lacks an array")
    if value.role == "make strings":
        return _strings(value)
    if value.role == "array of bytes":
        if len(value.arguments) != 4:
            raise MalformedPickle("has an array that is not bytes, type, shape and order")
        payload, dtype, shape, order = value.arguments
        return _filled(shape, _dtype(dtype), order == "F", payload)
    if value.role != "make array" or not _starts_an_array(value.arguments):
        raise MalformedPickle("has an array that starts in an unknown way")
    if not isinstance(value.state, tuple) or len(value.state) != 5:
        raise MalformedPickle("has an array without shape, type and content")
    _, shape, dtype, columns_first, payload = value.state
    return _filled(shape, _dtype(dtype), columns_first is True, payload)


def _starts_an_array(arguments: tuple[Any, ...]) -> bool:
    if len(arguments) != 3:
        return False
    kind, shape, code = arguments
    return kind == Symbol("array") and shape == (0,) and _payload_bytes(code) == b"b"


def _strings(value: Record) -> np.ndarray:
    if not value.arguments or value.arguments[0] != Symbol("strings"):
        raise MalformedPickle("has text in an array of an unknown kind")
    parts = value.state if isinstance(value.state, tuple) and len(value.state) <= 3 else ()
    plain = ("make array", "array of bytes")
    arrays = [part for part in parts if isinstance(part, Record) and part.role in plain]
    if len(arrays) != 1:
        raise MalformedPickle("has text without its array")
    return _array(arrays[0])


def _filled(shape: Any, dtype: np.dtype, columns_first: bool, payload: Any) -> np.ndarray:
    if not isinstance(shape, tuple) or len(shape) not in (1, 2):
        raise MalformedPickle("has an array that is neither a row nor a table")
    if not all(type(size) is int and 0 <= size <= ROW_LIMIT for size in shape):
        raise MalformedPickle(f"has an array with a side that is not in 0..{ROW_LIMIT}")
    text = dtype.kind == "O"
    content: Any = _items(payload) if text else _payload_bytes(payload)
    needed = math.prod(shape) * (1 if text else dtype.itemsize)
    if len(content) != needed:
        raise MalformedPickle(f"has an array of {len(content)} items or bytes, not {needed}")
    order: Literal["F", "C"] = "F" if columns_first else "C"
    if not text:
        return np.ndarray(shape, dtype, buffer=content, order=order)
    flat = np.empty(len(content), object)
    flat[:] = content
    return np.reshape(flat, shape, order=order)


def _items(payload: Any) -> list[Any]:
    items = _sequence(payload)
    if not all(item is None or type(item) in (str, float, int, bool) for item in items):
        raise MalformedPickle("has a column of objects that are not text or numbers")
    return items


def _payload_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    role, arguments = (value.role, value.arguments) if isinstance(value, Record) else ("", ())
    if role == "no bytes" and not arguments:
        return b""
    if role != "bytes of text" or len(arguments) != 2:
        raise MalformedPickle("has an array whose content is not bytes")
    text, encoding = arguments
    if not isinstance(text, str) or encoding != "latin1":
        raise MalformedPickle("has bytes in an encoding other than latin1")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise MalformedPickle("has bytes above 255") from error


def _dtype(value: Any) -> np.dtype:
    record = _record(value, "dtype")
    code = record.arguments[0] if record.arguments else None
    state = record.state
    if not isinstance(code, str) or not isinstance(state, tuple) or len(state) < 5:
        raise MalformedPickle("has an array of an unknown type")
    order = state[1]
    if code == "O8" and order == "|":
        return np.dtype(object)
    # Structured types and subarrays keep their parts in the state.
    plain = _NUMERIC.fullmatch(code) and state[2] is state[3] is state[4] is None
    if not plain or order not in (("|",) if code.endswith("1") else ("<", ">")):
        raise MalformedPickle(f"has an array of type {code[:20]!r}, which is not numeric")
    return np.dtype(order + code)


def _record(value: Any, role: str) -> Record:
    if not isinstance(value, Record) or value.role != role:
        raise MalformedPickle(f"lacks a {role}")
    return value


def _sequence(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise MalformedPickle("lacks a list")
    return list(value)
