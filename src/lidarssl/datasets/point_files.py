"""Sweeps and per-point labels from raw bytes: .bin, .npy, .pcd, .ply and .label.

Every parser takes the bytes and the file's name, so that it can be tested without a disk, and
raises ``DataError`` for whatever it cannot use.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.wording import counted

KITTI_COLUMNS = ("x", "y", "z", "intensity")
NUSCENES_COLUMNS = ("x", "y", "z", "intensity", "ring")
IGNORED_COLUMN = "_"
POINT_LIMIT = 20_000_000
FARTHEST = 10_000.0
HIGHEST_RING = 65_535

_INTENSITY_NAMES = ("intensity", "i", "reflectance", "remission", "scalar_intensity")
_RING_NAMES = ("ring", "channel", "laser_id", "scalar_ring")


Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PointCloud:
    """One sweep.

    Attributes:
        points: (N, 3) float32 m.
        intensity: (N,) float32; zeros when the file has none.
        ring: (N,) int64 beam index, or None.
        kept: (R,) bool, which rows of the file these points are.
    """

    points: Tensor
    intensity: Tensor
    ring: Tensor | None
    kept: Tensor


def parse_bin(data: bytes, path: Path, columns: Sequence[str]) -> Columns:
    """Little-endian float32 records, as KITTI and nuScenes store them.

    Args:
        data: content of the file.
        path: its name, for messages.
        columns: meaning of the record: ``x y z`` and optionally ``intensity``, ``ring``; other
            names are read over.

    Returns:
        (N,) float32 of each name.

    Raises:
        DataError: not a whole number of records.
    """
    check_columns(columns)
    record = 4 * len(columns)
    if len(data) % record:
        raise DataError(
            f"{len(data)} bytes are not a whole number of {record}-byte points",
            path=path,
            field="points",
            remedy=f"get the file again, or correct the columns (now {' '.join(columns)})",
        )
    table = np.frombuffer(data, "<f4").reshape(-1, len(columns))
    return dict(zip(columns, table.T, strict=True))


def parse_npy(data: bytes, path: Path, columns: Sequence[str]) -> Columns:
    """A NumPy array of shape (N, columns) of any real type (see ``parse_bin``)."""
    check_columns(columns)
    table = parse_array(data, path)
    if table.ndim != 2 or table.shape[1] != len(columns):
        raise DataError(
            f"the array has shape {table.shape}, not (points, {len(columns)})",
            path=path,
            field="points",
            remedy=f"save one row per point with columns {' '.join(columns)}",
        )
    return dict(zip(columns, table.T, strict=True))


def parse_npy_header(data: bytes, path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether columns come first, type, and where the values of a .npy array start.

    Raises:
        DataError: not such a header.
    """
    try:
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version}")
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        return *read_header(stream), stream.tell()
    # NumPy evaluates the header as a literal, which can fail in every way a parser can.
    except Exception as error:
        raise DataError(f"is not a .npy array ({str(error)[:200]})", path=path) from error


def parse_array(data: bytes, path: Path) -> np.ndarray:
    """A plain .npy array; nothing is unpickled and nothing allocated beyond ``data``.

    Raises:
        DataError: not .npy, of a type that is not boolean, integer or float, or truncated.
    """
    shape, columns_first, dtype, start = parse_npy_header(data, path)
    count = int(np.prod([int(size) for size in shape], dtype=object))
    if dtype.kind not in "biuf" or count < 0 or count * dtype.itemsize != len(data) - start:
        raise DataError(
            f"an array of shape {shape} and type {dtype} does not match the "
            f"{len(data) - start} bytes that follow",
            path=path,
            remedy="save a plain numeric array with numpy.save",
        )
    array = np.frombuffer(data, dtype, offset=start)
    return array.reshape(shape, order="F" if columns_first else "C")


def check_columns(columns: Sequence[str]) -> None:
    """Refuse a record that has no position.

    Raises:
        ConfigError: x, y or z is missing, or a name stands twice.
    """
    named = [name for name in columns if name != IGNORED_COLUMN]
    if not {"x", "y", "z"} <= set(named) or len(set(named)) != len(named):
        raise ConfigError(
            f"columns {' '.join(columns)} do not name x, y and z once",
            field="columns",
            remedy=f"for example {' '.join(KITTI_COLUMNS)}; '{IGNORED_COLUMN}' skips a column",
        )


