"""Own recordings in plain folders: sweeps in any common format, with whatever else there is."""

from __future__ import annotations

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
    check_name,
    list_names,
    read_bytes,
    read_json,
)
from lidarssl.datasets.folder_files import (
    CameraCalibration,
    parse_calibration,
    parse_classes,
    parse_splits,
)
from lidarssl.datasets.image_files import SUFFIXES, check_scale, open_image, with_image
from lidarssl.datasets.kitti_files import parse_poses
from lidarssl.datasets.pcd import parse_pcd
from lidarssl.datasets.ply import parse_ply
from lidarssl.datasets.point_files import (
    KITTI_COLUMNS,
    Columns,
    check_columns,
    make_cloud,
    map_labels,
    parse_bin,
    parse_labels,
    parse_npy,
)
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.wording import counted

POINT_SUFFIXES = (".bin", ".npy", ".pcd", ".ply")
WHOLE = "all"


class Folder(Dataset):
    """A folder of recordings; only ``lidar/`` is required::

        my_logs/
            calibration.json          {"cameras": {"front": {"intrinsics": [[fx, 0, cx], ...],
                                                            "camera_from_lidar": [4 rows of 4]}}}
            classes.json              {"names": ["ignored", "car", "road"],
                                       "colors": [[0, 0, 0], [255, 0, 0], [90, 90, 90]],
                                       "map": {"10": "car", "40": "road"}}
            splits.json               {"train": ["monday"], "val": ["tuesday"]}
            monday/                   a sequence
                lidar/000000.pcd      sweeps: .bin, .npy, .pcd or .ply
                labels/000000.label   uint32 per point: class in the lower 16 bits, instance in the
                                      upper 16
                images/front/000000.jpg
                poses.txt             one world_from_lidar per sweep: 12 (3x4) or 16 (4x4) numbers
                calibration.json      of this sequence alone, instead of the common one
            tuesday/
                ...

    A frame is a sweep; what belongs to it has the same stem. ``camera_from_lidar`` takes metres
    in the lidar frame to metres in the camera frame (x right, y down, z forward); intrinsics are
    in pixels of undistorted images, integers at pixel centres. In ``classes.json`` name 0 is the
    ignored class; ``colors`` is optional; without ``map`` labels are train ids already.
    Without ``splits.json`` the splits are sub-folders of sequences (``train/monday/lidar``), or,
    with sequences directly in the root, the one split ``all``.

    Args:
        root: the folder.
        columns: meaning of the columns of .bin and .npy sweeps (see ``point_files.parse_bin``).
        cameras: names to read, in this order; default: all of ``calibration.json``.
        image_scale: factor on the size of images, in (0, 1].
        drop_invalid: remove NaN and infinite points (organised clouds have them) with their
            labels, instead of refusing the sweep.
        intensity_statistics: mean and standard deviation of the intensities, as `lidarssl data
            stats` prints them; for networks whose input is standardised.

    Raises:
        ConfigError: unknown camera, columns or image scale.
        DataError: no sweeps, or a malformed json file.
    """

    name = "folder"

    def __init__(
        self,
        root: str | Path,
        columns: Sequence[str] = KITTI_COLUMNS,
        cameras: Sequence[str] | None = None,
        image_scale: float = 1.0,
        drop_invalid: bool = False,
        intensity_statistics: tuple[float, float] | None = None,
    ) -> None:
        check_columns(columns)
        self.intensity_statistics = intensity_statistics
        self.root = Path(root)
        self.columns = tuple(columns)
        self.image_scale = check_scale(image_scale)
        self.drop_invalid = drop_invalid
        self.sequence_folders = _find_sequences(self.root)
        self.chosen = None if cameras is None else tuple(cameras)
        self._calibrations: dict[str, dict[str, CameraCalibration]] = {}
        self._poses: dict[str, Tensor] = {}
        self._sweeps: dict[str, dict[str, str]] = {}
        path = self.root / "classes.json"
        self.labelled = path.is_file()
        self.classes, self._label_map = (
            parse_classes(read_json(path), path)
            if self.labelled
            else (ClassTable(("ignored",), ((0, 0, 0),)), {0: 0})
        )

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.sequence_folders)

    def frames(self, split: str) -> list[FrameId]:
        if split not in self.sequence_folders:
            raise unknown_name("split", split, self.splits)
        found = [
            FrameId(self.name, folder.name, stem)
            for folder in self.sequence_folders[split]
            for stem in self._stems(folder)
        ]
        if not found:
            raise DataError(
                f"split '{split}' has no sweep",
                path=self.root,
                field="lidar",
                remedy=f"put {', '.join(POINT_SUFFIXES)} files into <sequence>/lidar/",
            )
        return found

    def provides(self, split: str) -> Field:
        first = self.frames(split)[0]
        folder = self._folders[first.sequence]
        provided = Field.NONE
        if any((folder / "images" / name).is_dir() for name in self._cameras(folder)):
            provided |= Field.IMAGES
        if self.labelled and (folder / "labels").is_dir():
            provided |= Field.SEMANTIC | Field.INSTANCE
        if (folder / "poses.txt").is_file():
            provided |= Field.POSE
        return provided

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        folder = self._folders.get(frame.sequence)
        if folder is None or frame.dataset != self.name or frame.token not in self._stems(folder):
            raise DataError(
                f"there is no frame {frame}",
                path=self.root,
                field="token",
                remedy="use an id that frames() returned",
            )
        path = folder / "lidar" / self._stems(folder)[frame.token]
        cloud = make_cloud(read_columns(path, self.columns), path, self.drop_invalid)
        semantic, instance = self._labels(folder, frame.token, cloud.kept.numpy(), fields)
        return Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            ring=cloud.ring,
            cameras=self._read_cameras(folder, frame, fields) if Field.IMAGES in fields else (),
            pose=self._pose(folder, frame.token) if Field.POSE in fields else None,
            semantic=semantic,
            instance=instance,
        )

    @cached_property
    def _folders(self) -> dict[str, Path]:
        return {
            folder.name: folder for folders in self.sequence_folders.values() for folder in folders
        }

    def _stems(self, folder: Path) -> dict[str, str]:
        """Sweep file of each token, in order of the tokens."""
        if folder.name not in self._sweeps:
            names = list_names(folder / "lidar", POINT_SUFFIXES)
            stems = {Path(name).stem: name for name in sorted(names, key=lambda n: Path(n).stem)}
            if len(stems) < len(names):
                raise DataError(
                    "two sweeps have the same name but different formats",
                    path=folder / "lidar",
                    remedy="keep one file per sweep",
                )
            self._sweeps[folder.name] = {
                check_name(stem, folder / "lidar", "name"): name for stem, name in stems.items()
            }
        return self._sweeps[folder.name]

    def _labels(
        self, folder: Path, token: str, kept: np.ndarray, fields: Field
    ) -> tuple[Tensor | None, Tensor | None]:
        wanted = (Field.SEMANTIC | Field.INSTANCE) & fields
        if not wanted or not self.labelled or not (folder / "labels").is_dir():
            return None, None
        path = folder / "labels" / f"{token}.label"
        raw = parse_labels(read_bytes(path, POINT_FILE_LIMIT), path, "<u4", len(kept))[kept]
        semantic = instance = None
        if Field.SEMANTIC in fields:
            lookup = np.full(1 << 16, -1, np.int64)
            lookup[list(self._label_map)] = list(self._label_map.values())
            semantic = map_labels(raw & 0xFFFF, lookup, path)
        if Field.INSTANCE in fields:
            # As in SemanticKITTI: the whole label names one object.
            instance = torch.from_numpy(np.where(raw >> 16 > 0, raw, 0))
        return semantic, instance

    def _calibration(self, folder: Path) -> dict[str, CameraCalibration]:
        if folder.name not in self._calibrations:
            path = folder / "calibration.json"
            path = path if path.is_file() else self.root / "calibration.json"
            found = parse_calibration(read_json(path), path) if path.is_file() else {}
            self._calibrations[folder.name] = found
        return self._calibrations[folder.name]

    def _cameras(self, folder: Path) -> tuple[str, ...]:
        known = tuple(self._calibration(folder))
        for camera in self.chosen or ():
            if camera not in known:
                raise unknown_name("camera", camera, known)
        return known if self.chosen is None else self.chosen

    def _read_cameras(self, folder: Path, frame: FrameId, fields: Field) -> tuple[Camera, ...]:
        return tuple(
            self._camera(folder, frame, name, fields)
            for name in self._cameras(folder)
            if (folder / "images" / name).is_dir()
        )

    def _camera(self, folder: Path, frame: FrameId, name: str, fields: Field) -> Camera:
        stem = folder / "images" / name / frame.token
        paths = [stem.with_name(frame.token + suffix) for suffix in SUFFIXES]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise DataError(
                "there is no image of this sweep",
                path=stem,
                field="image",
                remedy=f"give each image the stem of its sweep ({', '.join(SUFFIXES)})",
            )
        calibration = self._calibration(folder)[name]
        seen = Camera(
            name=name,
            token=f"{frame.sequence}_{name}_{frame.token}",
            image=None,
            intrinsics=calibration.intrinsics,
            camera_from_lidar=calibration.camera_from_lidar.clone(),
        )
        return with_image(seen, open_image(path, self.image_scale), fields)

    def _pose(self, folder: Path, token: str) -> Tensor | None:
        path = folder / "poses.txt"
        if not path.is_file():
            return None
        stems = list(self._stems(folder))
        if folder.name not in self._poses:
            poses = parse_poses(read_bytes(path, TEXT_FILE_LIMIT), path, sizes=(12, 16))
            if len(poses) != len(stems):
                raise DataError(
                    f"has {counted(len(poses), 'pose')} for {counted(len(stems), 'sweep')}",
                    path=path,
                    field="poses",
                    remedy="write one line per sweep, in the order of their names",
                )
            self._poses[folder.name] = poses
        return self._poses[folder.name][stems.index(token)].clone()


