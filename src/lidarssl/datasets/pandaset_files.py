"""The json files and tables of a PandaSet scene, checked value by value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.files import parse_json
from lidarssl.datasets.table_pickles import Table
from lidarssl.errors import DataError
from lidarssl.frame import Boxes
from lidarssl.geometry.poses import pose_from_quaternion, transform_points

_REMEDY = "unpack this scene again"
_FARTHEST = 1e9
_LARGEST = 1000.0
_HIGHEST_LABEL = 42
# Moving objects that both lidars see have a box for each; all others have one, of no sensor.
_BOTH_SENSORS = -1


def parse_poses(data: bytes, path: Path) -> Tensor:
    """``[{"position": {x, y, z}, "heading": {w, x, y, z}}, ...]``: world_from_sensor of each frame.

    Returns:
        (F, 4, 4) float64.

    Raises:
        DataError: of another shape, or a heading that is no unit quaternion.
    """
    poses = [
        _pose(_object(entry, path, f"[{number}]"), path, f"[{number}]")
        for number, entry in enumerate(_list(parse_json(data, path), path))
    ]
    return torch.stack(poses) if poses else torch.zeros((0, 4, 4), dtype=torch.float64)


def _pose(entry: dict[str, Any], path: Path, field: str) -> Tensor:
    position = _numbers(entry.get("position"), "xyz", path, f"{field}.position")
    heading = _numbers(entry.get("heading"), "wxyz", path, f"{field}.heading")
    if abs(math.hypot(*heading) - 1) > 1e-2 or max(map(abs, position)) > _FARTHEST:
        raise _wrong("is not a unit quaternion and a position in metres", path, field)
    return pose_from_quaternion(heading, position)


def parse_intrinsics(data: bytes, path: Path) -> Tensor:
    """``{"fx", "fy", "cx", "cy"}``, (3, 3) float64 in pixels of the files.

    Raises:
        DataError: of another shape, or a focal length that is not positive.
    """
    content = _object(parse_json(data, path), path, "intrinsics")
    fx, fy, cx, cy = _numbers(content, ("fx", "fy", "cx", "cy"), path, "intrinsics")
    if min(fx, fy) <= 0:
        raise _wrong("has a focal length that is not positive", path, "fx, fy")
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)


def parse_timestamps(data: bytes, path: Path) -> list[float]:
    """``[seconds, ...]``, one of each frame, since 1970.

    Raises:
        DataError: of another shape.
    """
    values = _list(parse_json(data, path), path)
    return [_number(value, path, f"[{number}]") for number, value in enumerate(values)]


def parse_latitude(data: bytes, path: Path) -> float:
    """Degrees, where the scene starts: ``[{"lat": ...}, ...]``.

    Raises:
        DataError: of another shape, or empty.
    """
    entries = _list(parse_json(data, path), path)
    if not entries:
        raise _wrong("has no entry", path, "[0].lat")
    return _number(_object(entries[0], path, "[0]").get("lat"), path, "[0].lat")


def of_frame(values: Tensor | Sequence[float], frame: int, path: Path) -> Any:
    """The entry of a frame in a list that has one for each frame of the scene.

    Raises:
        DataError: the list is shorter.
    """
    if frame >= len(values):
        raise DataError(
            f"has {len(values)} entries, but there is a frame {frame} (from 0)",
            path=path,
            field=f"[{frame}]",
            remedy=f"{_REMEDY}: this file has one entry for each frame number",
        )
    return values[frame]


def numeric_columns(table: Table, names: Sequence[str], path: Path) -> list[np.ndarray]:
    """Columns of numbers, each (rows,).

    Raises:
        DataError: a column is missing or not of numbers.
    """
    for name in names:
        if name not in table or table[name].dtype.kind not in "iuf":
            raise _wrong(
                f"has no column of numbers '{name}' (columns: {', '.join(table)[:200]})", path, name
            )
    return [table[name] for name in names]


def raw_labels(table: Table, path: Path, rows: int) -> np.ndarray:
    """Labels of all points of both lidars, (rows,) int64 in 0..42.

    Raises:
        DataError: not one label per point, not integers, or outside 0..42.
    """
    (labels,) = numeric_columns(table, ["class"], path)
    if len(labels) != rows or labels.dtype.kind not in "iu":
        raise _wrong(
            f"has {len(labels)} labels of type {labels.dtype}, but the scan has {rows} points "
            "and labels are integers",
            path,
            "class",
        )
    known = (labels >= 0) & (labels <= _HIGHEST_LABEL)
    if not known.all():
        row = int(known.argmin())
        raise _wrong(
            f"has label {labels[row]} in row {row} (from 0), not 0..{_HIGHEST_LABEL}", path, "class"
        )
    return labels.astype(np.int64)


_BOX_COLUMNS = (
    "position.x", "position.y", "position.z",
    "dimensions.y", "dimensions.x", "dimensions.z", "yaw", "cuboids.sensor_id",
)  # fmt: skip


def boxes_in_lidar(
    table: Table,
    path: Path,
    lidar_from_world: Tensor,
    device: int,
    label_of: Mapping[str, int | None],
) -> Boxes:
    """Cuboids of a frame, of those that were drawn twice the ones drawn for this lidar.

    Args:
        table: columns of the cuboids file; its boxes are upright in the world, and yaw 0 looks
            along the world's y.
        path: its name, for messages.
        lidar_from_world: (4, 4) float64.
        device: 0 = Pandar64, 1 = PandarGT.
        label_of: index of the class of each name; None = a box that is dropped.

    Returns:
        Boxes upright in the lidar frame: the car's small tilt moves their centres only.

    Raises:
        DataError: a column is missing, a name is unknown, or a box is impossible.
    """
    values = np.column_stack(numeric_columns(table, _BOX_COLUMNS, path)).astype(np.float64)
    names = table["label"].tolist() if "label" in table else []
    if len(names) != len(values):
        raise _wrong("has no column 'label'", path, "label")
    unknown = [name for name in names if not isinstance(name, str) or name not in label_of]
    if unknown:
        raise _wrong(f"has a box of the unknown class {str(unknown[0])[:40]!r}", path, "label")
    _check_boxes(values, path)
    sensor = values[:, 7]
    kept = (sensor == _BOTH_SENSORS) | (sensor == device)
    kept &= np.array([label_of[name] is not None for name in names], bool)
    labels = [label_of[name] for name, keep in zip(names, kept, strict=True) if keep]
    rows = torch.from_numpy(values[kept])
    yaw = rows[:, 6]
    heading = torch.stack([-torch.sin(yaw), torch.cos(yaw), torch.zeros_like(yaw)], 1)
    heading = heading @ lidar_from_world[:3, :3].T
    return Boxes(
        center=transform_points(rows[:, :3], lidar_from_world).float(),
        size=rows[:, 3:6].float(),
        yaw=torch.atan2(heading[:, 1], heading[:, 0]).float(),
        label=torch.tensor(labels, dtype=torch.int64),
    )


def _check_boxes(values: np.ndarray, path: Path) -> None:
    size = values[:, 3:6]
    possible = (np.isfinite(values) & (np.abs(values) <= _FARTHEST)).all(1)
    possible &= ((size > 0) & (size < _LARGEST)).all(1)
    if not possible.all():
        row = int(possible.argmin())
        raise _wrong(
            f"has an impossible box in row {row} (from 0): "
            + ", ".join(f"{value:g}" for value in values[row]),
            path,
            ", ".join(_BOX_COLUMNS),
        )


def _numbers(value: Any, names: Sequence[str], path: Path, field: str) -> list[float]:
    content = _object(value, path, field)
    return [_number(content.get(name), path, f"{field}.{name}") for name in names]


def _number(value: Any, path: Path, field: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e15:
        raise _wrong("is not a finite number", path, field)
    return float(value)


def _list(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong("is not a list with one entry for each frame", path, "list")
    return value


def _object(value: Any, path: Path, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong("is not a json object", path, field)
    return value


def _wrong(problem: str, path: Path, field: str) -> DataError:
    return DataError(problem, path=path, field=field, remedy=_REMEDY)
