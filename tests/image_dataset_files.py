"""Writers of tiny examples of A2D2, Cityscapes and ACDC."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset_files import image_bytes, write

SCENES = ("20180810_142822", "20181107_132300")
VIEW_HEIGHT, VIEW_WIDTH = 40, 64
VIEW_MATRIX = [[50.0, 0.0, 31.0], [0.0, 52.0, 20.5], [0.0, 0.0, 1.0]]
LENS_MATRIX = [[55.0, 0.0, 30.0], [0.0, 54.0, 20.0], [0.0, 0.0, 1.0]]
TELECAM = [[-0.26, 0.01, 0.001, -0.002, 0.005]]
FISHEYE = [[-0.05, 0.01, 0.002, -0.001]]


def a2d2_calibration() -> dict[str, Any]:
    """All six cameras, front_center a Telecam and the others fisheyes."""

    def camera(lens: str, distortion: list[list[float]]) -> dict[str, Any]:
        return {
            "view": {"origin": [1.7, 0, 0.9], "x-axis": [1, 0, 0], "y-axis": [0, 1, 0]},
            "Lens": lens,
            "CamMatrix": VIEW_MATRIX,
            "CamMatrixOriginal": LENS_MATRIX,
            "Distortion": distortion,
            "Resolution": [float(VIEW_WIDTH), float(VIEW_HEIGHT)],
            "tstamp_delay": 25000.0,
        }

    others = ("front_left", "front_right", "side_left", "side_right", "rear_center")
    cameras = {"front_center": camera("Telecam", TELECAM)}
    cameras |= {name: camera("Fisheye", FISHEYE) for name in others}
    return {"cameras": cameras, "lidars": {}, "vehicle": {}}


def a2d2_arrays(seed: int, count: int = 40) -> dict[str, np.ndarray]:
    """Points ahead of the camera and where they are in its undistorted image."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(3, 60, count)
    col, row = rng.uniform(2, VIEW_WIDTH - 3, count), rng.uniform(2, VIEW_HEIGHT - 3, count)
    (fx, _, cx), (_, fy, cy), _ = VIEW_MATRIX
    points = np.stack([x, -(col - cx) / fx * x, -(row - cy) / fy * x], 1)
    return {
        "points": points,
        "reflectance": rng.integers(0, 256, count),
        "row": row,
        "col": col,
        "depth": x,
        "distance": np.linalg.norm(points, axis=1),
        "lidar_id": rng.integers(0, 5, count).astype(float),
        "timestamp": 1_533_904_617_000_000 + rng.permutation(count) * 1000,
    }


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def scan_path(root: Path, scene: str, number: int, camera: str = "cam_front_center") -> Path:
    place = camera.removeprefix("cam_").replace("_", "")
    name = f"{scene.replace('_', '')}_lidar_{place}_{number:09d}.npz"
    return root / scene / "lidar" / camera / name


def photo_path(scan: Path) -> Path:
    folder = scan.parents[2] / "camera" / scan.parent.name
    return folder / scan.name.replace("_lidar_", "_camera_").replace(".npz", ".png")


def write_a2d2(
    root: Path,
    scans: Sequence[int] = (8, 7),
    cameras: Sequence[str] = ("cam_front_center",),
) -> Path:
    """So many scans of each scene, with images, and the calibration in the root."""
    write(root / "cams_lidars.json", json.dumps(a2d2_calibration()))
    for scene, count in zip(SCENES, scans, strict=False):
        for number in range(count):
            for camera in cameras:
                path = scan_path(root, scene, 3 * number, camera)
                write(path, npz_bytes(a2d2_arrays(number)))
                write(photo_path(path), image_bytes(number, "PNG", VIEW_HEIGHT, VIEW_WIDTH))
    return root


# Every label id that the official files hold, in the columns of an image.
LABEL_IDS = np.arange(34, dtype=np.uint8)
PHOTO_HEIGHT, PHOTO_WIDTH = 12, 34


def label_bytes(row: np.ndarray, mode: str = "L", height: int = PHOTO_HEIGHT) -> bytes:
    """A label image of which every row is ``row``."""
    image = Image.fromarray(np.tile(row.astype(np.uint8), (height, 1)))
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (255 - index, 7, index)])
    stream = io.BytesIO()
    (image if mode in ("L", "P") else image.convert(mode)).save(stream, "PNG")
    return stream.getvalue()


def photo_bytes(seed: int) -> bytes:
    return image_bytes(seed, "PNG", PHOTO_HEIGHT, PHOTO_WIDTH)


CITIES = (("train", "aachen", 3), ("train", "ulm", 1), ("val", "lindau", 2), ("test", "bonn", 1))


def write_cityscapes(
    root: Path, cities: Sequence[tuple[str, str, int]] = CITIES, kind: str = "labelIds"
) -> Path:
    """Label ids for train and val; the camera files of all."""
    camera = {"extrinsic": {"baseline": 0.2}, "intrinsic": {"fx": 90, "fy": 91, "u0": 17, "v0": 6}}
    for split, city, count in cities:
        for number in range(count):
            stem = f"{city}_{number:06d}_000019"
            where = Path(split, city)
            write(root / "leftImg8bit" / where / f"{stem}_leftImg8bit.png", photo_bytes(number))
            write(root / "camera" / where / f"{stem}_camera.json", json.dumps(camera))
            if split != "test":
                label = root / "gtFine" / where / f"{stem}_gtFine_{kind}.png"
                write(label, label_bytes(LABEL_IDS))
    return root


ACDC_COUNTS = {
    "train": {"fog": 2, "night": 2, "rain": 1, "snow": 1},
    "val": {"snow": 2, "fog": 1, "night": 3},
    "test": {"rain": 1},
    "train_ref": {"fog": 2},
}
TRAIN_IDS = np.array([*range(19), *[255] * 15], np.uint8)


def write_acdc(root: Path, counts: Mapping[str, Mapping[str, int]] = ACDC_COUNTS) -> Path:
    """Images of one recording per condition, the same in all splits; train ids of train and val."""
    first = {split: 100 * index for index, split in enumerate(("train", "val", "test"))}
    for split, conditions in counts.items():
        for condition, count in conditions.items():
            recording = f"GOPR{4 + len(condition):04d}"
            where = Path(condition, split, recording)
            for number in range(count):
                start = first[split.removesuffix("_ref")]
                stem = f"{recording}_frame_{start + number:06d}"
                end = "rgb_ref_anon" if split.endswith("_ref") else "rgb_anon"
                write(root / "rgb_anon" / where / f"{stem}_{end}.png", photo_bytes(number))
                if split in ("train", "val"):
                    label = root / "gt" / where / f"{stem}_gt_labelTrainIds.png"
                    write(label, label_bytes(TRAIN_IDS))
    return root
