"""KITTI's 3-D object benchmark: single scans with boxes of what the left camera sees.

Lidar frame: x forward, y left, z up; intensity (reflectance) 0..1. Scans are whole turns; only
what lies in the image of camera 2 is labelled, so detection crops them first. Data: Geiger et al.,
CVPR 2012.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.datasets.files import (
    MEBIBYTE,
    POINT_FILE_LIMIT,
    TEXT_FILE_LIMIT,
    decode_text,
    list_names,
    parse_numbers,
    read_bytes,
)
from lidarssl.datasets.image_files import check_scale, open_image, with_image
from lidarssl.datasets.kitti_files import Calibration, parse_object_calibration
from lidarssl.datasets.layout import find_root, packaged_table, parse_numbered_names
from lidarssl.datasets.point_files import KITTI_COLUMNS, make_cloud, parse_bin
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Boxes, Camera, Field, Frame, FrameId
from lidarssl.geometry.poses import transform_points

TRAINING, TESTING = 7481, 7518
THINNING = 20
_PROJECTIONS = {"image_0": "P0", "image_1": "P1", "image_2": "P2", "image_3": "P3"}
_FOLDERS = {
    "train": "training",
    "val": "training",
    "trainval": "training",
    "test": "testing",
    "val_20th": "training",
}
_UNLABELLED = "DontCare"
_BOXES = (
    ("Car", (100, 150, 245)),
    ("Pedestrian", (255, 30, 30)),
    ("Cyclist", (255, 40, 200)),
    ("Van", (80, 30, 180)),
    ("Truck", (0, 0, 255)),
    ("Person_sitting", (255, 150, 30)),
    ("Tram", (0, 175, 0)),
    ("Misc", (175, 175, 0)),
)
_LARGEST = 1000.0
_FARTHEST = 10_000.0


@dataclass(frozen=True)
class KittiObjectLabel:
    """One line of label_2.

    Attributes:
        kind: ``Car``, ..., ``Misc`` or ``DontCare``.
        truncated: share of the object outside the image, 0..1.
        occluded: 0 = seen, 1 = partly, 2 = largely occluded, 3 = unknown.
        alpha: rad, angle of observation.
        image_box: left, top, right, bottom in pixels of image_2, from 0.
        size: height, width, length in metres.
        location: middle of the bottom in the rectified frame of camera 0, metres.
        rotation_y: rad about that frame's y axis.
        score: of a detection; None in label files.
    """

    kind: str
    truncated: float
    occluded: int
    alpha: float
    image_box: tuple[float, float, float, float]
    size: tuple[float, float, float]
    location: tuple[float, float, float]
    rotation_y: float
    score: float | None = None


class KittiObject(Dataset):
    """The object benchmark in its official layout, ``<root>/{training,testing}/velodyne/...``.

    Splits: train (3712 scans) and val (3769), trainval, test; val_20th is every 20th of val, which
    ALSO validates on. ``<root>/ImageSets/<split>.txt`` replaces a split where it exists. Scans that
    are not there are left out.

    Args:
        root: folder that holds ``training`` and ``testing``.
        cameras: any of ``image_2`` (left colour) and ``image_3`` (right colour).
        image_scale: factor on the size of images, in (0, 1].

    Raises:
        ConfigError: unknown camera or image scale.
        DataError: the root is wrong, or a list of ImageSets is malformed.
    """

    name = "kitti_object"
    intensity_statistics = (0.28613698, 0.14090556)
    box_classes = tuple(name for name, _ in _BOXES)
    classes = ClassTable(("ignored", *box_classes), ((0, 0, 0), *(color for _, color in _BOXES)))

    def __init__(
        self,
        root: str | Path,
        cameras: Sequence[str] = ("image_2",),
        image_scale: float = 1.0,
    ) -> None:
        for camera in cameras:
            if camera not in _PROJECTIONS:
                raise unknown_name("camera", camera, tuple(_PROJECTIONS))
        self.root = find_root(
            Path(root),
            ("training/velodyne", "testing/velodyne"),
            "give the folder that holds training/velodyne (data_object_velodyne.zip)",
        )
        self.cameras = tuple(cameras)
        self.image_scale = check_scale(image_scale)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(_FOLDERS)

    def frames(self, split: str) -> list[FrameId]:
        if split not in _FOLDERS:
            raise unknown_name("split", split, self.splits)
        folder = _FOLDERS[split]
        names = self._listed[split]
        there = self._scans(folder)
        found = [FrameId(self.name, folder, name) for name in names if name in there]
        if not found:
            raise DataError(
                f"none of the {len(names)} scans of split '{split}' is here",
                path=self.root / folder / "velodyne",
                field="velodyne",
                remedy="unpack data_object_velodyne.zip here",
            )
        return found

    def absent(self, split: str) -> str:
        there, listed = len(self.frames(split)), len(self._listed[split])
        return f"{listed - there} of the {listed} scans of the list" if there < listed else ""

    def _scans(self, folder: str) -> set[str]:
        names = list_names(self.root / folder / "velodyne", [".bin"])
        return {name.removesuffix(".bin") for name in names}

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        """Names of every split, whether the scans are there or not."""
        train = set(packaged_table("kitti_object_train.json"))
        listed = {
            "train": [number for number in range(TRAINING) if number in train],
            "val": [number for number in range(TRAINING) if number not in train],
            "trainval": list(range(TRAINING)),
            "test": list(range(TESTING)),
        }
        names = {split: [f"{number:06d}" for number in ids] for split, ids in listed.items()}
        for split in listed:
            path = self.root / "ImageSets" / f"{split}.txt"
            if path.is_file():
                names[split] = parse_numbered_names(read_bytes(path, TEXT_FILE_LIMIT), path)
        return {**names, "val_20th": names["val"][::THINNING]}

    def provides(self, split: str) -> Field:
        folder = self.root / self.frames(split)[0].sequence
        provided = Field.NONE
        if self.cameras and all((folder / camera).is_dir() for camera in self.cameras):
            provided |= Field.IMAGES
        if (folder / "label_2").is_dir():
            provided |= Field.BOXES
        return provided

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        self._check(frame)
        path = self.root / frame.sequence / "velodyne" / f"{frame.token}.bin"
        data = read_bytes(path, POINT_FILE_LIMIT)
        cloud = make_cloud(parse_bin(data, path, KITTI_COLUMNS), path)
        labelled = (self.root / frame.sequence / "label_2").is_dir()
        return Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            cameras=self._cameras(frame, fields) if Field.IMAGES in fields else (),
            boxes=self._boxes(frame) if labelled and Field.BOXES in fields else None,
        )

    def _check(self, frame: FrameId) -> None:
        if (
            frame.dataset != self.name
            or frame.sequence not in _FOLDERS.values()
            or not re.fullmatch(r"[0-9]{6}", frame.token, re.ASCII)
        ):
            raise DataError(
                f"'{frame}' is not the id of a scan",
                path=self.root,
                field="token",
                remedy="use an id that frames() returned",
            )

    def labels(self, frame: FrameId) -> list[KittiObjectLabel]:
        """The lines of a frame's label file, ``DontCare`` included.

        Raises:
            DataError: the file is missing or malformed.
        """
        self._check(frame)
        path = self.root / frame.sequence / "label_2" / f"{frame.token}.txt"
        remedy = "unpack data_object_label_2.zip here"
        return parse_object_labels(read_bytes(path, MEBIBYTE, remedy), path)

    def calibration(self, frame: FrameId) -> tuple[Calibration, Path]:
        """Calibration of a frame and the file it comes from.

        Raises:
            DataError: the file is missing or malformed.
        """
        self._check(frame)
        path = self.root / frame.sequence / "calib" / f"{frame.token}.txt"
        data = read_bytes(path, MEBIBYTE, "unpack data_object_calib.zip here")
        return parse_object_calibration(data, path), path

    def _boxes(self, frame: FrameId) -> Boxes:
        calibration, path = self.calibration(frame)
        return boxes_in_lidar(
            self.labels(frame), calibration.lidar_transform(path), self.box_classes
        )

    def _cameras(self, frame: FrameId, fields: Field) -> tuple[Camera, ...]:
        folder = self.root / frame.sequence
        present = [camera for camera in self.cameras if (folder / camera).is_dir()]
        if not present:
            return ()
        calibration, path = self.calibration(frame)
        return tuple(self._camera(frame, camera, calibration, path, fields) for camera in present)

    def _camera(
        self, frame: FrameId, camera: str, calibration: Calibration, path: Path, fields: Field
    ) -> Camera:
        intrinsics, camera_from_lidar = calibration.camera(_PROJECTIONS[camera], path)
        file = self.root / frame.sequence / camera / f"{frame.token}.png"
        token = f"{frame.sequence}_{camera}_{frame.token}"
        seen = Camera(camera, token, None, intrinsics, camera_from_lidar)
        return with_image(seen, open_image(file, self.image_scale), fields)


def parse_object_labels(data: bytes, path: Path) -> list[KittiObjectLabel]:
    """Lines of label_2/NNNNNN.txt (15 columns) or of a result file (16, with a score).

    Raises:
        DataError: a line has other columns, an unknown type, or an impossible box.
    """
    lines = decode_text(data, path).splitlines()
    return [
        _parse_object(line.split(), path, f"line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _parse_object(words: list[str], path: Path, field: str) -> KittiObjectLabel:
    if len(words) not in (15, 16):
        raise DataError(
            f"{field} has {len(words)} columns, not 15 (or 16 with a score)",
            path=path,
            field=field,
            remedy="unpack data_object_label_2.zip again",
        )
    kind, numbers = words[0], parse_numbers(words[1:], path, field)
    if kind not in KittiObject.box_classes and kind != _UNLABELLED:
        known = (*KittiObject.box_classes, _UNLABELLED)
        raise DataError(
            f"'{kind[:40]}' is not a type of object",
            path=path,
            field=field,
            remedy=f"known types: {', '.join(known)}",
        )
    height, width, length, x, y, z = numbers[7:13]
    possible = min(height, width, length) > 0 and max(height, width, length) < _LARGEST
    possible &= max(abs(x), abs(y), abs(z)) < _FARTHEST and abs(numbers[13]) < _LARGEST
    if kind != _UNLABELLED and not possible:
        raise DataError(
            f"{field} is a box of {height:g} x {width:g} x {length:g} m at ({x:g}, {y:g}, {z:g})",
            path=path,
            field=field,
            remedy="the columns are type, truncated, occluded, alpha, 4 of the image box, height, "
            "width, length, x, y, z, rotation_y",
        )
    left, top, right, bottom = numbers[3:7]
    return KittiObjectLabel(
        kind=kind,
        truncated=numbers[0],
        occluded=int(numbers[1]),
        alpha=numbers[2],
        image_box=(left, top, right, bottom),
        size=(height, width, length),
        location=(x, y, z),
        rotation_y=numbers[13],
        score=numbers[14] if len(numbers) == 15 else None,
    )


def boxes_in_lidar(
    labels: Sequence[KittiObjectLabel], camera0_from_lidar: Tensor, names: Sequence[str]
) -> Boxes:
    """Boxes of the objects whose kind is in ``names``, in the lidar frame, as OpenPCDet has them.

    Args:
        labels: of a frame.
        camera0_from_lidar: (4, 4) float64 to the rectified camera 0.
        names: classes; ``DontCare`` is none.

    Returns:
        Upright boxes: the small tilt between camera and lidar moves the bottom, not the axes.
    """
    kept = [label for label in labels if label.kind in names]
    location = torch.tensor([label.location for label in kept], dtype=torch.float64).view(-1, 3)
    size = torch.tensor([label.size for label in kept], dtype=torch.float64).view(-1, 3)
    turn = torch.tensor([label.rotation_y for label in kept], dtype=torch.float64)
    center = transform_points(location, torch.linalg.inv(camera0_from_lidar))
    center[:, 2] += size[:, 0] / 2
    return Boxes(
        center=center.float(),
        size=size[:, [2, 1, 0]].float(),
        yaw=(-(turn + math.pi / 2)).float(),
        label=torch.tensor([names.index(label.kind) for label in kept], dtype=torch.int64),
    )
