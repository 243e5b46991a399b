"""ONCE: a million scans, few of them annotated with boxes, and seven cameras.

Lidar (40 beams, 10 Hz) frame: as stored, z up; which way x and y point was not verified on real
files (``calib`` of a sequence tells); boxes are in the same frame. Intensity 0..255. Poses are
taken as world_from_lidar with a quaternion (x, y, z, w). Data: Mao et al., NeurIPS 2021.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.datasets.files import (
    MEBIBYTE,
    POINT_FILE_LIMIT,
    TEXT_FILE_LIMIT,
    list_names,
    read_bytes,
)
from lidarssl.datasets.image_files import check_scale, read_image, resize_intrinsics
from lidarssl.datasets.layout import find_root, parse_numbered_names
from lidarssl.datasets.once_files import OnceSequence, parse_once
from lidarssl.datasets.point_files import KITTI_COLUMNS, make_cloud, parse_bin
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.geometry.distortion import undistort_image

CAMERAS = ("cam01", "cam03", "cam05", "cam06", "cam07", "cam08", "cam09")
SEQUENCES = {
    "train": ("000076", "000080", "000092", "000104", "000113", "000121"),
    "val": ("000027", "000028", "000112", "000201"),
    "test": (
        "000034", "000077", "000168", "000200", "000273",
        "000275", "000303", "000318", "000322", "000334",
    ),
}  # fmt: skip
FIRST = 100
_LISTS = {
    "train": "train",
    "val": "val",
    "test": "test",
    "raw_small": "raw_small",
    "raw_medium": "raw_medium",
    "raw_large": "raw_large",
    "val_100": "val",
}
_ANNOTATED = ("train", "val")
_JSON_LIMIT = 256 * MEBIBYTE
_BOXES = (
    ("Car", (100, 150, 245)),
    ("Bus", (0, 0, 255)),
    ("Truck", (80, 30, 180)),
    ("Pedestrian", (255, 30, 30)),
    ("Cyclist", (255, 40, 200)),
)


class Once(Dataset):
    """ONCE in its official layout, ``<root>/data/SSSSSS/{SSSSSS.json,lidar_roof,cam01,...}``.

    Splits: train (6 sequences) and val (4), of which the annotated scans; test (10), raw_small,
    raw_medium and raw_large, every scan; val_100, the first 100 scans of val, annotated or not,
    which ALSO validates on. ``<root>/ImageSets/<split>.txt`` lists the sequences; only train, val
    and test can do without. Sequences that are not there are left out. The json file of a
    sequence holds its calibration, poses and boxes: scans alone load without it.

    Args:
        root: folder that holds ``data``.
        cameras: any of ``cam01``, ``cam03``, ``cam05`` ... ``cam09``.
        image_scale: factor on the size of images, in (0, 1].
        undistort: free images of the lens's distortion, which pixels of lidar points need; False
            reads them as stored, and points near their borders meet the wrong pixels.
        posed: leave out scans without a pose (part of the raw ones), so that every frame has one.

    Raises:
        ConfigError: unknown camera or image scale.
        DataError: the root is wrong, or a list of ImageSets is malformed.
    """

    name = "once"
    box_classes = tuple(name for name, _ in _BOXES)
    classes = ClassTable(("ignored", *box_classes), ((0, 0, 0), *(color for _, color in _BOXES)))

    def __init__(
        self,
        root: str | Path,
        cameras: Sequence[str] = CAMERAS,
        image_scale: float = 1.0,
        undistort: bool = True,
        posed: bool = False,
    ) -> None:
        for camera in cameras:
            if camera not in CAMERAS:
                raise unknown_name("camera", camera, CAMERAS)
        self.root = find_root(
            Path(root), ("data",), "give the folder that holds data/000027, data/000028, ..."
        )
        self.cameras = tuple(cameras)
        self.image_scale = check_scale(image_scale)
        self.undistort = undistort
        self.posed = posed
        self._sequences: dict[str, OnceSequence] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(_LISTS)

    def frames(self, split: str) -> list[FrameId]:
        if split not in _LISTS:
            raise unknown_name("split", split, self.splits)
        names = self._sequence_names(_LISTS[split])
        found = [
            FrameId(self.name, sequence, scan)
            for sequence in names
            for scan in self._scans(sequence)
        ]
        if split == "val_100":
            found = found[:FIRST]
        if split in _ANNOTATED:
            found = [frame for frame in found if frame.token in self._read(frame.sequence).boxes]
        if self.posed:
            found = [frame for frame in found if frame.token in self._read(frame.sequence).poses]
        if not found:
            raise DataError(
                f"no scan of split '{split}' ({len(names)} sequences) is here",
                path=self.root / "data",
                field="lidar_roof",
                remedy="unpack the lidar archives of this split",
            )
        return found

    def absent(self, split: str) -> str:
        names = self._sequence_names(_LISTS[split])
        gone = sum(not self._scans(name) for name in names)
        return f"{gone} of the {len(names)} sequences" if gone else ""

    def _sequence_names(self, split: str) -> Sequence[str]:
        path = self.root / "ImageSets" / f"{split}.txt"
        if split in SEQUENCES and not path.is_file():
            return SEQUENCES[split]
        remedy = "put the lists that come with the dataset into ImageSets"
        return parse_numbered_names(read_bytes(path, TEXT_FILE_LIMIT, remedy), path)

    def _scans(self, sequence: str) -> list[str]:
        names = list_names(self.root / "data" / sequence / "lidar_roof", [".bin"])
        return [name.removesuffix(".bin") for name in names]

    def _annotations(self, sequence: str) -> Path:
        return self.root / "data" / sequence / f"{sequence}.json"

    def _read(self, sequence: str) -> OnceSequence:
        if sequence not in self._sequences:
            path = self._annotations(sequence)
            data = read_bytes(path, _JSON_LIMIT, "unpack the annotations of this split")
            self._sequences[sequence] = parse_once(data, path, self.box_classes)
        return self._sequences[sequence]

    def provides(self, split: str) -> Field:
        ids = self.frames(split)
        folder = self.root / "data" / ids[0].sequence
        provided = Field.NONE
        if self.cameras and all((folder / camera).is_dir() for camera in self.cameras):
            provided |= Field.IMAGES
        if split in _ANNOTATED:
            provided |= Field.BOXES
            posed = all(frame.token in self._read(frame.sequence).poses for frame in ids)
            provided |= Field.POSE if posed else Field.NONE
        # Elsewhere it takes the json files of up to 581 sequences to know.
        return provided | (Field.POSE if self.posed else Field.NONE)

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        if frame.dataset != self.name or not re.fullmatch(
            r"[0-9]{6}/[0-9]{1,20}", f"{frame.sequence}/{frame.token}", re.ASCII
        ):
            raise DataError(
                f"'{frame}' is not the id of a scan",
                path=self.root,
                field="token",
                remedy="use an id that frames() returned",
            )
        path = self.root / "data" / frame.sequence / "lidar_roof" / f"{frame.token}.bin"
        data = read_bytes(path, POINT_FILE_LIMIT)
        cloud = make_cloud(parse_bin(data, path, KITTI_COLUMNS), path)
        loaded = Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            cameras=self._read_cameras(frame) if Field.IMAGES in fields else (),
        )
        asked = (Field.BOXES | Field.POSE) & fields
        if asked and self._annotations(frame.sequence).is_file():
            return self._with_annotations(loaded, fields)
        return loaded

    def _with_annotations(self, frame: Frame, fields: Field) -> Frame:
        sequence, token = self._read(frame.id.sequence), frame.id.token
        pose = sequence.poses.get(token) if Field.POSE in fields else None
        boxed = Field.BOXES in fields and token in sequence.boxes
        return replace(
            frame,
            pose=None if pose is None else pose.clone(),
            boxes=sequence.frame_boxes(token) if boxed else None,
        )

    def _read_cameras(self, frame: FrameId) -> tuple[Camera, ...]:
        folder = self.root / "data" / frame.sequence
        present = [camera for camera in self.cameras if (folder / camera).is_dir()]
        return tuple(self._camera(frame, camera) for camera in present)

    def _camera(self, frame: FrameId, camera: str) -> Camera:
        folder = self.root / "data" / frame.sequence
        calibration = self._read(frame.sequence).cameras.get(camera)
        if calibration is None:
            raise DataError(
                f"has no camera '{camera}'",
                path=self._annotations(frame.sequence),
                field=f"calib.{camera}",
                remedy="choose other cameras, or unpack the annotations again",
            )
        image, size = read_image(folder / camera / f"{frame.token}.jpg", self.image_scale)
        intrinsics = resize_intrinsics(
            calibration.intrinsics, size, (image.shape[1], image.shape[2])
        )
        return Camera(
            name=camera,
            token=f"{frame.sequence}_{camera}_{frame.token}",
            image=self._pinhole(image, intrinsics, calibration.distortion),
            intrinsics=intrinsics,
            camera_from_lidar=calibration.camera_from_lidar.clone(),
        )

    def _pinhole(self, image: Tensor, intrinsics: Tensor, distortion: Tensor) -> Tensor:
        if not self.undistort or not bool(distortion.any()):
            return image
        return undistort_image(image, intrinsics, distortion)
