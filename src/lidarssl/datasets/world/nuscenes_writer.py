"""Writes a synthetic world in the layout of nuScenes.

Beside the official folders (``samples/``, ``lidarseg/``, ``panoptic/``, the tables) there are
``<version>/splits.json``, ``{"split": ["scene", ...]}``, and ``camseg/<CAMERA>/<token>.png``: an
8-bit image of class ids (0 = sky) for the image whose sample_data token is ``<token>``. Where some
weather is not clear, ``<version>/weather.json`` says of each split that repeats another or has
weather of its own ``{"split": {"like": "other split", "weather": "fog"}}``.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from scipy.spatial.transform import Rotation

from lidarssl.datasets.nuscenes_tables import (
    CalibratedSensor,
    Category,
    EgoPose,
    Instance,
    LidarSeg,
    Log,
    Map,
    Matrix,
    Panoptic,
    Quaternion,
    Sample,
    SampleAnnotation,
    SampleData,
    Scene,
    Sensor,
    Vector,
)
from lidarssl.datasets.world.camera import ego_from_camera, intrinsics
from lidarssl.datasets.world.classes import Semantic
from lidarssl.datasets.world.config import (
    VERSION,
    WEATHER_FILE,
    SceneId,
    WorldConfig,
    scene_ids,
)
from lidarssl.datasets.world.drive import Exposure, WorldFrame, record
from lidarssl.datasets.world.lidar import Sweep
from lidarssl.datasets.world.scene import Box3D, rotation
from lidarssl.datasets.world.writing import Rows, write_file, write_json, write_scenes

LIDAR = "LIDAR_TOP"
RECORDS = ".scenes"
JPEG_QUALITY = 95
START = 1_600_000_000_000_000
"""Timestamp of the first scene of every split, microseconds; scenes are 1000 s apart."""

FORWARD_FROM_NUSCENES = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
"""From nuScenes' lidar axes (x right, y ahead, z up) to x ahead, y left, z up."""

TABLES = (
    Scene,
    Sample,
    SampleData,
    EgoPose,
    Instance,
    SampleAnnotation,
    LidarSeg,
    Panoptic,
)


def write_nuscenes(
    config: WorldConfig,
    root: str | Path,
    version: str = VERSION,
    workers: int = 0,
    progress: bool = True,
) -> Path:
    """Write a world in the layout of nuScenes; calling it again completes or extends it.

    Args:
        root: folder of the dataset, created if absent.
        version: name of the folder of tables.
        workers: processes; 0 = one per core.
        progress: show a bar with the time left.

    Returns:
        ``root``.

    Raises:
        ConfigError: the folder holds another world, or an optional package is missing.
    """
    root = Path(root)
    scenes = scene_ids(config)
    folder = root / version
    found = write_scenes(
        config, scenes, root, folder / RECORDS, _SceneWriter(version), workers, progress
    )
    for table in TABLES:
        write_json(
            folder / f"{table.table}.json", [row for rows in found for row in rows[table.table]]
        )
    _write_shared_tables(config, folder)
    blank = PillowImage.new("L", (16, 16))
    write_file(root / "maps" / "blank.png", _encode(blank, "PNG"))
    splits = {
        split.name: [scene.name for scene in scenes if scene.split == split.name]
        for split in config.splits
    }
    write_json(folder / "splits.json", splits)
    _write_weather(config, folder / WEATHER_FILE)
    return root


def _write_weather(config: WorldConfig, path: Path) -> None:
    weather = {
        split.name: {"like": split.like, "weather": split.weather}
        for split in config.splits
        if split.like or split.weather != "clear"
    }
    if weather:
        write_json(path, weather)
    else:
        path.unlink(missing_ok=True)


class _SceneWriter:
    """Callable that carries the version to the worker processes."""

    def __init__(self, version: str) -> None:
        self.version = version

    def __call__(self, config: WorldConfig, scene: SceneId, root: Path) -> Rows:
        rows = _TableRows()
        samples = [_token(scene.name, "sample", index) for index in range(scene.frames)]
        for frame in record(config, scene):
            _write_frame(frame, scene, samples, root, self.version, rows)
        rows.add(
            Scene(
                token=_token(scene.name),
                log_token=_token("log"),
                nbr_samples=scene.frames,
                first_sample_token=samples[0],
                last_sample_token=samples[-1],
                name=scene.name,
                description=f"synthetic, seed {config.seed}",
            )
        )
        _link_annotations(rows)
        return rows.plain()