def read_columns(path: Path, columns: Sequence[str]) -> Columns:
    """Columns of a sweep in any supported format, told by the suffix.

    Args:
        path: a .bin, .npy, .pcd or .ply file.
        columns: of .bin and .npy files; the others name their own.

    Raises:
        DataError: missing, of another suffix, truncated or malformed.
    """
    data = read_bytes(path, POINT_FILE_LIMIT)
    match path.suffix:
        case ".bin":
            return parse_bin(data, path, columns)
        case ".npy":
            return parse_npy(data, path, columns)
        case ".pcd":
            return parse_pcd(data, path)
        case ".ply":
            return parse_ply(data, path)
    raise DataError(
        f"'{path.suffix}' is no format of sweeps",
        path=path,
        remedy=f"use {', '.join(POINT_SUFFIXES)}",
    )


def _find_sequences(root: Path) -> dict[str, list[Path]]:
    """Folders of sequences of every split."""
    splits_path = root / "splits.json"
    direct = sorted(path.parent for path in root.glob("*/lidar") if path.is_dir())
    if splits_path.is_file():
        names = parse_splits(read_json(splits_path), splits_path)
        found = {split: [root / name for name in names[split]] for split in names}
    elif direct:
        found = {WHOLE: direct}
    else:
        found = {}
        for path in sorted(root.glob("*/*/lidar")):
            found.setdefault(path.parents[1].name, []).append(path.parent)
    folders = {folder for group in found.values() for folder in group}
    _check_sequences(root, folders)
    return found


def _check_sequences(root: Path, folders: set[Path]) -> None:
    if not folders:
        above = next(
            (parent for parent in (root, *root.parents[:2]) if parent.name == "lidar"), None
        )
        raise DataError(
            "there is no '<sequence>/lidar' below this folder",
            path=root,
            field="root",
            remedy=f"use root {above.parents[1]}"
            if above is not None and len(above.parents) > 1
            else "put sweeps into <root>/<sequence>/lidar/",
        )
    names = [check_name(folder.name, root, "sequence") for folder in sorted(folders)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"sequence '{twice[0]}' stands in several splits under the same name",
            path=root,
            field="sequence",
            remedy="give every sequence its own name",
        )
    for folder in sorted(folders):
        if not (folder / "lidar").is_dir():
            raise DataError(
                "the sequence has no folder 'lidar'",
                path=folder,
                field="sequence",
                remedy="correct splits.json, or put the sweeps into lidar/",
            )
