"""What SemanticKITTI and the datasets in its layout share: sequences of scans with .label files."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from lidarssl.datasets.files import TEXT_FILE_LIMIT, read_bytes
from lidarssl.datasets.kitti_files import (
    SEQUENCE_KEYS,
    Calibration,
    parse_calibration,
    parse_poses,
)
from lidarssl.datasets.layout import find_root
from lidarssl.datasets.point_files import KITTI_COLUMNS
from lidarssl.datasets.scan_folders import ScanFolders
from lidarssl.errors import DataError
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.geometry.poses import invert_pose

_FOLDERS = ("dataset/sequences", "sequences")


class KittiSequences(ScanFolders):
    """``<root>/dataset/sequences/SS/{velodyne,labels,calib.txt,poses.txt}``.

    Adds instances, poses, and cameras where a dataset has any.

    Attributes:
        calibration_keys: lines of calib.txt that are read.
        calibration_archive: download that holds ``calib.txt``, for messages.

    Args:
        root: folder that holds ``dataset/sequences``, or ``sequences``.
        ignore_unknown_labels: as the base.

    Raises:
        DataError: no sequences below ``root``; says which level to give.
    """

    scans = "velodyne"
    columns: tuple[str, ...] = KITTI_COLUMNS
    calibration_keys: tuple[str, ...] = SEQUENCE_KEYS
    calibration_archive: str

    def __init__(self, root: str | Path, ignore_unknown_labels: bool = False) -> None:
        self.root = find_root(
            Path(root), _FOLDERS, "give the folder that holds dataset/sequences/00, 01, ..."
        )
        folder = next(folder for name in _FOLDERS if (folder := self.root / name).is_dir())
        super().__init__(folder, ignore_unknown_labels)
        self._calibrations: dict[str, tuple[Calibration, Path]] = {}
        self._poses: dict[str, Tensor] = {}

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        loaded = super().load(frame, fields)
        if Field.IMAGES in fields:
            loaded.cameras = self._cameras(frame, fields)
        if Field.POSE in fields:
            loaded.pose = self._pose(frame)
        return loaded

    def _may_be(self, frame: FrameId) -> bool:
        """By its form alone: scans of sequences that no split names can be read too."""
        scan = f"{frame.sequence}/{frame.token}"
        return re.fullmatch(r"[0-9]{2}/[0-9]{6}", scan) is not None

    def _fields(self, sequence: str) -> Field:
        posed = (self.folder / sequence / "poses.txt").is_file()
        return super()._fields(sequence) | (Field.POSE if posed else Field.NONE)

    def _label_fields(self, sequence: str) -> Field:
        return Field.SEMANTIC | Field.INSTANCE

    def _cameras(self, frame: FrameId, fields: Field) -> tuple[Camera, ...]:
        return ()

    def _calibration(self, sequence: str) -> tuple[Calibration, Path]:
        if sequence not in self._calibrations:
            path = self.folder / sequence / "calib.txt"
            elsewhere = self.folder.parents[1] / "calib" / "dataset" / "sequences" / sequence
            if not path.is_file() and (elsewhere / "calib.txt").is_file():
                path = elsewhere / "calib.txt"
            remedy = f"unpack {self.calibration_archive} here"
            data = read_bytes(path, TEXT_FILE_LIMIT, remedy)
            self._calibrations[sequence] = (
                parse_calibration(data, path, self.calibration_keys),
                path,
            )
        return self._calibrations[sequence]

    def _pose(self, frame: FrameId) -> Tensor | None:
        """Pose of the lidar in the lidar frame of the sequence's first scan."""
        path = self.folder / frame.sequence / "poses.txt"
        if not path.is_file():
            return None
        if frame.sequence not in self._poses:
            self._poses[frame.sequence] = parse_poses(read_bytes(path, TEXT_FILE_LIMIT), path)
        poses = self._poses[frame.sequence]
        if int(frame.token) >= len(poses):
            raise DataError(
                f"has {len(poses)} poses, none for scan {frame.token}",
                path=path,
                field="poses",
                remedy="use the poses.txt of the whole sequence: line k belongs to scan k",
            )
        camera0_from_lidar = self._camera0_from_lidar(frame.sequence)
        return invert_pose(camera0_from_lidar) @ poses[int(frame.token)] @ camera0_from_lidar

    def _camera0_from_lidar(self, sequence: str) -> Tensor:
        calibration, path = self._calibration(sequence)
        return calibration.lidar_transform(path)
