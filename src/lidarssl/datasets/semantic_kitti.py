"""SemanticKITTI: KITTI odometry scans with per-point labels, and the rectified colour cameras.

Lidar frame: x forward, y left, z up; intensity (remission) 0..1. Labels are those of
Behley et al., ICCV 2019; poses are whatever poses.txt holds (SuMa's in the label download,
KITTI's ground truth in the odometry download). An instance id is the whole 32-bit label, as in
the official panoptic evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.datasets.files import (
    POINT_FILE_LIMIT,
    TEXT_FILE_LIMIT,
    list_names,
    read_bytes,
)
from lidarssl.datasets.image_files import check_scale, read_image, resize_intrinsics
from lidarssl.datasets.kitti_files import Calibration, parse_calibration, parse_poses
from lidarssl.datasets.point_files import (
    KITTI_COLUMNS,
    make_cloud,
    map_labels,
    parse_bin,
    parse_labels,
)
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.geometry.poses import invert_pose

PROJECTIONS = {"image_0": "P0", "image_1": "P1", "image_2": "P2", "image_3": "P3"}

_TRAIN = ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10")
_VAL = ("08",)
SEQUENCES = {
    "train": _TRAIN,
    "val": _VAL,
    "trainval": tuple(sorted(_TRAIN + _VAL)),
    "test": tuple(str(number) for number in range(11, 22)),
    "parametrizing": _TRAIN,
    "verifying": _VAL,
}

# Train class: colour, raw ids. Moving objects count as what they are.
_CLASSES: dict[str, tuple[tuple[int, int, int], tuple[int, ...]]] = {
    "unlabeled": ((0, 0, 0), (0, 1, 52, 99)),
    "car": ((100, 150, 245), (10, 252)),
    "bicycle": ((100, 230, 245), (11,)),
    "motorcycle": ((30, 60, 150), (15,)),
    "truck": ((80, 30, 180), (18, 258)),
    "other-vehicle": ((0, 0, 255), (20, 13, 16, 256, 257, 259)),
    "person": ((255, 30, 30), (30, 254)),
    "bicyclist": ((255, 40, 200), (31, 253)),
    "motorcyclist": ((150, 30, 90), (32, 255)),
    "road": ((255, 0, 255), (40, 60)),
    "parking": ((255, 150, 255), (44,)),
    "sidewalk": ((75, 0, 75), (48,)),
    "other-ground": ((175, 0, 75), (49,)),
    "building": ((255, 200, 0), (50,)),
    "fence": ((255, 120, 50), (51,)),
    "vegetation": ((0, 175, 0), (70,)),
    "trunk": ((135, 60, 0), (71,)),
    "terrain": ((150, 240, 80), (72,)),
    "pole": ((255, 240, 150), (80,)),
    "traffic-sign": ((255, 0, 0), (81,)),
}
LEARNING_MAP = {raw: train for train, (_, ids) in enumerate(_CLASSES.values()) for raw in ids}
# For submissions: the raw id of each train class.
INVERSE_LEARNING_MAP = tuple(ids[0] for _, ids in _CLASSES.values())


class SemanticKitti(Dataset):
    """SemanticKITTI in its official layout, ``<root>/dataset/sequences/SS/...``.

    Splits: train (00-07, 09, 10), val (08), trainval, test (11-21); SLidR's parametrizing and
    verifying are train and val. Sequences that are not there are left out.

    Args:
        root: folder that holds ``dataset/sequences``, or ``sequences``.
        cameras: any of ``image_2`` (left colour) and ``image_3`` (right colour); the grey
            ``image_0`` and ``image_1`` too.
        image_scale: factor on the size of images, in (0, 1].
        ignore_unknown_labels: map raw ids outside the learning map to the ignored class instead
            of refusing the frame.

    Raises:
        ConfigError: unknown camera or image scale.
        DataError: no sequences below ``root``; says which level to give.
    """

    name = "semantic_kitti"
    classes = ClassTable(tuple(_CLASSES), tuple(color for color, _ in _CLASSES.values()))

    def __init__(
        self,
        root: str | Path,
        cameras: Sequence[str] = ("image_2",),
        image_scale: float = 1.0,
        ignore_unknown_labels: bool = False,
    ) -> None:
        for camera in cameras:
            if camera not in PROJECTIONS:
                raise unknown_name("camera", camera, tuple(PROJECTIONS))
        self.root = Path(root)
        self.folder = _sequences_folder(self.root)
        self.cameras = tuple(cameras)
        self.image_scale = check_scale(image_scale)
        self.ignore_unknown_labels = ignore_unknown_labels
        self._calibrations: dict[str, tuple[Calibration, Path]] = {}
        self._poses: dict[str, Tensor] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(SEQUENCES)

    def frames(self, split: str) -> list[FrameId]:
        if split not in SEQUENCES:
            raise unknown_name("split", split, self.splits)
        found = [
            FrameId(self.name, sequence, name.removesuffix(".bin"))
            for sequence in SEQUENCES[split]
            for name in list_names(self.folder / sequence / "velodyne", [".bin"])
        ]
        if not found:
            raise DataError(
                f"no scan of split '{split}' (sequences {', '.join(SEQUENCES[split])})",
                path=self.folder,
                field="velodyne",
                remedy="unpack data_odometry_velodyne.zip here",
            )
        return found

    def provides(self, split: str) -> Field:
        first = self.frames(split)[0]
        folder = self.folder / first.sequence
        provided = Field.NONE
        if self.cameras and all((folder / camera).is_dir() for camera in self.cameras):
            provided |= Field.IMAGES
        if (folder / "labels").is_dir():
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
        path = self.folder / frame.sequence / "velodyne" / f"{frame.token}.bin"
        data = read_bytes(path, POINT_FILE_LIMIT)
        cloud = make_cloud(parse_bin(data, path, KITTI_COLUMNS), path)
        semantic, instance = self._labels(frame, len(cloud.intensity), fields)
        cameras: tuple[Camera, ...] = ()
        if Field.IMAGES in fields:
            cameras = self._read_cameras(frame)
        return Frame(
            id=frame,
            points=cloud.points,
            intensity=cloud.intensity,
            cameras=cameras,
            pose=self._pose(frame) if Field.POSE in fields else None,
            semantic=semantic,
            instance=instance,
        )

    def _labels(
        self, frame: FrameId, points: int, fields: Field
    ) -> tuple[Tensor | None, Tensor | None]:
        folder = self.folder / frame.sequence / "labels"
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
        lookup[list(LEARNING_MAP)] = list(LEARNING_MAP.values())
        return lookup

    def _read_cameras(self, frame: FrameId) -> tuple[Camera, ...]:
        folder = self.folder / frame.sequence
        present = [camera for camera in self.cameras if (folder / camera).is_dir()]
        return tuple(self._camera(frame, camera) for camera in present)

    def _camera(self, frame: FrameId, camera: str) -> Camera:
        path = self.folder / frame.sequence / camera / f"{frame.token}.png"
        calibration, calibration_path = self._calibration(frame.sequence)
        intrinsics, camera_from_lidar = calibration.camera(PROJECTIONS[camera], calibration_path)
        image, size = read_image(path, self.image_scale)
        return Camera(
            name=camera,
            token=f"{frame.sequence}_{camera}_{frame.token}",
            image=image,
            intrinsics=resize_intrinsics(intrinsics, size, (image.shape[1], image.shape[2])),
            camera_from_lidar=camera_from_lidar,
        )

    def _calibration(self, sequence: str) -> tuple[Calibration, Path]:
        if sequence not in self._calibrations:
            path = self.folder / sequence / "calib.txt"
            elsewhere = self.folder.parents[1] / "calib" / "dataset" / "sequences" / sequence
            if not path.is_file() and (elsewhere / "calib.txt").is_file():
                path = elsewhere / "calib.txt"
            data = read_bytes(path, TEXT_FILE_LIMIT, "unpack data_odometry_calib.zip here")
            self._calibrations[sequence] = (parse_calibration(data, path), path)
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
        calibration, calibration_path = self._calibration(frame.sequence)
        camera0_from_lidar = calibration.lidar_transform(calibration_path)
        return invert_pose(camera0_from_lidar) @ poses[int(frame.token)] @ camera0_from_lidar


def _sequences_folder(root: Path) -> Path:
    """Folder of the sequences; otherwise an error that says where it seems to be."""
    for folder in (root / "dataset" / "sequences", root / "sequences"):
        if folder.is_dir():
            return folder
    above = [parent for parent in (root, *root.parents[:3]) if parent.name == "sequences"]
    below = sorted(root.glob("*/sequences")) + sorted(root.glob("*/*/sequences"))
    candidates = [folder.parent for folder in above + below]
    raise DataError(
        "there is no 'dataset/sequences' below this folder",
        path=root,
        field="root",
        remedy=f"use root {candidates[0]}"
        if candidates
        else "give the folder that holds dataset/sequences/00, 01, ...",
    )
