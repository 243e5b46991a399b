"""A2D2: what each of six cameras sees of five lidars, in the frame of the camera itself.

Lidar frame: the view frame of the camera, x forward, y left, z up, its origin at the camera; a scan
holds only the points in the camera's field of view. Intensity (reflectance) as stored, 0..255.
Data: Geyer et al., "A2D2: Audi Autonomous Driving Dataset", 2020.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lidarssl.datasets.a2d2_files import SCAN_LIMIT, A2d2Camera, is_usable, parse_camera, parse_scan
from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.datasets.files import TEXT_FILE_LIMIT, list_names, read_bytes
from lidarssl.datasets.image_files import check_scale, read_image, resize_intrinsics, scaled_size
from lidarssl.datasets.layout import find_root
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.geometry.distortion import sample_image, undistortion_grid

CAMERAS = (
    "cam_front_center",
    "cam_front_left",
    "cam_front_right",
    "cam_side_left",
    "cam_side_right",
    "cam_rear_center",
)
SPLITS = ("train", "val", "all")
CALIBRATION = "cams_lidars.json"
_SCENE = r"[0-9]{8}_[0-9]{6}"
_LARGEST_RATIO = 0.5


class A2d2(Dataset):
    """A2D2 in its official layout, ``<root>/<scene>/{lidar,camera}/<camera>/...``.

    Splits: of the scans of each scene, sorted, the last ``int(scans * val_ratio)`` are val and the
    others train; all is both. Scans without points, or without their reflectance and pixels, are
    left out before the splits are made. A scan belongs to one camera, and is in its view frame.

    Args:
        root: folder that holds the scenes, such as ``camera_lidar`` or ``camera_lidar_semantic``.
        calibration: ``cams_lidars.json``; default: the one in ``root`` or beside it.
        camera: whose scans and images, of ``cam_front_center``, ``cam_front_left``,
            ``cam_front_right``, ``cam_side_left``, ``cam_side_right``, ``cam_rear_center``.
        val_ratio: share of a scene that is val, in [0, 0.5].
        image_scale: factor on the size of images, in (0, 1].
        undistort: free images of the lens's distortion, which pixels of lidar points need; False
            reads them as stored, with the camera matrix of the lens, and points near their borders
            meet the wrong pixels.

    Raises:
        ConfigError: unknown camera, or a share or scale out of range.
        DataError: the root is wrong.
    """

    name = "a2d2"
    classes = ClassTable(("ignored",), ((0, 0, 0),))

    def __init__(
        self,
        root: str | Path,
        calibration: str | Path | None = None,
        camera: str = "cam_front_center",
        val_ratio: float = 0.15,
        image_scale: float = 1.0,
        undistort: bool = True,
    ) -> None:
        if camera not in CAMERAS:
            raise unknown_name("camera", camera, CAMERAS)
        if not 0 <= val_ratio <= _LARGEST_RATIO:
            raise ConfigError(
                f"val_ratio is {val_ratio}",
                field="val_ratio",
                remedy=f"give a share in [0, {_LARGEST_RATIO}], such as 0.15",
            )
        self.root = find_root(
            Path(root), _scene_marks(Path(root)), "give the folder that holds 20180810_142822/lidar"
        )
        self.camera, self.val_ratio = camera, val_ratio
        self.image_scale = check_scale(image_scale)
        self.undistort = undistort
        self.calibration = self._calibration_file(calibration)

    def _calibration_file(self, given: str | Path | None) -> Path:
        if given is not None:
            return Path(given)
        inside, beside = self.root / CALIBRATION, self.root.absolute().parent / CALIBRATION
        return beside if beside.is_file() and not inside.is_file() else inside

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def frames(self, split: str) -> list[FrameId]:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        found = [
            FrameId(self.name, scene, token)
            for scene, tokens in self._usable.items()
            for token in self._part(tokens, split)
        ]
        if not found:
            listed = sum(map(len, self._usable.values()))
            raise DataError(
                f"split '{split}' of the {listed} usable scans of {self.camera} is empty "
                f"(val_ratio {self.val_ratio}, {len(self._usable)} scenes)",
                path=self.root,
                field="lidar",
                remedy=f"unpack more of lidar/{self.camera}, change val_ratio, or use split 'all'",
            )
        return found

    def _part(self, tokens: list[str], split: str) -> list[str]:
        # Not tokens[:-count]: without validation scans that would be nothing.
        border = len(tokens) - int(len(tokens) * self.val_ratio)
        return {"train": tokens[:border], "val": tokens[border:], "all": tokens}[split]

    def absent(self, split: str) -> str:
        """Scans of all splits that cannot be used: they belong to none."""
        listed = sum(map(len, self._scans.values()))
        gone = listed - sum(map(len, self._usable.values()))
        if not gone:
            return ""
        return f"{gone} of the {listed} scans, which hold no point or lack reflectance, row or col"

    @cached_property
    def _scans(self) -> dict[str, list[str]]:
        """Numbers of the scans of each scene, sorted."""
        return {
            scene: [
                found[1]
                for name in list_names(self.root / scene / "lidar" / self.camera, [".npz"])
                if (found := re.fullmatch(_scan_pattern(scene, self.camera), name, re.ASCII))
            ]
            for scene in sorted(mark.split("/")[0] for mark in _marks_below(self.root))
        }

    @cached_property
    def _usable(self) -> dict[str, list[str]]:
        """``_scans`` without those that hold nothing."""
        return {
            scene: [token for token in tokens if self._is_usable(self._scan_file(scene, token))]
            for scene, tokens in self._scans.items()
        }

    def _is_usable(self, path: Path) -> bool:
        # A damaged scan stays in the list, so that it is told of when it is loaded.
        try:
            if not path.is_file() or path.stat().st_size > SCAN_LIMIT:
                return True
            with path.open("rb") as file:
                return is_usable(file, path)
        except (OSError, DataError):
            return True

    def _scan_file(self, scene: str, token: str) -> Path:
        name = _file_name(scene, "lidar", self.camera, token)
        return self.root / scene / "lidar" / self.camera / f"{name}.npz"

    def provides(self, split: str) -> Field:
        self.frames(split)
        return Field.IMAGES if self._photographed else Field.NONE

    @cached_property
    def _photographed(self) -> bool:
        return any(self._image_folder(scene).is_dir() for scene in self._scans)

    def _image_folder(self, scene: str) -> Path:
        return self.root / scene / "camera" / self.camera

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        if frame.dataset != self.name or not re.fullmatch(
            rf"{_SCENE}/[0-9]{{1,12}}", f"{frame.sequence}/{frame.token}", re.ASCII
        ):
            raise DataError(
                f"'{frame}' is not the id of a scan",
                path=self.root,
                field="token",
                remedy="use an id that frames() returned",
            )
        path = self._scan_file(frame.sequence, frame.token)
        scan = parse_scan(read_bytes(path, SCAN_LIMIT), path)
        return Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=scan.cloud.points,
            intensity=scan.cloud.intensity,
            time=scan.time,
            cameras=self._cameras(frame) if Field.IMAGES in fields else (),
        )

    def _cameras(self, frame: FrameId) -> tuple[Camera, ...]:
        if not self._photographed:
            return ()
        name = _file_name(frame.sequence, "camera", self.camera, frame.token)
        path = self._image_folder(frame.sequence) / f"{name}.png"
        image, size = read_image(path, self.image_scale)
        lens = self._lens
        if size != lens.size:
            raise DataError(
                f"the image has {size[1]} x {size[0]} pixels, but {self.calibration} says "
                f"{lens.size[1]} x {lens.size[0]}",
                path=path,
                field="Resolution",
                remedy="use the images and the calibration of one release, as published",
            )
        intrinsics, grid = self._view
        camera = Camera(
            name=self.camera,
            token=f"{frame.sequence}_{self.camera}_{frame.token}",
            image=image if grid is None else sample_image(image, grid),
            intrinsics=intrinsics.clone(),
            camera_from_lidar=camera_from_view(),
        )
        return (camera,)

    @cached_property
    def _view(self) -> tuple[Tensor, Tensor | None]:
        """Intrinsics of what is read, and where its pixels are in a stored image of that size."""
        lens = self._lens
        after = scaled_size(*lens.size, self.image_scale)
        original = resize_intrinsics(lens.original, lens.size, after)
        if not self.undistort:
            return original, None
        intrinsics = resize_intrinsics(lens.intrinsics, lens.size, after)
        return intrinsics, undistortion_grid(
            *after, original, lens.distortion, intrinsics, lens.lens
        )

    @cached_property
    def _lens(self) -> A2d2Camera:
        remedy = f"put {CALIBRATION}, a download of its own, here or beside this folder"
        data = read_bytes(self.calibration, TEXT_FILE_LIMIT, remedy)
        return parse_camera(data, self.calibration, self.camera.removeprefix("cam_"))


def camera_from_view() -> Tensor:
    """(4, 4) float64 from x forward, y left, z up to x right, y down, z forward."""
    turn = torch.zeros((4, 4), dtype=torch.float64)
    turn[[0, 1, 2, 3], [1, 2, 0, 3]] = torch.tensor([-1, -1, 1, 1], dtype=torch.float64)
    return turn


def _file_name(scene: str, kind: str, camera: str, token: str) -> str:
    place = camera.removeprefix("cam_").replace("_", "")
    return f"{scene.replace('_', '')}_{kind}_{place}_{token}"


def _scan_pattern(scene: str, camera: str) -> str:
    return _file_name(scene, "lidar", camera, r"([0-9]{1,12})\.npz")


def _marks_below(folder: Path) -> list[str]:
    """``SCENE/lidar`` of each scene in ``folder``."""
    return [
        f"{found.parent.name}/lidar"
        for found in sorted(folder.glob("[0-9]*/lidar"))
        if re.fullmatch(_SCENE, found.parent.name, re.ASCII)
    ]


def _scene_marks(root: Path) -> list[str]:
    """Folders of scans in ``root`` or, where it has none, in the folders around it."""
    if marks := _marks_below(root):
        return marks
    around = [*root.parents[:4], *root.glob("*"), *root.glob("*/*")]
    found = [mark for folder in around if folder.is_dir() for mark in _marks_below(folder)]
    return list(dict.fromkeys(found)) or ["20180810_142822/lidar"]
