"""Polygon files (.ply, version 1.0): ascii, binary little endian and binary big endian."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lidarssl.datasets.point_files import POINT_LIMIT, Columns
from lidarssl.errors import DataError

HEADER_LIMIT = 65_536
_ORDER = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}
_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}


@dataclass
class _Element:
    name: str
    count: int
    properties: list[tuple[str, str]] = field(default_factory=list)


def parse_ply(data: bytes, path: Path) -> Columns:
    """Properties of the element ``vertex``, which must stand first and have no lists.

    Returns:
        (N,) of each name, in the types of the file; float64 from ascii.

    Raises:
        DataError: malformed or truncated header or data.
    """
    try:
        encoding, vertex, body = _parse_header(data)
        read = _read_ascii if encoding == "ascii" else _read_binary
        return read(body, vertex, _ORDER[encoding])
    except (ValueError, KeyError, OverflowError, IndexError) as error:
        raise DataError(
            f"is not a readable PLY file ({str(error)[:200]})",
            path=path,
            remedy="write the vertices first, as scalar properties x, y, z, intensity",
        ) from error


def _parse_header(data: bytes) -> tuple[str, _Element, bytes]:
    end = data.find(b"end_header", 0, HEADER_LIMIT)
    if end < 0 or not data.startswith(b"ply"):
        raise ValueError("no header between 'ply' and 'end_header'")
    encoding = ""
    elements: list[_Element] = []
    for line in data[:end].decode("ascii").splitlines()[1:]:
        match line.split():
            case ["format", name, "1.0"]:
                encoding = name
            case ["element", name, count]:
                elements.append(_Element(name, int(count)))
            case ["property", kind, name] if elements:
                elements[-1].properties.append((name, _TYPES[kind]))
            case ["property", "list", *_] if elements and elements[-1].name != "vertex":
                pass
            case [] | ["comment" | "obj_info", *_]:
                pass
            case _:
                raise ValueError(f"header line '{line[:60]}'")
    if encoding not in _ORDER:
        raise ValueError(f"format '{encoding[:40]}' is unknown")
    if not elements or elements[0].name != "vertex":
        raise ValueError("the first element is not 'vertex'")
    vertex = elements[0]
    names = [name for name, _ in vertex.properties]
    if not 0 < vertex.count <= POINT_LIMIT or len(set(names)) != len(names) or not names:
        raise ValueError(f"{vertex.count} vertices with properties {names[:8]}")
    return encoding, vertex, data[data.index(b"\n", end) + 1 :]


def _read_ascii(body: bytes, vertex: _Element, order: str) -> dict[str, np.ndarray]:
    width = len(vertex.properties)
    words = body.split(None, width * vertex.count)[: width * vertex.count]
    if len(words) < width * vertex.count:
        raise ValueError(f"{len(words)} values, not {vertex.count} rows of {width}")
    table = np.array(words, dtype=np.float64).reshape(-1, width)
    return {name: table[:, index] for index, (name, _) in enumerate(vertex.properties)}


def _read_binary(body: bytes, vertex: _Element, order: str) -> dict[str, np.ndarray]:
    record = np.dtype([(name, order + kind) for name, kind in vertex.properties])
    if len(body) < record.itemsize * vertex.count:
        raise ValueError(f"{len(body)} bytes, not {vertex.count} records of {record.itemsize}")
    table = np.frombuffer(body, record, vertex.count)
    return {name: table[name] for name, _ in vertex.properties}
