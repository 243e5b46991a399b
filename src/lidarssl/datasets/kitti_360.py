"""KITTI-360: eleven long suburban drives, here as unlabelled scans with two perspective cameras.

Lidar (HDL-64E, 10 Hz) frame: x forward, y left, z up; intensity 0..1. Scans are not motion
compensated. Labels of the release lie on clouds accumulated over windows of a drive, not on scans,
and are not read; nor are the fisheye cameras. Data: Liao et al., PAMI 2022.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
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
from lidarssl.datasets.image_files import check_scale, open_image, with_image
from lidarssl.datasets.kitti_files import (
    parse_keyed,
    parse_numbered_poses,
    parse_poses,
    projection_matrix,
    rigid,
    rotation,
)
from lidarssl.datasets.layout import find_root, packaged_table
from lidarssl.datasets.point_files import KITTI_COLUMNS, make_cloud, parse_bin
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.geometry.poses import invert_pose
from lidarssl.geometry.projection import kitti_camera

CAMERAS = ("image_00", "image_01")
TEST_DRIVES = ("0008", "0018")
THINNING = 20
SPLITS = ("train", "val", "val_20th", "test")
_RAW = "data_3d_raw"
_REMEDY = "unpack calibration.zip again"

# The 19 classes of its benchmarks, which are those of Cityscapes.
_CLASSES = (
    ("ignored", (0, 0, 0)),
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)

Cameras = dict[str, tuple[Tensor, Tensor]]


class Kitti360(Dataset):
    """KITTI-360 in its official layout, ``<root>/data_3d_raw/<drive>/velodyne_points/data/...``.

    Splits: train and val are the scans inside the windows of the official lists of accumulated
    clouds, val_20th is every 20th of val, which ALSO validates on, and test every scan of the two
    test drives. Windows overlap: a scan counts once, and not for train where it is one of val.
    Scans that are not there are left out.

    Args:
        root: folder that holds ``data_3d_raw``.
        cameras: any of ``image_00`` (left) and ``image_01`` (right).
        image_scale: factor on the size of images, in (0, 1].
        repeats: list a scan as often as windows hold it, and those of val in train too, as ALSO
            does.
        posed: leave out scans without a pose (data_poses has only the reliable ones), so that
            every frame has one.

    Raises:
        ConfigError: unknown camera or image scale.
        DataError: the root is wrong.
    """

    name = "kitti_360"
    intensity_statistics = (0.28613698, 0.14090556)
    classes = ClassTable(tuple(name for name, _ in _CLASSES), tuple(color for _, color in _CLASSES))

    def __init__(
        self,
        root: str | Path,
        cameras: Sequence[str] = ("image_00",),
        image_scale: float = 1.0,
        repeats: bool = False,
        posed: bool = False,
    ) -> None:
        for camera in cameras:
            if camera not in CAMERAS:
                raise unknown_name("camera", camera, CAMERAS)
        self.root = find_root(
            Path(root), (_RAW,), "give the folder that holds data_3d_raw/2013_05_28_drive_0000_sync"
        )
        self.cameras = tuple(cameras)
        self.image_scale = check_scale(image_scale)
        self.repeats = repeats
        self.posed = posed
        self._poses: dict[str, tuple[dict[int, int], Tensor]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def frames(self, split: str) -> list[FrameId]:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        found = [
            FrameId(self.name, sequence, name)
            for drive, numbers in self._listed(split).items()
            for sequence in (f"2013_05_28_drive_{drive}_sync",)
            for name in self._present(sequence, numbers)
        ]
        if not found:
            raise DataError(
                f"no scan of split '{split}' is here" + (" with a pose" if self.posed else ""),
                path=self.root / _RAW,
                field="velodyne_points",
                remedy="unpack data_3d_raw (the raw Velodyne scans) of more drives",
            )
        return found

    def absent(self, split: str) -> str:
        there = len(self.frames(split))
        listed = sum(len(numbers or ()) for numbers in self._listed(split).values())
        if there >= listed:
            return ""
        what = f"{listed - there} of the {listed} scans of the list"
        return f"{what}, or without a pose" if self.posed else what

    def _listed(self, split: str) -> dict[str, list[int] | None]:
        """Numbers of the scans of each drive, whether they are there or not; None = all."""
        if split == "test":
            return dict.fromkeys(TEST_DRIVES)
        windows: dict[str, dict[str, list[list[int]]]] = packaged_table("kitti_360_windows.json")
        listed = {drive: _expand(pairs) for drive, pairs in windows[split.split("_")[0]].items()}
        if not self.repeats:
            held_out = windows["val"] if split == "train" else {}
            listed = {
                drive: _distinct(numbers, _expand(held_out.get(drive, [])))
                for drive, numbers in listed.items()
            }
        if split == "val_20th":
            every = [(drive, number) for drive, numbers in listed.items() for number in numbers]
            kept = every[::THINNING]
            listed = {drive: [number for at, number in kept if at == drive] for drive in listed}
        return dict(listed)

    def _present(self, sequence: str, numbers: list[int] | None) -> list[str]:
        names = list_names(self._scans(sequence), [".bin"])
        there = [name.removesuffix(".bin") for name in names]
        if numbers is not None:
            known = set(there)
            there = [name for name in (f"{number:010d}" for number in numbers) if name in known]
        if self.posed and there:
            rows, _ = self._drive_poses(sequence)
            there = [name for name in there if int(name) in rows]
        return there

    def _scans(self, sequence: str) -> Path:
        return self.root / _RAW / sequence / "velodyne_points" / "data"

    def provides(self, split: str) -> Field:
        ids = self.frames(split)
        calibrated = (self.root / "calibration" / "perspective.txt").is_file()
        folders = [self._images(ids[0].sequence, camera) for camera in self.cameras]
        provided = Field.NONE
        if calibrated and folders and all(folder.is_dir() for folder in folders):
            provided |= Field.IMAGES
        if all(self._has_pose(frame) for frame in ids):
            provided |= Field.POSE
        return provided

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        if frame.dataset != self.name or not re.fullmatch(
            r"2013_05_28_drive_[0-9]{4}_sync/[0-9]{10}", f"{frame.sequence}/{frame.token}", re.ASCII
        ):
            raise DataError(
                f"'{frame}' is not the id of a scan",
                path=self.root,
                field="token",
                remedy="use an id that frames() returned",
            )
        path = self._scans(frame.sequence) / f"{frame.token}.bin"
        data = read_bytes(path, POINT_FILE_LIMIT)
        cloud = make_cloud(parse_bin(data, path, KITTI_COLUMNS), path)
        posed = Field.POSE in fields and self._has_pose(frame)
        return Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            cameras=self._read_cameras(frame, fields) if Field.IMAGES in fields else (),
            pose=self._pose(frame) if posed else None,
        )

    def _images(self, sequence: str, camera: str) -> Path:
        return self.root / "data_2d_raw" / sequence / camera / "data_rect"

    def _read_cameras(self, frame: FrameId, fields: Field) -> tuple[Camera, ...]:
        present = [
            camera for camera in self.cameras if self._images(frame.sequence, camera).is_dir()
        ]
        return tuple(self._camera(frame, camera, fields) for camera in present)

    def _camera(self, frame: FrameId, camera: str, fields: Field) -> Camera:
        intrinsics, camera_from_lidar = self._calibration[camera]
        path = self._images(frame.sequence, camera) / f"{frame.token}.png"
        token = f"{frame.sequence}_{camera}_{frame.token}"
        seen = Camera(camera, token, None, intrinsics, camera_from_lidar.clone())
        return with_image(seen, open_image(path, self.image_scale), fields)

    def _calibration_file(self, name: str) -> tuple[bytes, Path]:
        path = self.root / "calibration" / name
        return read_bytes(path, MEBIBYTE, "unpack calibration.zip here"), path

    @cached_property
    def _lidar_from_camera0(self) -> Tensor:
        return parse_camera_to_lidar(*self._calibration_file("calib_cam_to_velo.txt"))

    @cached_property
    def _calibration(self) -> Cameras:
        data, path = self._calibration_file("perspective.txt")
        return parse_perspective(data, path, self._lidar_from_camera0)

    @cached_property
    def _pose_from_lidar(self) -> Tensor:
        """Lidar to the GPS/IMU frame that poses are of."""
        camera = parse_camera_to_pose(*self._calibration_file("calib_cam_to_pose.txt"))
        return camera @ invert_pose(self._lidar_from_camera0)

    def _pose_file(self, sequence: str) -> Path:
        return self.root / "data_poses" / sequence / "poses.txt"

    def _has_pose(self, frame: FrameId) -> bool:
        if not self._pose_file(frame.sequence).is_file():
            return False
        rows, _ = self._drive_poses(frame.sequence)
        return int(frame.token) in rows

    def _pose(self, frame: FrameId) -> Tensor:
        rows, poses = self._drive_poses(frame.sequence)
        return poses[rows[int(frame.token)]] @ self._pose_from_lidar

    def _drive_poses(self, sequence: str) -> tuple[dict[int, int], Tensor]:
        if sequence not in self._poses:
            path = self._pose_file(sequence)
            data = read_bytes(path, TEXT_FILE_LIMIT, "unpack data_poses.zip here, or omit 'posed'")
            self._poses[sequence] = parse_numbered_poses(data, path)
        return self._poses[sequence]


def _expand(windows: Sequence[Sequence[int]]) -> list[int]:
    """Numbers first..last of every window, one window after the other."""
    return [number for first, last in windows for number in range(first, last + 1)]


def _distinct(numbers: Sequence[int], without: Sequence[int]) -> list[int]:
    left_out = set(without)
    return [number for number in dict.fromkeys(numbers) if number not in left_out]


def parse_camera_to_lidar(data: bytes, path: Path) -> Tensor:
    """calib_cam_to_velo.txt: lidar_from_camera0 of the unrectified camera, (4, 4) float64.

    Raises:
        DataError: not one rigid transform of 12 numbers.
    """
    poses = parse_poses(data, path)
    if len(poses) != 1:
        raise DataError(f"has {len(poses)} lines, not one", path=path, remedy=_REMEDY)
    return poses[0]


def parse_camera_to_pose(data: bytes, path: Path) -> Tensor:
    """calib_cam_to_pose.txt: pose_from_camera0, (4, 4) float64, of its line ``image_00``.

    Raises:
        DataError: no such line, or not a rigid transform.
    """
    found = parse_keyed(data, path, {"image_00": 12}, _REMEDY)
    if "image_00" not in found:
        raise DataError("has no line 'image_00:'", path=path, field="image_00", remedy=_REMEDY)
    return rigid(found["image_00"].reshape(3, 4), path, "image_00")


def parse_perspective(data: bytes, path: Path, lidar_from_camera0: Tensor) -> Cameras:
    """perspective.txt: intrinsics (3, 3) and camera_from_lidar (4, 4), float64, of each camera.

    Args:
        data: content of the file.
        path: its name, for messages.
        lidar_from_camera0: (4, 4) float64, of the unrectified camera.

    Raises:
        DataError: a line is missing or malformed.
    """
    projections = {camera: f"P_rect_{camera[-2:]}" for camera in CAMERAS}
    sizes = {**dict.fromkeys(projections.values(), 12), "R_rect_00": 9}
    found = parse_keyed(data, path, sizes, _REMEDY)
    for key in sizes:
        if key not in found:
            raise DataError(f"has no line '{key}:'", path=path, field=key, remedy=_REMEDY)
    rectified = rotation(found["R_rect_00"], path, "R_rect_00") @ invert_pose(lidar_from_camera0)
    return {
        camera: kitti_camera(projection_matrix(found[key], path, key, _REMEDY), rectified)
        for camera, key in projections.items()
    }
