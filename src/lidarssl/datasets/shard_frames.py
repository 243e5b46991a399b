"""What a shard tells of a frame beside arrays and images: ``frame.json``, with exact decimals."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.files import parse_json
from lidarssl.datasets.image_files import PIXEL_LIMIT
from lidarssl.datasets.point_files import POINT_LIMIT
from lidarssl.errors import DataError
from lidarssl.frame import Boxes, Camera, Frame, FrameId

REMEDY = "get the shard again, or delete it and run the same `lidarssl data shard` once more"
CAMERA_LIMIT = 64
_BOX_LIMIT = 100_000
_NAME_LIMIT = 500


@dataclass(frozen=True)
class Description:
    """What ``frame.json`` says.

    Attributes:
        id: identity.
        count: of points.
        pose, boxes: see ``Frame``.
        cameras: without images.
        sizes: (height, width) of each camera's image as stored.
    """

    id: FrameId
    count: int
    pose: Tensor | None
    boxes: Boxes | None
    cameras: tuple[Camera, ...]
    sizes: tuple[tuple[int, int], ...]


def describe(frame: Frame) -> bytes:
    """Content of the ``frame.json`` of a frame.

    Raises:
        DataError: a camera has neither image nor labels.
    """
    boxes = frame.boxes
    value = {
        "id": [frame.id.dataset, frame.id.sequence, frame.id.token],
        "points": len(frame),
        "pose": None if frame.pose is None else frame.pose.tolist(),
        "boxes": None
        if boxes is None
        else {
            "center": boxes.center.tolist(), "size": boxes.size.tolist(),
            "yaw": boxes.yaw.tolist(), "label": boxes.label.tolist(),
        },
        "cameras": [_described(camera) for camera in frame.cameras],
    }  # fmt: skip
    return json.dumps(value, allow_nan=False).encode()


def _described(camera: Camera) -> dict[str, Any]:
    pixels = camera.labels if camera.image is None else camera.image
    if pixels is None:
        raise DataError(f"camera {camera.name} has neither image nor labels", field="images")
    return {
        "name": camera.name,
        "token": camera.token,
        "size": list(pixels.shape[-2:]),
        "intrinsics": _numbers(camera.intrinsics),
        "camera_from_lidar": _numbers(camera.camera_from_lidar),
    }


def _numbers(matrix: Tensor) -> list[list[float | None]]:
    """Rows, with null for NaN, which JSON does not have."""
    return [[None if value != value else value for value in row] for row in matrix.tolist()]


def parse_description(data: bytes, path: str | Path) -> Description:
    """Content of a ``frame.json``.

    Raises:
        DataError: not such a file.
    """
    try:
        return _read(parse_json(data, path))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise DataError(
            f"is not the description of a frame ({type(error).__name__}: {str(error)[:120]})",
            path=path,
            field="frame.json",
            remedy=REMEDY,
        ) from error


def _read(value: Any) -> Description:
    """Raises ValueError, TypeError, KeyError, ... for what is of another shape."""
    dataset, sequence, token = map(_text, value["id"])
    cameras = value["cameras"]
    if not isinstance(cameras, list) or len(cameras) > CAMERA_LIMIT:
        raise ValueError("cameras")
    pose, boxes = value["pose"], value["boxes"]
    return Description(
        id=FrameId(dataset, sequence, token),
        count=_count(value["points"], POINT_LIMIT),
        pose=None if pose is None else _matrix(pose, (4, 4)),
        boxes=None if boxes is None else _boxes(boxes),
        cameras=tuple(_camera(camera) for camera in cameras),
        sizes=tuple(_size(camera["size"]) for camera in cameras),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _NAME_LIMIT:
        raise ValueError("a name")
    return value


def _count(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("a count")
    return value


def _size(value: Any) -> tuple[int, int]:
    height, width = (_count(number, PIXEL_LIMIT) for number in value)
    if not 0 < height * width <= PIXEL_LIMIT:
        raise ValueError("the size of an image")
    return height, width


def _matrix(value: Any, shape: tuple[int, ...], unknown: bool = False) -> Tensor:
    """Finite float64; ``unknown``: null may stand for NaN."""
    matrix = np.array(value, np.float64)
    bad = np.isinf(matrix) if unknown else ~np.isfinite(matrix)
    if matrix.shape != shape or bad.any():
        raise ValueError("a matrix")
    return torch.from_numpy(matrix)


def _camera(value: Any) -> Camera:
    return Camera(
        name=_text(value["name"]),
        token=_text(value["token"]),
        image=None,
        intrinsics=_matrix(value["intrinsics"], (3, 3), unknown=True),
        camera_from_lidar=_matrix(value["camera_from_lidar"], (4, 4), unknown=True),
    )


def _boxes(value: Any) -> Boxes:
    label = [_count(one, _BOX_LIMIT) for one in value["label"]]
    count = len(label)
    if count > _BOX_LIMIT:
        raise ValueError("boxes")
    with np.errstate(over="ignore"):
        center, size = (
            np.array(value[name], np.float32).reshape(count, 3) for name in ("center", "size")
        )
        yaw = np.array(value["yaw"], np.float32).reshape(count)
    if not all(np.isfinite(one).all() for one in (center, size, yaw)):
        raise ValueError("boxes")
    return Boxes(
        torch.from_numpy(center),
        torch.from_numpy(size),
        torch.from_numpy(yaw),
        torch.tensor(label, dtype=torch.int64),
    )
