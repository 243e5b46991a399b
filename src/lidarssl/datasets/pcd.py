"""Point Cloud Data files (.pcd, PCL format 0.7): ascii, binary and binary_compressed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lidarssl.datasets import lzf
from lidarssl.datasets.point_files import POINT_LIMIT, Columns
from lidarssl.errors import DataError

HEADER_LIMIT = 16_384
_TYPES = {
    ("F", 4): "<f4",
    ("F", 8): "<f8",
    **{("I", size): f"<i{size}" for size in (1, 2, 4, 8)},
    **{("U", size): f"<u{size}" for size in (1, 2, 4, 8)},
}


@dataclass(frozen=True)
class _Header:
    names: tuple[str, ...]
    types: tuple[np.dtype, ...]
    counts: tuple[int, ...]
    points: int
    encoding: str


def parse_pcd(data: bytes, path: Path) -> Columns:
    """Fields of one value per point, by name.

    Returns:
        (N,) of each name, in the types of the file; float64 from ascii.

    Raises:
        DataError: malformed or truncated header or data.
    """
    try:
        header, body = _parse_header(data)
        return _READERS[header.encoding](body, header)
    except (ValueError, KeyError, OverflowError, struct.error) as error:
        raise DataError(
            f"is not a readable PCD file ({str(error)[:200]})",
            path=path,
            remedy="write it again as PCD 0.7: ascii, binary or binary_compressed",
        ) from error


def _parse_header(data: bytes) -> tuple[_Header, bytes]:
    values: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in values:
        end = data.find(b"\n", position, HEADER_LIMIT)
        if end < 0:
            raise ValueError("the header has no DATA line")
        words = data[position:end].decode("ascii").split()
        position = end + 1
        if words and not words[0].startswith("#"):
            values[words[0].upper()] = words[1:]
    names = values["FIELDS"]
    sizes = [int(size) for size in values["SIZE"]]
    counts = [int(count) for count in values.get("COUNT", ["1"] * len(names))]
    kinds = values["TYPE"]
    points = int(values["POINTS"][0]) if values.get("POINTS") else _area(values)
    if not len(names) == len(sizes) == len(counts) == len(kinds):
        raise ValueError("FIELDS, SIZE, TYPE and COUNT differ in length")
    if not all(0 < count <= 4096 for count in counts) or not 0 < points <= POINT_LIMIT:
        raise ValueError(f"{points} points with COUNT {counts[:8]} are out of range")
    types = tuple(np.dtype(_TYPES[key]) for key in zip(kinds, sizes, strict=True))
    encoding = " ".join(values["DATA"])
    if encoding not in _READERS:
        raise ValueError(f"DATA {encoding[:40]} is unknown")
    return _Header(tuple(names), types, tuple(counts), points, encoding), data[position:]


def _area(values: dict[str, list[str]]) -> int:
    return int(" ".join(values["WIDTH"])) * int(" ".join(values["HEIGHT"]))


def _read_ascii(body: bytes, header: _Header) -> dict[str, np.ndarray]:
    words = body.split()
    width = sum(header.counts)
    if len(words) != width * header.points:
        raise ValueError(f"{len(words)} values, not {header.points} rows of {width}")
    table = np.array(words, dtype=np.float64).reshape(header.points, width)
    first = np.cumsum((0, *header.counts))
    return {
        name: table[:, start]
        for name, start, count in zip(header.names, first, header.counts, strict=False)
        if count == 1
    }


def _read_binary(body: bytes, header: _Header) -> dict[str, np.ndarray]:
    sizes = [kind.itemsize * count for kind, count in zip(header.types, header.counts, strict=True)]
    record = sum(sizes)
    if len(body) < record * header.points:
        raise ValueError(f"{len(body)} bytes, not {header.points} records of {record}")
    offsets = np.cumsum((0, *sizes))
    table = np.frombuffer(body, np.uint8, record * header.points).reshape(-1, record)
    return {
        name: np.ascontiguousarray(table[:, start : start + kind.itemsize]).view(kind)[:, 0]
        for name, start, kind, count in zip(
            header.names, offsets, header.types, header.counts, strict=False
        )
        if count == 1
    }


def _read_compressed(body: bytes, header: _Header) -> dict[str, np.ndarray]:
    """Columns one after the other, compressed together."""
    compressed, expanded = struct.unpack_from("<II", body)
    sizes = [kind.itemsize * count for kind, count in zip(header.types, header.counts, strict=True)]
    if expanded != sum(sizes) * header.points or len(body) < 8 + compressed:
        raise ValueError(
            f"{compressed} bytes announced to expand to {expanded}; {len(body) - 8} are there and "
            f"{sum(sizes) * header.points} are needed"
        )
    flat = lzf.decompress(body[8 : 8 + compressed], expanded)
    offsets = np.cumsum((0, *sizes)) * header.points
    return {
        name: np.frombuffer(flat, kind, header.points, offset=int(start))
        for name, start, kind, count in zip(
            header.names, offsets, header.types, header.counts, strict=False
        )
        if count == 1
    }


_READERS = {
    "ascii": _read_ascii,
    "binary": _read_binary,
    "binary_compressed": _read_compressed,
}
