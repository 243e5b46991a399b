"""The text files of KITTI: calib.txt of sequences and of object frames, and files of poses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.files import decode_text, parse_numbers
from lidarssl.errors import DataError
from lidarssl.geometry.projection import kitti_camera

POSE_LIMIT = 1_000_000
SEQUENCE_KEYS = ("P0", "P1", "P2", "P3", "Tr")
_PROJECTIONS = ("P0", "P1", "P2", "P3")
_ARCHIVE = "data_odometry_calib.zip"
_OBJECT_ARCHIVE = "data_object_calib.zip"


@dataclass(frozen=True)
class Calibration:
    """A calibration file of KITTI.

    Attributes:
        projections: (3, 4) float64 of each key ``P0`` .. ``P3``: rectified camera 0 to pixels.
        camera0_from_lidar: (4, 4) float64 to the rectified camera 0, or None when the file does
            not tell.
        archive: download that holds the file, for messages.
    """

    projections: Mapping[str, Tensor]
    camera0_from_lidar: Tensor | None
    archive: str = _ARCHIVE

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
                remedy=f"unpack {self.archive} last: the calib.txt of the colour images "
                "has only P0 to P3",
            )
        return self.camera0_from_lidar

    def camera(self, key: str, path: Path, lidar_translation: bool = True) -> tuple[Tensor, Tensor]:
        """Intrinsics (3, 3) and camera_from_lidar (4, 4) float64 of ``P0`` .. ``P3``.

        Args:
            key: which.
            path: of the file, for messages.
            lidar_translation: as ``lidarssl.geometry.projection.kitti_camera``.

        Raises:
            DataError: the file has no such line, or no ``Tr``.
        """
        if key not in self.projections:
            raise _missing_line(key, path, f"unpack {self.archive} again")
        return kitti_camera(self.projections[key], self.lidar_transform(path), lidar_translation)


def parse_calibration(data: bytes, path: Path, keys: Sequence[str] = SEQUENCE_KEYS) -> Calibration:
    """calib.txt of a sequence: ``KEY: 12 numbers`` per line, found by key.

    Args:
        data: content of the file.
        path: its name, for messages.
        keys: lines that are read, of ``P0`` .. ``P3`` and ``Tr``.

    Raises:
        DataError: a line of a known key is malformed, a projection has no inverse, or ``Tr`` is
            not a rotation with a translation.
    """
    found = parse_keyed(data, path, dict.fromkeys(keys, 12), f"unpack {_ARCHIVE} again")
    lidar = rigid(found.pop("Tr").reshape(3, 4), path, "Tr") if "Tr" in found else None
    return Calibration(_projections(found, path, _ARCHIVE), lidar)


def parse_object_calibration(data: bytes, path: Path) -> Calibration:
    """calib/NNNNNN.txt of the object benchmark: ``P0`` .. ``P3``, ``R0_rect``, ``Tr_velo_to_cam``.

    Raises:
        DataError: a line is malformed, or one of the last two is missing.
    """
    sizes = {**dict.fromkeys(_PROJECTIONS, 12), "R0_rect": 9, "Tr_velo_to_cam": 12}
    remedy = f"unpack {_OBJECT_ARCHIVE} again"
    found = parse_keyed(data, path, sizes, remedy)
    for key in ("R0_rect", "Tr_velo_to_cam"):
        if key not in found:
            raise _missing_line(key, path, remedy)
    rectify = rotation(found.pop("R0_rect"), path, "R0_rect")
    camera = rigid(found.pop("Tr_velo_to_cam").reshape(3, 4), path, "Tr_velo_to_cam")
    return Calibration(
        _projections(found, path, _OBJECT_ARCHIVE), rectify @ camera, _OBJECT_ARCHIVE
    )


def parse_keyed(
    data: bytes, path: Path, sizes: Mapping[str, int], remedy: str
) -> dict[str, np.ndarray]:
    """Lines ``KEY: numbers`` of the keys in ``sizes``; other lines are read over.

    Args:
        data: content of the file.
        path: its name, for messages.
        sizes: numbers of each key's line.
        remedy: for the message when a line has another count.

    Returns:
        float64 numbers of the keys that the file has.

    Raises:
        DataError: a line has another count of numbers, or one that is not finite.
    """
    found: dict[str, np.ndarray] = {}
    for line in decode_text(data, path).splitlines():
        key, colon, rest = line.partition(":")
        key = key.strip()
        if colon and key in sizes:
            numbers = parse_numbers(rest.split(), path, key)
            if len(numbers) != sizes[key]:
                raise DataError(
                    f"'{key}' has {len(numbers)} numbers, not {sizes[key]}",
                    path=path,
                    field=key,
                    remedy=remedy,
                )
            found[key] = np.array(numbers, np.float64)
    return found


def _missing_line(key: str, path: Path, remedy: str) -> DataError:
    return DataError(f"has no line '{key}:'", path=path, field=key, remedy=remedy)


def _projections(found: Mapping[str, np.ndarray], path: Path, archive: str) -> dict[str, Tensor]:
    return {
        key: projection_matrix(numbers, path, key, f"unpack {archive} again")
        for key, numbers in found.items()
    }


def projection_matrix(numbers: np.ndarray, path: Path, field: str, remedy: str) -> Tensor:
    """(3, 4) float64 ``[K | k]`` from 12 numbers.

    Raises:
        DataError: K is not the matrix of a pinhole camera.
    """
    projection = torch.from_numpy(numbers).view(3, 4)
    focal = min(float(projection[0, 0]), float(projection[1, 1]))
    last = projection[2, :3].tolist()
    lower = float(projection[1, 0])
    if not 1e-3 < focal < 1e6 or last != [0, 0, 1] or lower != 0 or projection.abs().max() > 1e9:
        raise DataError(
            f"'{field}' is not a projection [K | k]", path=path, field=field, remedy=remedy
        )
    return projection


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
    rows = []
    for number, words in enumerate(_pose_lines(data, path), start=1):
        numbers = parse_numbers(words, path, f"line {number}")
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
    return rigid(np.array(rows, np.float64).reshape(-1, 3, 4), path, "line")


def parse_numbered_poses(data: bytes, path: Path) -> tuple[dict[int, int], Tensor]:
    """Lines ``frame 12 numbers`` (KITTI-360), a row-major rigid transform each.

    Returns:
        Row of each frame, and (S, 4, 4) float64.

    Raises:
        DataError: a line is malformed, not a rotation with a translation, or of a frame that
            another line is of.
    """
    rows: dict[int, int] = {}
    matrices = []
    for number, words in enumerate(_pose_lines(data, path), start=1):
        field = f"line {number}"
        good = len(words) == 13 and re.fullmatch(r"[0-9]{1,10}", words[0], re.ASCII)
        if not good or int(words[0]) in rows:
            raise DataError(
                f"{field} is not a frame number of its own and 12 numbers",
                path=path,
                field=field,
                remedy="unpack data_poses.zip again",
            )
        rows[int(words[0])] = number - 1
        matrices.append(parse_numbers(words[1:], path, field))
    return rows, rigid(np.array(matrices, np.float64).reshape(-1, 3, 4), path, "line")


def _pose_lines(data: bytes, path: Path) -> list[list[str]]:
    """Words of each line; empty lines at the end are read over."""
    lines = decode_text(data, path).rstrip().splitlines()
    if len(lines) > POSE_LIMIT:
        raise DataError(f"has {len(lines)} lines; at most {POSE_LIMIT} are read", path=path)
    return [line.split() for line in lines]


def rigid(matrices: np.ndarray, path: Path, field: str) -> Tensor:
    """(..., 4, 4) float64 from (..., 3, 4).

    Raises:
        DataError: a left part is not a rotation, or a translation is beyond all reason.
    """
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


def rotation(numbers: np.ndarray, path: Path, field: str) -> Tensor:
    """(4, 4) float64 from the 9 numbers of a rotation.

    Raises:
        DataError: they are not one.
    """
    return rigid(np.hstack([numbers.reshape(3, 3), np.zeros((3, 1))]), path, field)
