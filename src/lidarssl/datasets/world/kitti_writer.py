"""Writes a synthetic world in the layout of SemanticKITTI: one scene, one sequence.

The first camera of the configuration becomes ``image_2``, exposed together with the lidar, as in
KITTI. Its frame lies 6 cm to the left of camera 0, so ``P2`` has a fourth column as real ones do.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from lidarssl.datasets.world.camera import ego_from_camera, intrinsics
from lidarssl.datasets.world.classes import Semantic
from lidarssl.datasets.world.config import SceneId, WorldConfig, scene_ids
from lidarssl.datasets.world.drive import WorldFrame, record
from lidarssl.datasets.world.writing import Rows, write_file, write_scenes
from lidarssl.errors import ConfigError
from lidarssl.wording import counted

SEQUENCES = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
}
"""The official sequences of each split."""

RAW_LABELS = {
    Semantic.IGNORED: 0,
    Semantic.CAR: 10,
    Semantic.TRUCK: 18,
    Semantic.CYCLIST: 31,
    Semantic.PEDESTRIAN: 30,
    Semantic.ROAD: 40,
    Semantic.SIDEWALK: 48,
    Semantic.TERRAIN: 72,
    Semantic.BUILDING: 50,
    Semantic.FENCE: 51,
    Semantic.VEGETATION: 70,
    Semantic.TRUNK: 71,
    Semantic.POLE: 80,
    Semantic.SIGN: 81,
}
BASELINE = 0.06
RECORDS = ".scenes"


def write_semantic_kitti(
    config: WorldConfig, root: str | Path, workers: int = 0, progress: bool = True
) -> Path:
    """Write the scenes of ``train`` and ``val`` as SemanticKITTI sequences.

    Args:
        config: at most 10 scenes of train and 1 of val, as the official split has sequences;
            ``WorldConfig.kitti`` makes one. Other splits are left out.
        root: folder that will hold ``dataset/sequences``.
        workers: processes; 0 = one per core.
        progress: show a bar with the time left.

    Returns:
        ``root``.

    Raises:
        ConfigError: too many scenes, no camera, the folder holds another world, or an optional
            package is missing.
    """
    root = Path(root)
    scenes = [scene for scene in scene_ids(config) if scene.split in SEQUENCES]
    for split, names in SEQUENCES.items():
        wanted = sum(scene.split == split for scene in scenes)
        if wanted > len(names):
            raise ConfigError(
                f"SemanticKITTI has {counted(len(names), 'sequence')} in '{split}', not {wanted}",
                field="splits",
                remedy="use WorldConfig.kitti(), or fewer scenes of more frames",
            )
    if not config.cameras:
        raise ConfigError("no camera for image_2", field="cameras", remedy="give at least one")
    config = replace(config, cameras=config.cameras[:1])
    write_scenes(config, scenes, root, root / RECORDS, _write_sequence, workers, progress)
    return root


def sequence_name(scene: SceneId) -> str:
    """Sequence, such as ``08``, that a scene becomes."""
    return SEQUENCES[scene.split][scene.number]


def _write_sequence(config: WorldConfig, scene: SceneId, root: Path) -> Rows:
    folder = root / "dataset" / "sequences" / sequence_name(scene)
    camera = config.cameras[0]
    lidar_position = np.array([0, 0, config.lidar.height])
    ego_from_camera_0 = ego_from_camera(camera, lidar_position)
    ego_from_camera_0[:3, 3] += BASELINE * ego_from_camera_0[:3, 0]
    world_from_camera: list[np.ndarray] = []
    times: list[str] = []
    for frame in record(config, scene, synchronous=True):
        _write_frame(frame, folder)
        world_from_camera.append(frame.world_from_ego @ ego_from_camera_0)
        times.append(f"{frame.time:e}\n")
    ego_from_lidar = np.eye(4)
    ego_from_lidar[:3, 3] = lidar_position
    camera_0_from_lidar = np.linalg.inv(ego_from_camera_0) @ ego_from_lidar
    write_file(folder / "calib.txt", _calibration(intrinsics(camera), camera_0_from_lidar))
    first_from_world = np.linalg.inv(world_from_camera[0])
    poses = "".join(_line(first_from_world @ pose) + "\n" for pose in world_from_camera)
    write_file(folder / "poses.txt", poses.encode())
    write_file(folder / "times.txt", "".join(times).encode())
    return {}


def _write_frame(frame: WorldFrame, folder: Path) -> None:
    stem = f"{frame.index:06d}"
    sweep = frame.sweep
    remission = np.minimum(np.rint(sweep.intensity * 100) / 100, 0.99)
    scan = np.c_[sweep.points, remission].astype("<f4")
    write_file(folder / "velodyne" / f"{stem}.bin", scan.tobytes())
    raw = np.array([RAW_LABELS[semantic] for semantic in Semantic])[sweep.semantic]
    labels = (raw | sweep.instance << 16).astype("<u4")
    write_file(folder / "labels" / f"{stem}.label", labels.tobytes())
    buffer = io.BytesIO()
    PillowImage.fromarray(frame.exposures[0].image.rgb).save(buffer, "PNG", compress_level=1)
    write_file(folder / "image_2" / f"{stem}.png", buffer.getvalue())


def _calibration(matrix: np.ndarray, camera_0_from_lidar: np.ndarray) -> bytes:
    """calib.txt; cameras 0, 1 and 3 are nominal, only camera 2 has images."""
    lines = []
    for number, offset in enumerate((0.0, -0.54, BASELINE, -0.48)):
        projection = np.c_[matrix, matrix @ (offset, 0, 0)]
        lines.append(f"P{number}: {_line(projection)}")
    lines.append(f"Tr: {_line(camera_0_from_lidar)}")
    return ("\n".join(lines) + "\n").encode()


def _line(matrix: np.ndarray) -> str:
    numbers: Sequence[float] = matrix[:3].ravel().tolist()
    return " ".join(f"{number:.12e}" for number in numbers)
