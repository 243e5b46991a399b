"""PandaSet: a turning lidar and a solid-state one on one car, six cameras, labels for both.

Lidar frame: that of the car's pose, x right, y forward, z up, its origin lifted by 1.6 m so that
the road lies about 2 m below it, as in datasets whose lidar stands on the roof (ScaLR). Intensity
0..255. Data: Xiao et al., ITSC 2021; classes and splits: Puy et al., "Three Pillars improving
Vision Foundation Model Distillation for Lidar", CVPR 2024.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.datasets.files import TEXT_FILE_LIMIT, list_names, read_bytes
from lidarssl.datasets.image_files import check_scale, open_image, with_image
from lidarssl.datasets.layout import find_root
from lidarssl.datasets.pandaset_files import (
    boxes_in_lidar,
    numeric_columns,
    of_frame,
    parse_intrinsics,
    parse_latitude,
    parse_poses,
    parse_timestamps,
    raw_labels,
)
from lidarssl.datasets.point_files import make_cloud, map_labels
from lidarssl.datasets.table_pickles import Table, read_table
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import Boxes, Camera, Field, Frame, FrameId
from lidarssl.geometry.poses import invert_pose, pose_from_rotation, transform_points

Sensor = Literal["pandar64", "pandar_gt"]
SENSORS: tuple[Sensor, ...] = ("pandar64", "pandar_gt")
CAMERAS = (
    "back_camera",
    "front_camera",
    "front_left_camera",
    "front_right_camera",
    "left_camera",
    "right_camera",
)
SPLITS = ("train", "val", "all")
# The scenes of San Francisco lie north of it, those of El Camino Real south.
BORDER = 37.6
RAW_NAMES = (
    "Noise", "Smoke", "Exhaust", "Spray or rain", "Reflection", "Vegetation", "Ground", "Road",
    "Lane Line Marking", "Stop Line Marking", "Other Road Marking", "Sidewalk", "Driveway", "Car",
    "Pickup Truck", "Medium-sized Truck", "Semi-truck", "Towed Object", "Motorcycle",
    "Other Vehicle - Construction Vehicle", "Other Vehicle - Uncommon", "Other Vehicle - Pedicab",
    "Emergency Vehicle", "Bus", "Personal Mobility Device", "Motorized Scooter", "Bicycle", "Train",
    "Trolley", "Tram / Subway", "Pedestrian", "Pedestrian with Object", "Animals - Bird",
    "Animals - Other", "Pylons", "Road Barriers", "Signs", "Cones", "Construction Signs",
    "Temporary Construction Barriers", "Rolling Containers", "Building", "Other Static Object",
)  # fmt: skip
_CLASSES: tuple[tuple[str, tuple[int, int, int], tuple[int, ...]], ...] = (
    ("ignored", (0, 0, 0), (0, 1, 2, 3, 4, 22, 24, 25, 32, 33, 40)),
    ("road", (0, 207, 191), (7,)),
    ("traffic sign", (255, 240, 60), (36, 38)),
    ("barrier", (112, 128, 144), (35, 39)),
    ("pedestrian", (0, 0, 230), (30, 31)),
    ("vegetation", (0, 175, 0), (5,)),
    ("road marking", (230, 230, 230), (8, 9, 10)),
    ("sidewalk", (75, 0, 75), (11,)),
    ("manmade", (222, 184, 135), (41, 42)),
    ("traffic cone", (255, 90, 0), (34, 37)),
    ("car", (255, 158, 0), (13,)),
    ("motorcycle", (255, 61, 99), (18,)),
    ("truck", (255, 99, 71), (14, 15, 16)),
    ("bus", (255, 127, 80), (23,)),
    ("bicycle", (220, 20, 60), (26,)),
    ("other vehicle", (233, 150, 70), (17, 19, 20, 21, 27, 28, 29)),
    ("ground", (112, 180, 60), (6,)),
    ("driveway", (175, 0, 75), (12,)),
)
_THINGS = (
    "traffic sign", "barrier", "pedestrian", "traffic cone", "car", "motorcycle", "truck", "bus",
    "bicycle", "other vehicle",
)  # fmt: skip
_TRAIN_OF_RAW = {raw: train for train, (_, _, raws) in enumerate(_CLASSES) for raw in raws}
_LOOKUP = np.array([_TRAIN_OF_RAW[raw] for raw in range(len(RAW_NAMES))])
_BOX_LABELS = {
    name: _THINGS.index(kind) if kind in _THINGS else None
    for name, kind in zip(RAW_NAMES, (_CLASSES[train][0] for train in _LOOKUP), strict=True)
}
_STATISTICS = {"pandar64": (18.23640649, 25.86983417), "pandar_gt": (23.06113565, 16.76273235)}
_COLUMNS = ("x", "y", "z", "i", "t", "d")


class Pandaset(Dataset):
    """PandaSet in its official layout, ``<root>/SSS/{lidar,camera,annotations,meta}``.

    Splits: train and val are the scenes with point labels, those that start north of 37.6 degrees
    and the others (49 and 27 when all are there); all is every scene, labelled or not. Scenes that
    are not there are left out. Poses and times are found by the number in a scan's name. Images are
    read as stored: they fit the lidar without the distortion that a separate calibration lists.

    Args:
        root: folder that holds the folders of the scenes, ``001``, ``002``, ...
        sensor: ``pandar64`` turns and sees all around, ``pandar_gt`` looks forward.
        cameras: any of ``back_camera``, ``front_camera``, ``front_left_camera``,
            ``front_right_camera``, ``left_camera``, ``right_camera``; default: all for
            ``pandar64``, ``front_camera`` for ``pandar_gt``.
        image_scale: factor on the size of images, in (0, 1].
        lift: m, height of the lidar frame's origin above that of the car's pose.

    Attributes:
        intensity_statistics: those that ScaLR states for the sensor.

    Raises:
        ConfigError: unknown sensor, camera or image scale.
        DataError: the root is wrong.
    """

    name = "pandaset"
    forward = (0.0, 1.0)
    classes = ClassTable(
        tuple(name for name, _, _ in _CLASSES), tuple(color for _, color, _ in _CLASSES)
    )
    box_classes = _THINGS

    def __init__(
        self,
        root: str | Path,
        sensor: Sensor = "pandar64",
        cameras: Sequence[str] | None = None,
        image_scale: float = 1.0,
        lift: float = 1.6,
    ) -> None:
        if sensor not in SENSORS:
            raise unknown_name("sensor", sensor, SENSORS)
        front_only = ("front_camera",) if sensor == "pandar_gt" else CAMERAS
        chosen = front_only if cameras is None else tuple(cameras)
        for camera in chosen:
            if camera not in CAMERAS:
                raise unknown_name("camera", camera, CAMERAS)
        if not abs(lift) < 100:
            raise ConfigError(f"lift is {lift}", field="lift", remedy="give metres, such as 1.6")
        self.root = find_root(
            Path(root), _scene_marks(Path(root)), "give the folder that holds 001/lidar, 002/lidar"
        )
        self.sensor, self.cameras = sensor, chosen
        self.image_scale = check_scale(image_scale)
        self.lift = lift
        self.intensity_statistics = _STATISTICS[sensor]
        self._poses: dict[Path, Tensor] = {}
        self._intrinsics: dict[Path, Tensor] = {}
        self._times: dict[Path, list[float]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    @cached_property
    def _scenes(self) -> list[str]:
        return sorted(mark.split("/")[0] for mark in _marks_below(self.root))

    @cached_property
    def _latitudes(self) -> dict[str, float]:
        """Degrees of every scene with labels."""
        latitudes = {}
        for scene in self._scenes:
            if self._has(scene, "semseg"):
                path = self.root / scene / "meta" / "gps.json"
                remedy = "unpack this scene's meta folder: the splits go by it"
                latitudes[scene] = parse_latitude(read_bytes(path, TEXT_FILE_LIMIT, remedy), path)
        return latitudes

    @cached_property
    def _photographed(self) -> bool:
        return any((self.root / scene / "camera").is_dir() for scene in self._scenes)

    def _has(self, scene: str, annotation: str) -> bool:
        return (self.root / scene / "annotations" / annotation).is_dir()

    def _scenes_of(self, split: str) -> list[str]:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if split == "all":
            return self._scenes
        return [
            name for name, lat in self._latitudes.items() if (lat > BORDER) == (split == "train")
        ]

    def frames(self, split: str) -> list[FrameId]:
        found = [
            FrameId(self.name, scene, token)
            for scene in self._scenes_of(split)
            for token in self._scans(scene)
        ]
        if not found:
            raise DataError(
                f"no scan of split '{split}' is here ({len(self._scenes)} scenes, "
                f"{len(self._latitudes)} with labels)",
                path=self.root,
                field="annotations/semseg",
                remedy="unpack scenes with annotations/semseg, or use split 'all'",
            )
        return found

    def _scans(self, scene: str) -> list[str]:
        names = list_names(self.root / scene / "lidar", [".pkl.gz"])
        tokens = [name.removesuffix(".pkl.gz") for name in names]
        return [token for token in tokens if re.fullmatch(r"[0-9]{1,6}", token, re.ASCII)]

    def provides(self, split: str) -> Field:
        scenes = self.sequences(split)
        provided = Field.POSE
        if self.cameras and self._photographed:
            provided |= Field.IMAGES
        if all(self._has(scene, "semseg") for scene in scenes):
            provided |= Field.SEMANTIC
        if all(self._has(scene, "cuboids") for scene in scenes):
            provided |= Field.BOXES
        return provided

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        self._check(frame)
        scene, name = self.root / frame.sequence, f"{frame.token}.pkl.gz"
        path = scene / "lidar" / name
        x, y, z, intensity, seconds, device = numeric_columns(read_table(path), _COLUMNS, path)
        kept = self._rows(device, path)
        world_from_lidar = self._world_from_lidar(frame)
        world = torch.from_numpy(np.column_stack([x, y, z])[kept].astype(np.float64))
        points = transform_points(world, invert_pose(world_from_lidar)).numpy()
        columns = {**dict(zip("xyz", points.T, strict=True)), "intensity": intensity[kept]}
        cloud = make_cloud(columns, path)
        loaded = Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            time=self._relative_times(frame, seconds[kept], path),
            cameras=self._read_cameras(frame, fields) if Field.IMAGES in fields else (),
            pose=world_from_lidar if Field.POSE in fields else None,
        )
        if Field.SEMANTIC in fields and self._has(frame.sequence, "semseg"):
            loaded.semantic = self._labels(scene / "annotations" / "semseg" / name, kept)
        if Field.BOXES in fields and self._has(frame.sequence, "cuboids"):
            cuboids = scene / "annotations" / "cuboids" / name
            loaded.boxes = self._boxes(cuboids, invert_pose(world_from_lidar))
        return loaded

    def _rows(self, device: np.ndarray, path: Path) -> np.ndarray:
        """Which rows of a scan's table are points of this sensor, (R,) bool."""
        number = SENSORS.index(self.sensor)
        rows = device == number
        if not rows.any():
            raise DataError(
                f"has no point of {self.sensor} (d = {number})",
                path=path,
                field="d",
                remedy="unpack this scene again, or choose the other sensor",
            )
        return rows

    def _check(self, frame: FrameId) -> None:
        if frame.dataset != self.name or not re.fullmatch(
            r"[0-9]{1,6}/[0-9]{1,6}", f"{frame.sequence}/{frame.token}", re.ASCII
        ):
            raise DataError(
                f"'{frame}' is not the id of a scan",
                path=self.root,
                field="token",
                remedy="use an id that frames() returned",
            )

    def _world_from_lidar(self, frame: FrameId) -> Tensor:
        pose = self._pose(self.root / frame.sequence / "lidar" / "poses.json", int(frame.token))
        return pose @ pose_from_rotation(torch.eye(3, dtype=torch.float64), (0, 0, self.lift))

    def _pose(self, path: Path, number: int) -> Tensor:
        if path not in self._poses:
            self._poses[path] = parse_poses(read_bytes(path, TEXT_FILE_LIMIT), path)
        return of_frame(self._poses[path], number, path)

    def _relative_times(self, frame: FrameId, seconds: np.ndarray, table: Path) -> Tensor:
        """Of each point to the time of the scan, (N,) float32 s."""
        path = self.root / frame.sequence / "lidar" / "timestamps.json"
        if path not in self._times:
            self._times[path] = parse_timestamps(read_bytes(path, TEXT_FILE_LIMIT), path)
        relative = seconds - of_frame(self._times[path], int(frame.token), path)
        if not (np.abs(relative) < 1e6).all():
            raise DataError(
                "a point's time is far from that of its scan",
                path=table,
                field="t",
                remedy="unpack this scene again",
            )
        return torch.from_numpy(relative.astype(np.float32))

    def _labels(self, path: Path, kept: np.ndarray) -> Tensor:
        table = self._annotations(path)
        return map_labels(raw_labels(table, path, len(kept))[kept], _LOOKUP, path)

    def _boxes(self, path: Path, lidar_from_world: Tensor) -> Boxes:
        device = SENSORS.index(self.sensor)
        return boxes_in_lidar(self._annotations(path), path, lidar_from_world, device, _BOX_LABELS)

    def _annotations(self, path: Path) -> Table:
        return read_table(path, "unpack the annotations of this scene again")

    def _read_cameras(self, frame: FrameId, fields: Field) -> tuple[Camera, ...]:
        if not self._photographed:
            return ()
        return tuple(self._camera(frame, camera, fields) for camera in self.cameras)

    def _camera(self, frame: FrameId, camera: str, fields: Field) -> Camera:
        folder = self.root / frame.sequence / "camera" / camera
        if not folder.is_dir():
            raise DataError(
                "folder not found",
                path=folder,
                field="cameras",
                remedy=f"unpack {camera} of scene {frame.sequence}, or choose other cameras",
            )
        world_from_camera = self._pose(folder / "poses.json", int(frame.token))
        path = folder / "intrinsics.json"
        if path not in self._intrinsics:
            self._intrinsics[path] = parse_intrinsics(read_bytes(path, TEXT_FILE_LIMIT), path)
        seen = Camera(
            name=camera,
            token=f"{frame.sequence}_{camera}_{frame.token}",
            image=None,
            intrinsics=self._intrinsics[path],
            camera_from_lidar=invert_pose(world_from_camera) @ self._world_from_lidar(frame),
        )
        image = open_image(folder / f"{frame.token}.jpg", self.image_scale)
        return with_image(seen, image, fields)


def _marks_below(folder: Path) -> list[str]:
    """``SSS/lidar`` of each scene in ``folder``."""
    return [
        f"{found.parent.name}/lidar"
        for found in sorted(folder.glob("[0-9]*/lidar"))
        if re.fullmatch(r"[0-9]{1,6}", found.parent.name, re.ASCII)
    ]


def _scene_marks(root: Path) -> list[str]:
    """Folders of scans in ``root`` or, where it has none, in the folders around it."""
    if marks := _marks_below(root):
        return marks
    around = [*root.parents[:4], *root.glob("*"), *root.glob("*/*")]
    found = [mark for folder in around if folder.is_dir() for mark in _marks_below(folder)]
    return list(dict.fromkeys(found)) or ["001/lidar"]
