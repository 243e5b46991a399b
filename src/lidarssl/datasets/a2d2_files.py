"""The files of A2D2: scans as archives of arrays, and the calibration of its six cameras."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.files import MEBIBYTE, parse_json
from lidarssl.datasets.kitti_files import projection_matrix
from lidarssl.datasets.npz import Npz
from lidarssl.datasets.point_files import PointCloud, make_cloud
from lidarssl.errors import DataError
from lidarssl.geometry.distortion import LENSES, Lens

# Turns of five lidars of 16 beams are about 150,000 points, 15 MiB before compression.
SCAN_LIMIT = 32 * MEBIBYTE
_ARRAY_LIMIT = 64 * MEBIBYTE
# Of every point; a scan without points lacks the last three.
_COLUMNS = ("points", "reflectance", "row", "col")
_OLD_PREFIX = "pcloud_"
_LENS_OF_NAME: dict[str, Lens] = {"Telecam": "brown", "Fisheye": "fisheye"}
_STRONGEST = 100.0
_LARGEST = 100_000
_FARTHEST_TIME = 1e12
_CALIBRATION_REMEDY = "get cams_lidars.json from the dataset's publisher again"
_SCAN_REMEDY = "unpack this scene's lidar archive again"


@dataclass(frozen=True)
class A2d2Camera:
    """One camera of the calibration file.

    Attributes:
        intrinsics: (3, 3) float64 of the undistorted image.
        original: (3, 3) float64 of the image as stored.
        distortion: (K,) float64 coefficients.
        lens: their model.
        size: (height, width) of an image.
    """

    intrinsics: Tensor
    original: Tensor
    distortion: Tensor
    lens: Lens
    size: tuple[int, int]


def parse_camera(data: bytes, path: Path, name: str) -> A2d2Camera:
    """The camera ``name`` of cams_lidars.json, e.g. ``front_center``.

    Raises:
        DataError: not there, of another shape, or a value that cannot be.
    """
    cameras = _entry(parse_json(data, path), "cameras", path, "cameras")
    field = f"cameras.{name}"
    camera = _entry(cameras, name, path, field)
    if not isinstance(camera, dict):
        raise _wrong("is not a json object", path, field)
    kind = camera.get("Lens")
    lens = _LENS_OF_NAME.get(kind) if isinstance(kind, str) else None
    if lens is None:
        raise _wrong(f"{str(kind)[:40]!r} is not Telecam or Fisheye", path, f"{field}.Lens")
    return A2d2Camera(
        intrinsics=_matrix(camera.get("CamMatrix"), path, f"{field}.CamMatrix"),
        original=_matrix(camera.get("CamMatrixOriginal"), path, f"{field}.CamMatrixOriginal"),
        distortion=_distortion(camera.get("Distortion"), lens, path, f"{field}.Distortion"),
        lens=lens,
        size=_size(camera.get("Resolution"), path, f"{field}.Resolution"),
    )


def _entry(content: Any, key: str, path: Path, field: str) -> Any:
    if not isinstance(content, dict) or key not in content:
        known = f" (there are {', '.join(content)[:200]})" if isinstance(content, dict) else ""
        raise _wrong(f"has no '{key}'{known}", path, field)
    return content[key]


def _matrix(value: Any, path: Path, field: str) -> Tensor:
    rows = value if isinstance(value, list) and len(value) == 3 else [None]
    numbers = np.array([_numbers(row, (3,), path, field) for row in rows])
    projection = np.hstack([numbers, np.zeros((3, 1))]).ravel()
    return projection_matrix(projection, path, field, _CALIBRATION_REMEDY)[:, :3].clone()


def _distortion(value: Any, lens: Lens, path: Path, field: str) -> Tensor:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    numbers = _numbers(value, LENSES[lens], path, field)
    if max(map(abs, numbers)) > _STRONGEST:
        raise _wrong("is not a list of distortion coefficients", path, field)
    return torch.tensor(numbers, dtype=torch.float64)


def _size(value: Any, path: Path, field: str) -> tuple[int, int]:
    width, height = _numbers(value, (2,), path, field)
    if not all(1 <= side <= _LARGEST and side == int(side) for side in (width, height)):
        raise _wrong("is not width and height in pixels", path, field)
    return int(height), int(width)


def _numbers(value: Any, counts: Sequence[int], path: Path, field: str) -> list[float]:
    if not isinstance(value, list) or len(value) not in counts:
        raise _wrong(f"is not a list of {' or '.join(map(str, counts))} numbers", path, field)
    if not all(type(number) in (int, float) and abs(number) < 1e15 for number in value):
        raise _wrong("holds something that is not a finite number", path, field)
    return [float(number) for number in value]


def _wrong(problem: str, path: Path, field: str) -> DataError:
    return DataError(problem, path=path, field=field, remedy=_CALIBRATION_REMEDY)


@dataclass(frozen=True)
class A2d2Scan:
    """What one camera sees of the five lidars.

    Attributes:
        cloud: points in the view frame of the camera, x forward, y left, z up.
        time: (N,) float32 s since the first of them, or None.
    """

    cloud: PointCloud
    time: Tensor | None


def is_usable(file: BinaryIO, path: Path) -> bool:
    """Whether a scan has points, and the reflectance and pixels of them, by its headers alone.

    Raises:
        DataError: not a readable .npz file, or without an array of points.
    """
    archive = Npz(file, path, _ARRAY_LIMIT)
    names = _names(archive)
    complete = all(name in archive.names for name in names.values())
    shape = archive.header(names["points"]).shape
    return complete and len(shape) > 0 and shape[0] > 0


def parse_scan(data: bytes, path: Path) -> A2d2Scan:
    """Arrays of length N: points (N, 3), reflectance, row, col, and timestamp (microseconds).

    Of ``row`` and ``col``, the pixels in the undistorted image, only the headers are read:
    projecting the points gives the same. ``pcloud_points``, ``pcloud_attr.reflectance``, ... are
    the names of early files.

    Raises:
        DataError: damaged, a column is missing or of another length, no points, NaN.
    """
    archive = Npz(io.BytesIO(data), path, _ARRAY_LIMIT)
    names = _names(archive)
    archive.require(names.values())
    headers = {column: archive.header(name) for column, name in names.items()}
    shape = headers["points"].shape
    if len(shape) != 2 or shape[1] != 3:
        raise _wrong_scan(f"has shape {shape}, not (points, 3)", path, names["points"])
    for column in _COLUMNS[1:]:
        if headers[column].shape != shape[:1]:
            problem = f"has shape {headers[column].shape}, but there are {shape[0]} points"
            raise _wrong_scan(problem, path, names[column])
    points = archive.array(names["points"])
    columns = {
        **dict(zip("xyz", points.T, strict=True)),
        "reflectance": archive.array(names["reflectance"]),
    }
    return A2d2Scan(make_cloud(columns, path), _times(archive, path, shape[0]))


def _names(archive: Npz) -> dict[str, str]:
    """Name of the array of each column, as this file spells it."""
    if f"{_OLD_PREFIX}points" not in archive.names:
        return {column: column for column in _COLUMNS}
    return {
        column: f"{_OLD_PREFIX}{'' if column == 'points' else 'attr.'}{column}"
        for column in _COLUMNS
    }


def _times(archive: Npz, path: Path, count: int) -> Tensor | None:
    known = ("timestamp", f"{_OLD_PREFIX}attr.timestamp")
    name = next((name for name in known if name in archive.names), None)
    if name is None:
        return None
    # Microseconds since 1970 are exact in float64.
    microseconds = archive.array(name).astype(np.float64)
    if microseconds.shape != (count,):
        problem = f"has shape {microseconds.shape}, but there are {count} points"
        raise _wrong_scan(problem, path, name)
    relative = microseconds - microseconds.min()
    if not (relative < _FARTHEST_TIME).all():
        raise _wrong_scan("a time is NaN, or far from the others", path, name)
    return torch.from_numpy((relative / 1e6).astype(np.float32))


def _wrong_scan(problem: str, path: Path, field: str) -> DataError:
    return DataError(problem, path=path, field=field, remedy=_SCAN_REMEDY)
