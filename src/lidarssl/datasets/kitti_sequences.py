"""What SemanticKITTI and the datasets in its layout share: sequences of scans with .label files."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.files import (
    POINT_FILE_LIMIT,
    TEXT_FILE_LIMIT,
    list_names,
    read_bytes,
)
from lidarssl.datasets.kitti_files import (
    SEQUENCE_KEYS,
    Calibration,
    parse_calibration,
    parse_poses,
)
from lidarssl.datasets.layout import find_root
from lidarssl.datasets.point_files import (
    KITTI_COLUMNS,
    PointCloud,
    make_cloud,
    map_labels,
    parse_bin,
    parse_labels,
)
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.geometry.poses import invert_pose

_FOLDERS = ("dataset/sequences", "sequences")


class KittiSequences(Dataset):
    """``<root>/dataset/sequences/SS/{velodyne,labels,calib.txt,poses.txt}``.

    Sequences that are not there are left out. Semantic labels are the lower 16 bits of a .label
    entry; an instance id is the whole entry, as in SemanticKITTI's panoptic evaluation.

    Attributes:
        learning_map: train id of each raw label.
        calibration_keys: lines of calib.txt that are read.
        scan_archive: download that holds ``velodyne``, for messages.
        calibration_archive: download that holds ``calib.txt``, for messages.

    Args:
        root: folder that holds ``dataset/sequences``, or ``sequences``.
        ignore_unknown_labels: map raw ids outside the learning map to the ignored class instead
            of refusing the frame.

    Raises:
        DataError: no sequences below ``root``; says which level to give.
    """

    learning_map: Mapping[int, int]
    calibration_keys: tuple[str, ...] = SEQUENCE_KEYS
    scan_archive: str
    calibration_archive: str

    def __init__(self, root: str | Path, ignore_unknown_labels: bool = False) -> None:
        self.root = find_root(
            Path(root), _FOLDERS, "give the folder that holds dataset/sequences/00, 01, ..."
        )
        self.folder = next(folder for name in _FOLDERS if (folder := self.root / name).is_dir())
        self.ignore_unknown_labels = ignore_unknown_labels
        self._calibrations: dict[str, tuple[Calibration, Path]] = {}
        self._poses: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def split_sequences(self) -> Mapping[str, tuple[str, ...]]:
        """Sequences of each split."""

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.split_sequences)

    def frames(self, split: str) -> list[FrameId]:
        if split not in self.split_sequences:
            raise unknown_name("split", split, self.splits)
        sequences = self.split_sequences[split]
        found = [
            FrameId(self.name, sequence, name.removesuffix(".bin"))
            for sequence in sequences
            for name in list_names(self.folder / sequence / "velodyne", [".bin"])
        ]
        if not found:
            raise DataError(
                f"no scan of split '{split}' (sequences {', '.join(sequences)})",
                path=self.folder,
                field="velodyne",
                remedy=f"unpack {self.scan_archive} here",
            )
        return found

    def absent(self, split: str) -> str:
        there = self.sequences(split)
        gone = [name for name in self.split_sequences[split] if name not in there]
        return f"sequences {', '.join(gone)}" if gone else ""

    def provides(self, split: str) -> Field:
        folder = self.folder / self.frames(split)[0].sequence
        provided = Field.NONE
        if next(self._label_folder(folder.name).glob("*.label"), None) is not None:
            provided |= Field.SEMANTIC | Field.INSTANCE
        if (folder / "poses.txt").is_file():
            provided |= Field.POSE
        return provided

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        if frame.dataset != self.name or not re.fullmatch(
            r"[0-9]{2}/[0-9]{6}", f"{frame.sequence}/{frame.token}"
        ):
            raise DataError(
                f"'{frame}' is not the id of a scan",
                path=self.folder,
                field="token",
                remedy="use an id that frames() returned",
            )
        cloud = self._cloud(frame)
        semantic, instance = self._labels(frame, len(cloud.intensity), fields)
        return Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            ring=cloud.ring,
            cameras=self._cameras(frame) if Field.IMAGES in fields else (),
            pose=self._pose(frame) if Field.POSE in fields else None,
            semantic=semantic,
            instance=instance,
        )

    def _cloud(self, frame: FrameId) -> PointCloud:
        path = self.folder / frame.sequence / "velodyne" / f"{frame.token}.bin"
        data = read_bytes(path, POINT_FILE_LIMIT)
        return make_cloud(parse_bin(data, path, KITTI_COLUMNS), path)

    def _cameras(self, frame: FrameId) -> tuple[Camera, ...]:
        return ()

    def _label_folder(self, sequence: str) -> Path:
        return self.folder / sequence / "labels"

    def _labels(
        self, frame: FrameId, points: int, fields: Field
    ) -> tuple[Tensor | None, Tensor | None]:
        folder = self._label_folder(frame.sequence)
        if not (Field.SEMANTIC | Field.INSTANCE) & fields or not folder.is_dir():
            return None, None
        path = folder / f"{frame.token}.label"
        raw = parse_labels(read_bytes(path, POINT_FILE_LIMIT), path, "<u4", points)
        semantic = instance = None
        if Field.SEMANTIC in fields:
            semantic = map_labels(raw & 0xFFFF, self._lookup, path)
        if Field.INSTANCE in fields:
            # The upper half alone repeats between classes; the whole label names one object.
            instance = torch.from_numpy(np.where(raw >> 16 > 0, raw, 0))
        return semantic, instance

    @cached_property
    def _lookup(self) -> np.ndarray:
        lookup = np.full(1 << 16, 0 if self.ignore_unknown_labels else -1, np.int64)
        lookup[list(self.learning_map)] = list(self.learning_map.values())
        return lookup

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
