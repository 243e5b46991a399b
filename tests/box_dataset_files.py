"""Tiny datasets whose labels are boxes, in their official layouts, written from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dataset_files import image_bytes, scene_points, write

OBJECT_CALIB = (
    "P0: 40 0 24 0 0 40 18 0 0 0 1 0\n"
    "P1: 40 0 24 -20 0 40 18 0 0 0 1 0\n"
    "P2: 40 0 24 4 0 40 18 0 0 0 1 0.5\n"
    "P3: 40 0 24 -16 0 40 18 0 0 0 1 0\n"
    "R0_rect: 1 0 0 0 1 0 0 0 1\n"
    "Tr_velo_to_cam: 0 -1 0 0.1 0 0 -1 0.2 1 0 0 0.3\n"
    "Tr_imu_to_velo: 1 0 0 -0.8 0 1 0 0.3 0 0 1 -0.8\n\n"
)
# A car around the point straight ahead of every scene, a pedestrian, and what nobody looked at.
OBJECT_LABELS = (
    "Car 0.00 0 -1.57 10.00 9.00 30.00 25.00 1.50 2.00 4.00 0.10 0.95 9.30 -1.5707963\n"
    "Pedestrian 0.00 1 0.20 1.00 2.00 3.00 4.00 1.80 0.50 0.80 -3.00 1.70 15.00 0.00\n"
    "DontCare -1 -1 -10 8.00 1.00 9.00 4.00 -1 -1 -1 -1000 -1000 -1000 -10\n"
)


def write_kitti_object(root: Path) -> Path:
    """Three scans of train (0, 3, 7), two of val (1, 2), one of test."""
    for folder, names in (("training", (0, 1, 2, 3, 7)), ("testing", (0,))):
        for number in names:
            name = f"{number:06d}"
            write(root / folder / "velodyne" / f"{name}.bin", scene_points(number, 4).tobytes())
            write(root / folder / "calib" / f"{name}.txt", OBJECT_CALIB)
            for camera in ("image_2", "image_3"):
                write(root / folder / camera / f"{name}.png", image_bytes(number))
            if folder == "training":
                write(root / folder / "label_2" / f"{name}.txt", OBJECT_LABELS)
    return root


ONCE_CAMERAS = ("cam01", "cam03", "cam05", "cam06", "cam07", "cam08", "cam09")
_FORWARD = [[0, 0, 1, 0.3], [-1, 0, 0, 0.1], [0, -1, 0, -0.2], [0, 0, 0, 1]]
_BACKWARD = [[0, 0, -1, 0.3], [1, 0, 0, 0.1], [0, -1, 0, -0.2], [0, 0, 0, 1]]


def once_content(frames: list[str], annotated: list[str]) -> dict[str, Any]:
    """A json file: every camera looks forward but cam09; a car straight ahead where annotated."""
    camera = {
        "cam_intrinsic": [[40, 0, 24], [0, 40, 18], [0, 0, 1]],
        "distortion": [-0.1, 0.01, 0.001, -0.001, 0.0],
    }
    annos = {"names": ["Car"], "boxes_3d": [[9, 0, 0, 4.0, 2.0, 1.5, 0.1]], "boxes_2d": {}}
    return {
        "meta_info": {"weather": "sunny", "period": "morning"},
        "calib": {
            name: {**camera, "cam_to_velo": _BACKWARD if name == "cam09" else _FORWARD}
            for name in ONCE_CAMERAS
        },
        "frames": [
            {"frame_id": frame, "pose": [0, 0, 0.6, 0.8, float(index), 2, 0.5]}
            | ({"annos": annos} if frame in annotated else {})
            for index, frame in enumerate(frames)
        ],
    }


def write_once(root: Path, scans: int = 4) -> Path:
    """Four scans of one sequence of train, val and raw_small; the first three are annotated."""
    for split, sequence in (("train", "000076"), ("val", "000027"), ("raw_small", "000000")):
        write(root / "ImageSets" / f"{split}.txt", f"{sequence}\n")
        folder = root / "data" / sequence
        frames = [str(1616343527200 + 500 * scan) for scan in range(scans)]
        annotated = frames[:3] if split in ("train", "val") else []
        write(folder / f"{sequence}.json", json.dumps(once_content(frames, annotated)))
        for seed, frame in enumerate(frames):
            points = scene_points(seed, 4) * np.array([1, 1, 1, 255], np.float32)
            write(folder / "lidar_roof" / f"{frame}.bin", points.tobytes())
            for camera in ONCE_CAMERAS:
                write(folder / camera / f"{frame}.jpg", image_bytes(seed, "JPEG"))
    return root
