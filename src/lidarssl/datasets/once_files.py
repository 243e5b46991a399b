"""The json file of an ONCE sequence: calibration, poses and boxes, checked value by value."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.files import parse_json
from lidarssl.datasets.kitti_files import projection_matrix, rigid
from lidarssl.errors import DataError
from lidarssl.frame import Boxes
from lidarssl.geometry.distortion import COUNTS
from lidarssl.geometry.poses import invert_pose, pose_from_quaternion

_REMEDY = "unpack the annotations of this sequence again"
_FARTHEST = 10_000.0
_LARGEST = 1000.0
_STRONGEST = 100.0


@dataclass(frozen=True)
class OnceCamera:
    """One camera of a sequence.

    Attributes:
        intrinsics: (3, 3) float64, pixels of the files.
        camera_from_lidar: (4, 4) float64.
        distortion: (4,), (5,) or (8,) float64 k1 k2 p1 p2 [k3 [k4 k5 k6]].
    """

    intrinsics: Tensor
    camera_from_lidar: Tensor
    distortion: Tensor


@dataclass(frozen=True)
class OnceSequence:
    """What the json file of a sequence says.

    Attributes:
        cameras: by name.
        poses: (4, 4) float64 world_from_lidar of each frame that has one.
        boxes: (B, 8) float32 of each annotated frame: centre m, length, width, height m, yaw rad,
            index of the class.
    """

    cameras: dict[str, OnceCamera]
    poses: dict[str, Tensor]
    boxes: dict[str, Tensor]

    def frame_boxes(self, frame: str) -> Boxes:
        """Boxes of an annotated frame, in its lidar frame."""
        values = self.boxes[frame]
        return Boxes(
            center=values[:, :3].clone(),
            size=values[:, 3:6].clone(),
            yaw=values[:, 6].clone(),
            label=values[:, 7].long(),
        )


def parse_once(data: bytes, path: Path, classes: Sequence[str]) -> OnceSequence:
    """``{"calib": {camera: ...}, "frames": [{"frame_id", "pose", "annos"}, ...]}``.

    Args:
        data: content of SSSSSS.json.
        path: its name, for messages.
        classes: names of boxes.

    Raises:
        DataError: of another shape, or a value that cannot be.
    """
    content = _object(parse_json(data, path), path, "sequence")
    cameras = {
        name: _camera(_object(value, path, f"calib.{name}"), path, f"calib.{name}")
        for name, value in _object(content.get("calib"), path, "calib").items()
    }
    poses: dict[str, Tensor] = {}
    boxes: dict[str, Tensor] = {}
    seen: set[str] = set()
    for number, value in enumerate(_list(content.get("frames"), path, "frames")):
        field = f"frames[{number}]"
        frame = _object(value, path, field)
        name = _frame_id(frame.get("frame_id"), path, field)
        if name in seen:
            raise _wrong(f"frame {name} stands twice", path, f"{field}.frame_id")
        seen.add(name)
        pose = _pose(frame.get("pose"), path, f"{field}.pose")
        if pose is not None:
            poses[name] = pose
        if frame.get("annos") is not None:
            boxes[name] = _boxes(frame["annos"], classes, path, f"{field}.annos")
    return OnceSequence(cameras, poses, boxes)


def _camera(value: dict[str, Any], path: Path, field: str) -> OnceCamera:
    velo = _matrix(value.get("cam_to_velo"), 4, path, f"{field}.cam_to_velo")
    if velo[3].tolist() != [0, 0, 0, 1]:
        raise _wrong("the last row is not 0 0 0 1", path, f"{field}.cam_to_velo")
    lidar_from_camera = rigid(velo[:3], path, f"{field}.cam_to_velo")
    name = f"{field}.cam_intrinsic"
    matrix = _matrix(value.get("cam_intrinsic"), 3, path, name)
    numbers = np.hstack([matrix, np.zeros((3, 1))]).ravel()
    lens = value.get("distortion")
    if isinstance(lens, list) and len(lens) == 1:
        lens = lens[0]
    distortion = _numbers(lens, None, path, f"{field}.distortion")
    if len(distortion) not in COUNTS or max(map(abs, distortion)) > _STRONGEST:
        raise _wrong("is not k1 k2 p1 p2 [k3 [k4 k5 k6]]", path, f"{field}.distortion")
    return OnceCamera(
        intrinsics=projection_matrix(numbers, path, name, _REMEDY)[:, :3].clone(),
        camera_from_lidar=invert_pose(lidar_from_camera),
        distortion=torch.tensor(distortion, dtype=torch.float64),
    )


def _frame_id(value: Any, path: Path, field: str) -> str:
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,20}", value, re.ASCII):
        raise _wrong("is not a time in milliseconds", path, f"{field}.frame_id")
    return value


def _pose(value: Any, path: Path, field: str) -> Tensor | None:
    """world_from_lidar of a quaternion (x, y, z, w) and a translation; None where all are 0."""
    if value is None or value == []:
        return None
    numbers = _numbers(value, 7, path, field)
    if not any(numbers):
        return None
    x, y, z, w, *translation = numbers
    far = max(map(abs, translation))
    if abs(math.hypot(x, y, z, w) - 1) > 1e-2 or far > 1e9:
        raise _wrong("is not a unit quaternion and a translation in metres", path, field)
    return pose_from_quaternion((w, x, y, z), translation)


def _boxes(value: Any, classes: Sequence[str], path: Path, field: str) -> Tensor:
    annos = _object(value, path, field)
    names = _list(annos.get("names"), path, f"{field}.names")
    rows = _list(annos.get("boxes_3d"), path, f"{field}.boxes_3d")
    if len(names) != len(rows):
        raise _wrong(f"{len(names)} names, but {len(rows)} boxes", path, field)
    table = []
    for name, row in zip(names, rows, strict=True):
        if name not in classes:
            raise _wrong(
                f"{str(name)[:40]!r} is not one of {', '.join(classes)}", path, f"{field}.names"
            )
        numbers = _numbers(row, 7, path, f"{field}.boxes_3d")
        size, center = numbers[3:6], (*numbers[:3], numbers[6])
        if not 0 < min(size) <= max(size) < _LARGEST or max(map(abs, center)) > _FARTHEST:
            raise _wrong(
                "a box is not x, y, z, length, width, height, yaw", path, f"{field}.boxes_3d"
            )
        table.append([*numbers, float(list(classes).index(name))])
    return torch.tensor(table, dtype=torch.float32).view(-1, 8)


def _matrix(value: Any, size: int, path: Path, field: str) -> np.ndarray:
    rows = _list(value, path, field)
    if len(rows) != size:
        raise _wrong(f"has {len(rows)} rows, not {size}", path, field)
    return np.array([_numbers(row, size, path, field) for row in rows], np.float64)


def _numbers(value: Any, count: int | None, path: Path, field: str) -> list[float]:
    numbers = _list(value, path, field)
    if count is not None and len(numbers) != count:
        raise _wrong(f"has {len(numbers)} numbers, not {count}", path, field)
    if not all(type(number) in (int, float) and abs(number) < 1e15 for number in numbers):
        raise _wrong("holds something that is not a finite number", path, field)
    return [float(number) for number in numbers]


def _list(value: Any, path: Path, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong("is not a list", path, field)
    return value


def _object(value: Any, path: Path, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong("is not a json object", path, field)
    return value


def _wrong(problem: str, path: Path, field: str) -> DataError:
    return DataError(problem, path=path, field=field, remedy=_REMEDY)