def make_cloud(columns: Columns, path: Path, drop_invalid: bool = False) -> PointCloud:
    """A checked sweep from named columns of one length, whatever the case of the names.

    Args:
        columns: of the file.
        path: its name, for messages.
        drop_invalid: leave out rows that are NaN or infinite instead of refusing the file.

    Raises:
        DataError: no points, no position, NaN or infinite values, or points beyond 10 km.
    """
    by_name = {name.lower(): values for name, values in columns.items()}
    missing = [axis for axis in "xyz" if axis not in by_name]
    if missing:
        raise DataError(
            f"has no column {', '.join(missing)} (columns: {', '.join(columns)[:200]})",
            path=path,
            field="points",
        )
    intensity = _first_of(by_name, _INTENSITY_NAMES)
    ring = _first_of(by_name, _RING_NAMES)
    points = np.empty((len(by_name["x"]), 3), np.float32)
    values = np.zeros(len(points), np.float32)
    # float32 is what the frame holds: a float64 value may be finite and still not fit.
    with np.errstate(over="ignore", invalid="ignore"):
        for axis, name in enumerate("xyz"):
            points[:, axis] = by_name[name]
        if intensity is not None:
            values[:] = intensity
    kept = _finite_rows(points, values)
    if not kept.all():
        if not drop_invalid:
            raise _not_finite(kept, path)
        points, values, ring = points[kept], values[kept], None if ring is None else ring[kept]
    _check_extent(points, path)
    return PointCloud(
        points=torch.from_numpy(points),
        intensity=torch.from_numpy(values),
        ring=None if ring is None else _beam_index(ring, path),
        kept=torch.from_numpy(kept),
    )


def _first_of(columns: Columns, names: Sequence[str]) -> np.ndarray | None:
    return next((columns[name] for name in names if name in columns), None)


def _finite_rows(points: np.ndarray, values: np.ndarray) -> np.ndarray:
    finite = np.isfinite(points)
    # Rows of three are slow to reduce, and nearly every sweep is whole.
    rows = np.ones(len(points), np.bool_) if finite.all() else finite.all(axis=1)
    return rows & np.isfinite(values)


def _not_finite(finite: np.ndarray, path: Path) -> DataError:
    return DataError(
        f"{int((~finite).sum())} of {len(finite)} points are NaN or infinite, the first in row "
        f"{int(finite.argmin())} (from 0)",
        path=path,
        field="points",
        remedy="get the file again, or remove these points and their labels",
    )


def _check_extent(points: np.ndarray, path: Path) -> None:
    if not 0 < len(points) <= POINT_LIMIT:
        raise DataError(
            f"has {len(points)} points; between 1 and {POINT_LIMIT} are read",
            path=path,
            field="points",
            remedy="remove this sweep, or get the file again",
        )
    far = max(float(points.max()), -float(points.min()))
    if far > FARTHEST:
        raise DataError(
            f"a point lies {far:.6g} m from the lidar",
            path=path,
            field="points",
            remedy="store points in metres in the lidar's own frame, not in map coordinates",
        )


def _beam_index(ring: np.ndarray, path: Path) -> Tensor:
    good = (ring >= 0) & (ring <= HIGHEST_RING)
    if not good.all():
        row = int(good.argmin())
        raise DataError(
            f"the beam index of row {row} is {ring[row]!s}, not 0..{HIGHEST_RING}",
            path=path,
            field="ring",
            remedy="correct the file's columns",
        )
    return torch.from_numpy(ring.astype(np.int64))


def parse_labels(data: bytes, path: Path, dtype: str, points: int) -> np.ndarray:
    """One integer per point.

    Args:
        data: content of the file.
        path: its name, for messages.
        dtype: little-endian type of a label, e.g. ``<u4``.
        points: points of the sweep.

    Returns:
        (N,) int64.

    Raises:
        DataError: the number of labels is not the number of points.
    """
    size = np.dtype(dtype).itemsize
    if len(data) != size * points:
        raise DataError(
            f"{len(data)} bytes are {len(data) / size:g} labels, but the sweep has {points} points",
            path=path,
            field="labels",
            remedy="use the label file made for this sweep",
        )
    return np.frombuffer(data, dtype).astype(np.int64)


def map_labels(raw: np.ndarray, lookup: np.ndarray, path: Path) -> Tensor:
    """Train ids of raw labels.

    Args:
        raw: (N,) int64, not negative.
        lookup: (L,) int64 train id of each raw id, -1 = unknown.
        path: the label file, for messages.

    Returns:
        (N,) int64.

    Raises:
        DataError: a raw id is unknown.
    """
    if raw.max(initial=0) < len(lookup):
        train = lookup[raw]
    else:
        known = raw < len(lookup)
        train = np.where(known, lookup[np.where(known, raw, 0)], -1)
    if train.min(initial=0) < 0:
        unknown = np.unique(raw[train < 0])
        raise DataError(
            f"{counted(int((train < 0).sum()), 'point')} with labels outside of the class table: "
            f"{', '.join(str(value) for value in unknown[:8])}",
            path=path,
            field="labels",
            remedy="check that the labels belong to this dataset and version",
        )
    return torch.from_numpy(train)