class _TableRows:
    """Rows of the tables that grow with the scenes."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = {table.table: [] for table in TABLES}
        self.class_of_instance: dict[str, Semantic] = {}

    def add(self, row: Any) -> None:
        self.rows[row.table].append(row)

    def plain(self) -> Rows:
        return {name: [asdict(row) for row in rows] for name, rows in self.rows.items()}


def _token(*names: str | int) -> str:
    """32 hex digits that are the same for the same names."""
    text = "/".join(str(name) for name in names)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _timestamp(scene: SceneId, seconds: float) -> int:
    return START + scene.number * 1_000_000_000 + round(seconds * 1e6)


def _write_frame(
    frame: WorldFrame,
    scene: SceneId,
    samples: list[str],
    root: Path,
    version: str,
    rows: _TableRows,
) -> None:
    index = frame.index
    rows.add(
        Sample(
            token=samples[index],
            timestamp=_timestamp(scene, frame.time),
            prev=samples[index - 1] if index else "",
            next=samples[index + 1] if index + 1 < len(samples) else "",
            scene_token=_token(scene.name),
        )
    )
    _write_sweep(frame, scene, samples[index], root, version, rows)
    for exposure in frame.exposures:
        _write_image(exposure, frame.index, scene, samples[index], root, rows)
    # What clear air would show is annotated in any weather, as a recording by hand would have it.
    for box, count, met in zip(frame.boxes, frame.box_points, frame.box_met, strict=True):
        if met:
            _add_annotation(box, count, index, scene, samples[index], rows)


def _add_annotation(
    box: Box3D, count: int, index: int, scene: SceneId, sample: str, rows: _TableRows
) -> None:
    instance = _token(scene.name, "instance", box.instance)
    length, width, height = box.size.tolist()
    rows.class_of_instance[instance] = box.semantic
    rows.add(
        SampleAnnotation(
            token=_token(scene.name, "annotation", index, box.instance),
            sample_token=sample,
            instance_token=instance,
            visibility_token="4",
            attribute_tokens=(),
            translation=_vector(box.center),
            size=(width, length, height),
            rotation=_quaternion(rotation(box.yaw)),
            num_lidar_pts=count,
        )
    )


def _write_sweep(
    frame: WorldFrame, scene: SceneId, sample: str, root: Path, version: str, rows: _TableRows
) -> None:
    sweep = frame.sweep
    timestamp = _timestamp(scene, frame.time)
    filename = f"samples/{LIDAR}/{scene.name}__{LIDAR}__{timestamp}.pcd.bin"
    token = _add_reading(rows, scene, frame.index, sample, LIDAR, timestamp, filename, (0, 0))
    _add_ego_pose(rows, token, timestamp, frame.world_from_ego)
    write_file(root / filename, _nuscenes_points(sweep).tobytes())
    lidarseg = f"lidarseg/{version}/{token}_lidarseg.bin"
    write_file(root / lidarseg, sweep.semantic.astype(np.uint8).tobytes())
    rows.add(LidarSeg(token, token, lidarseg))
    panoptic = f"panoptic/{version}/{token}_panoptic.npz"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, data=(sweep.semantic * 1000 + sweep.instance).astype(np.uint16))
    write_file(root / panoptic, buffer.getvalue())
    rows.add(Panoptic(token, token, panoptic))


def _nuscenes_points(sweep: Sweep) -> np.ndarray:
    """(N, 5) float32: x right, y ahead, z up, intensity 0..255 in whole steps, ring."""
    points = sweep.points @ FORWARD_FROM_NUSCENES
    return np.c_[points, np.rint(sweep.intensity * 255), sweep.ring].astype("<f4")


def _write_image(
    exposure: Exposure, index: int, scene: SceneId, sample: str, root: Path, rows: _TableRows
) -> None:
    name = exposure.name
    timestamp = _timestamp(scene, exposure.time)
    filename = f"samples/{name}/{scene.name}__{name}__{timestamp}.jpg"
    size = exposure.image.semantic.shape
    token = _add_reading(rows, scene, index, sample, name, timestamp, filename, (size[0], size[1]))
    _add_ego_pose(rows, token, timestamp, exposure.world_from_ego)
    picture = PillowImage.fromarray(exposure.image.rgb)
    write_file(root / filename, _encode(picture, "JPEG", quality=JPEG_QUALITY))
    labels = PillowImage.fromarray(exposure.image.semantic)
    write_file(root / "camseg" / name / f"{token}.png", _encode(labels, "PNG"))


def _encode(image: PillowImage.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _add_reading(
    rows: _TableRows,
    scene: SceneId,
    index: int,
    sample: str,
    channel: str,
    timestamp: int,
    filename: str,
    size: tuple[int, int],
) -> str:
    """Add a sample_data row; returns its token."""

    def token_of(number: int) -> str:
        inside = 0 <= number < scene.frames
        return _token(scene.name, "data", channel, number) if inside else ""

    token = token_of(index)
    rows.add(
        SampleData(
            token=token,
            sample_token=sample,
            ego_pose_token=token,
            calibrated_sensor_token=_token("calibrated", channel),
            timestamp=timestamp,
            fileformat="pcd" if channel == LIDAR else "jpg",
            is_key_frame=True,
            height=size[0],
            width=size[1],
            filename=filename,
            prev=token_of(index - 1),
            next=token_of(index + 1),
        )
    )
    return token


def _add_ego_pose(rows: _TableRows, token: str, timestamp: int, pose: np.ndarray) -> None:
    rows.add(EgoPose(token, timestamp, _quaternion(pose[:3, :3]), _vector(pose[:3, 3])))


def _link_annotations(rows: _TableRows) -> None:
    """Chain the boxes of each object and add its row to the instance table."""
    annotations: list[SampleAnnotation] = rows.rows[SampleAnnotation.table]
    chains: dict[str, list[int]] = {}
    for row, annotation in enumerate(annotations):
        chains.setdefault(annotation.instance_token, []).append(row)
    for token, chain in chains.items():
        tokens = ["", *(annotations[row].token for row in chain), ""]
        for place, row in enumerate(chain):
            annotations[row] = replace(annotations[row], prev=tokens[place], next=tokens[place + 2])
        category = _token("category", rows.class_of_instance[token].name)
        rows.add(Instance(token, category, len(chain), tokens[1], tokens[-2]))


def _quaternion(matrix: np.ndarray) -> Quaternion:
    """(w, x, y, z) of a rotation, w >= 0."""
    x, y, z, w = Rotation.from_matrix(matrix).as_quat(canonical=True).tolist()
    return w, x, y, z


def _vector(values: np.ndarray) -> Vector:
    x, y, z = np.asarray(values, float).tolist()
    return x, y, z


def _write_shared_tables(config: WorldConfig, folder: Path) -> None:
    """Tables that are the same for every scene."""
    lidar_pose = np.eye(4)
    lidar_pose[:3, :3] = FORWARD_FROM_NUSCENES
    lidar_pose[2, 3] = config.lidar.height
    mounts: dict[str, tuple[np.ndarray, Matrix]] = {LIDAR: (lidar_pose, ())}
    for camera in config.cameras:
        matrix = tuple(_vector(row) for row in intrinsics(camera))
        mounts[camera.name] = (ego_from_camera(camera, lidar_pose[:3, 3]), matrix)
    calibrated = [
        CalibratedSensor(
            token=_token("calibrated", channel),
            sensor_token=_token("sensor", channel),
            translation=_vector(pose[:3, 3]),
            rotation=_quaternion(pose[:3, :3]),
            camera_intrinsic=matrix,
        )
        for channel, (pose, matrix) in mounts.items()
    ]
    sensors = [
        Sensor(_token("sensor", name), name, "lidar" if name == LIDAR else "camera")
        for name in mounts
    ]
    categories = [
        Category(_token("category", semantic.name), category_name(semantic), "", int(semantic))
        for semantic in Semantic
    ]
    log = Log(_token("log"), "synthetic", "synthetic", "2020-09-13", "synthetic")
    land = Map(_token("map"), (log.token,), "semantic_prior", "maps/blank.png")
    shared: Iterable[list[Any]] = (calibrated, sensors, categories, [log], [land])
    for rows in shared:
        write_json(folder / f"{rows[0].table}.json", [asdict(row) for row in rows])
    levels = ("v0-40", "v40-60", "v60-80", "v80-100")
    visibility = [
        {"token": str(number), "level": level, "description": ""}
        for number, level in enumerate(levels, start=1)
    ]
    write_json(folder / "visibility.json", visibility)
    write_json(folder / "attribute.json", [])


def category_name(semantic: Semantic) -> str:
    """Name of a class in category.json."""
    return semantic.name.lower()
