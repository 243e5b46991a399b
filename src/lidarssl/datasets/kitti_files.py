"""The text files of a KITTI sequence: calib.txt and poses.txt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.files import decode_text, parse_numbers
from lidarssl.errors import DataError
from lidarssl.geometry.projection import kitti_camera

POSE_LIMIT = 1_000_000


@dataclass(frozen=True)
class Calibration:
    """calib.txt of a sequence.

    Attributes:
        projections: (3, 4) float64 of each key ``P0`` .. ``P3``: rectified camera 0 to pixels.
        camera0_from_lidar: (4, 4) float64, or None when the file has no ``Tr``.
    """

    projections: Mapping[str, Tensor]
    camera0_from_lidar: Tensor | None

    def lidar_transform(self, path: Path) -> Tensor:
        """``camera0_from_lidar``.

        Raises:
            DataError: the file has no ``Tr``.
        """
        if self.camera0_from_lidar is None:
            raise DataError(
                "has no line 'Tr:' (lidar to camera 0)",
                path=path,
                field="Tr",
                remedy="unpack data_odometry_calib.zip last: the calib.txt of the colour images "
                "has only P0 to P3",
            )
        return self.camera0_from_lidar

    def camera(self, key: str, path: Path) -> tuple[Tensor, Tensor]:
        """Intrinsics (3, 3) and camera_from_lidar (4, 4) float64 of ``P0`` .. ``P3``.

        Raises:
            DataError: the file has no such line, or no ``Tr``.
        """
        if key not in self.projections:
            raise DataError(
                f"has no line '{key}:'",
                path=path,
                field=key,
                remedy="unpack data_odometry_calib.zip again",
            )
        return kitti_camera(self.projections[key], self.lidar_transform(path))


def parse_calibration(data: bytes, path: Path) -> Calibration:
    """calib.txt: ``KEY: 12 numbers`` per line, found by key.

    Raises:
        DataError: a line of a known key is malformed, a projection has no inverse, or ``Tr`` is
            not a rotation with a translation.
    """
    matrices: dict[str, Tensor] = {}
    for line in decode_text(data, path).splitlines():
        key, colon, rest = line.partition(":")
        key = key.strip()
        if colon and key in ("P0", "P1", "P2", "P3", "Tr"):
            numbers = parse_numbers(rest.split(), path, key)
            if len(numbers) != 12:
                raise DataError(
                    f"'{key}' has {len(numbers)} numbers, not 12",
                    path=path,
                    field=key,
                    remedy="unpack data_odometry_calib.zip again",
                )
            matrices[key] = torch.tensor(numbers, dtype=torch.float64).view(3, 4)
    lidar = None
    if "Tr" in matrices:
        lidar = _rigid(matrices.pop("Tr").numpy(), path, "Tr")
    for key, projection in matrices.items():
        _check_projection(projection, path, key)
    return Calibration(matrices, lidar)


def _check_projection(projection: Tensor, path: Path, key: str) -> None:
    focal = min(float(projection[0, 0]), float(projection[1, 1]))
    last = projection[2, :3].tolist()
    lower = float(projection[1, 0])
    if not 1e-3 < focal < 1e6 or last != [0, 0, 1] or lower != 0 or projection.abs().max() > 1e9:
        raise DataError(
            f"'{key}' is not a projection [K | k]",
            path=path,
            field=key,
            remedy="unpack data_odometry_calib.zip again",
        )


def parse_poses(data: bytes, path: Path, sizes: tuple[int, ...] = (12,)) -> Tensor:
    """One row-major rigid transform per line; empty lines at the end are read over.

    Args:
        data: content of the file.
        path: its name, for messages.
        sizes: allowed numbers per line: 12 = (3, 4), 16 = (4, 4).

    Returns:
        (S, 4, 4) float64.

    Raises:
        DataError: a line is malformed or not a rotation with a translation.
    """
    lines = decode_text(data, path).rstrip().splitlines()
    if len(lines) > POSE_LIMIT:
        raise DataError(f"has {len(lines)} lines; at most {POSE_LIMIT} are read", path=path)
    rows = []
    for number, line in enumerate(lines, start=1):
        numbers = parse_numbers(line.split(), path, f"line {number}")
        if len(numbers) not in sizes:
            raise DataError(
                f"line {number} has {len(numbers)} numbers, not {' or '.join(map(str, sizes))}",
                path=path,
                field=f"line {number}",
                remedy="write one row-major pose per line",
            )
        if len(numbers) == 16 and numbers[12:] != [0, 0, 0, 1]:
            raise DataError("the last row is not 0 0 0 1", path=path, field=f"line {number}")
        rows.append(numbers[:12])
    return _rigid(np.array(rows, np.float64).reshape(-1, 3, 4), path, "line")


def _rigid(matrices: np.ndarray, path: Path, field: str) -> Tensor:
    """(..., 4, 4) from (..., 3, 4), when every left part is a rotation."""
    rotation = matrices[..., :3]
    with np.errstate(over="ignore", invalid="ignore"):
        gram = rotation @ rotation.swapaxes(-1, -2)
        off = np.abs(gram - np.eye(3)).max(axis=(-1, -2))
        good = (off < 1e-2) & (np.abs(matrices[..., 3]).max(axis=-1) < 1e9)
        good &= np.linalg.det(np.where(good[..., None, None], rotation, np.eye(3))) > 0
    if not good.all():
        where = f"{field} {int(good.argmin()) + 1}" if good.ndim else field
        raise DataError(
            f"{where} is not a rotation with a translation",
            path=path,
            field=where,
            remedy="write rigid transforms, row-major, in metres",
        )
    rigid = np.zeros((*matrices.shape[:-2], 4, 4))
    rigid[..., :3, :] = matrices
    rigid[..., 3, 3] = 1
    return torch.from_numpy(rigid)
