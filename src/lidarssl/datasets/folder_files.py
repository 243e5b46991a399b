"""The json files of a folder of own recordings: calibration, classes, splits."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.files import check_name
from lidarssl.errors import DataError

_IGNORED_COLOR = (0, 0, 0)


@dataclass(frozen=True)
class CameraCalibration:
    """One camera of calibration.json.

    Attributes:
        intrinsics: (3, 3) float64, pixels of the files.
        camera_from_lidar: (4, 4) float64.
    """

    intrinsics: Tensor
    camera_from_lidar: Tensor


def parse_calibration(value: Any, path: Path) -> dict[str, CameraCalibration]:
    """``{"cameras": {name: {"intrinsics": 3x3, "camera_from_lidar": 4x4}}}``, checked.

    Raises:
        DataError: of another shape, or matrices that are not intrinsics or not rigid.
    """
    cameras = _object(_object(value, path, "calibration").get("cameras"), path, "cameras")
    return {
        check_name(name, path, "cameras"): CameraCalibration(
            _intrinsics(camera, path, name), _extrinsics(camera, path, name)
        )
        for name, camera in cameras.items()
    }


def _intrinsics(camera: Any, path: Path, name: str) -> Tensor:
    field = f"cameras.{name}.intrinsics"
    camera = _object(camera, path, f"cameras.{name}")
    matrix = _matrix(camera.get("intrinsics"), 3, path, field)
    focal = min(float(matrix[0, 0]), float(matrix[1, 1]))
    lower = [float(matrix[1, 0]), *matrix[2].tolist()]
    if focal <= 1e-3 or lower != [0, 0, 0, 1] or matrix.abs().max() > 1e6:
        raise DataError(
            "the matrix is not [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]",
            path=path,
            field=field,
            remedy="write it row by row, in pixels",
        )
    return matrix


def _extrinsics(camera: dict[str, Any], path: Path, name: str) -> Tensor:
    field = f"cameras.{name}.camera_from_lidar"
    matrix = _matrix(camera.get("camera_from_lidar"), 4, path, field)
    rotation, far = matrix[:3, :3], matrix[:3, 3].abs().max()
    good = (
        matrix[3].tolist() == [0, 0, 0, 1]
        and far < 100
        and rotation.abs().max() < 2
        and (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-3
        and torch.linalg.det(rotation) > 0
    )
    if not good:
        raise DataError(
            "the matrix is not a rotation with a translation in metres over 0 0 0 1",
            path=path,
            field=field,
            remedy="write camera_from_lidar row by row: X_camera = matrix @ X_lidar",
        )
    return matrix


def _matrix(value: Any, size: int, path: Path, field: str) -> Tensor:
    good = (
        isinstance(value, list)
        and len(value) == size
        and all(isinstance(row, list) and len(row) == size for row in value)
        and all(_is_number(item) for row in value for item in row)
    )
    if not good:
        raise DataError(f"is not {size} rows of {size} finite numbers", path=path, field=field)
    return torch.tensor([[float(item) for item in row] for row in value], dtype=torch.float64)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e15 and math.isfinite(value)


def _object(value: Any, path: Path, field: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise DataError("is not a filled json object", path=path, field=field)
    return value


def parse_classes(value: Any, path: Path) -> tuple[ClassTable, dict[int, int]]:
    """classes.json: the class table, and the train id of each raw label.

    Raises:
        DataError: of another shape, or a map to a class that has no name.
    """
    value = _object(value, path, "classes")
    names = value.get("names")
    if (
        not isinstance(names, list)
        or not 2 <= len(names) <= 1000
        or not all(isinstance(name, str) and name for name in names)
        or len(set(names)) != len(names)
    ):
        raise DataError(
            "'names' is not a list of at least two different names",
            path=path,
            field="names",
            remedy='write for example ["ignored", "car", "road"]',
        )
    table = ClassTable(tuple(names), _colors(value.get("colors"), len(names), path))
    if "map" not in value:
        return table, {index: index for index in range(len(names))}
    return table, _label_map(_object(value["map"], path, "map"), names, path)


def _label_map(value: dict[str, Any], names: list[str], path: Path) -> dict[int, int]:
    result = {0: 0}
    for raw, name in value.items():
        if not (raw.isascii() and raw.isdigit() and len(raw) <= 5 and int(raw) < 1 << 16):
            raise DataError(f"'{raw[:40]}' is not a raw label 0..65535", path=path, field="map")
        if not isinstance(name, str) or name not in names:
            raise DataError(
                f"raw label {raw} maps to {str(name)[:40]!r}, which is not in 'names'",
                path=path,
                field="map",
            )
        result[int(raw)] = names.index(name)
    return result


def _colors(value: Any, count: int, path: Path) -> tuple[tuple[int, int, int], ...]:
    """The given colours, or hues evenly around the wheel."""
    if value is None:
        hues = [colorsys.hsv_to_rgb(index / max(1, count - 1), 0.7, 0.9) for index in range(count)]
        wheel = tuple((int(255 * r), int(255 * g), int(255 * b)) for r, g, b in hues)
        return (_IGNORED_COLOR, *wheel[: count - 1])
    good = (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(color, list) and len(color) == 3 for color in value)
        and all(type(part) is int and 0 <= part <= 255 for color in value for part in color)
    )
    if not good:
        raise DataError(
            f"'colors' is not {count} lists of three integers 0..255", path=path, field="colors"
        )
    return tuple((color[0], color[1], color[2]) for color in value)


def parse_splits(value: Any, path: Path) -> dict[str, list[str]]:
    """splits.json, ``{"split": ["sequence", ...]}``, checked.

    Raises:
        DataError: of another shape, or a name that is not that of a folder.
    """
    splits = _object(value, path, "splits")
    for split, names in splits.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(
                f"split '{split[:40]}' is not a list of names",
                path=path,
                field="splits",
                remedy='write for example {"train": ["drive_a"], "val": ["drive_b"]}',
            )
        for name in names:
            check_name(name, path, "splits")
        if len(set(names)) != len(names):
            raise DataError(f"split '{split[:40]}' names a sequence twice", path=path)
    return splits
