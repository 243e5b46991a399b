"""What the nuScenes tables say: key frames with their sensors, and boxes.

Only key frames of the wanted sensors are kept, so the full tables (millions of rows) fit in a
few hundred megabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.files import check_name
from lidarssl.datasets.nuscenes_tables import (
    CalibratedSensor,
    Category,
    EgoPose,
    Instance,
    LidarSeg,
    Panoptic,
    RawRow,
    Sample,
    SampleAnnotation,
    SampleData,
    Scene,
    Sensor,
    read_rows,
)
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Boxes
from lidarssl.geometry.poses import pose_from_rotation, rotation_from_quaternion


@dataclass(frozen=True, slots=True)
class Reading:
    """One sweep or image, with the pose and calibration of its own moment."""

    token: str
    filename: str
    ego: EgoPose
    calibrated: CalibratedSensor


def global_from_sensor(readings: Sequence[Reading]) -> Tensor:
    """Pose of the sensor of every reading, (R, 4, 4) float64.

    Raises:
        DataError: a quaternion has no direction.
    """
    poses = [pose for reading in readings for pose in (reading.ego, reading.calibrated)]
    quaternion = torch.tensor([pose.rotation for pose in poses], dtype=torch.float64)
    translation = torch.tensor([pose.translation for pose in poses], dtype=torch.float64)
    pose = pose_from_rotation(rotation_from_quaternion(quaternion), translation)
    return pose[0::2] @ pose[1::2]


@dataclass(frozen=True, slots=True)
class KeyFrame:
    """A sample: the scene it belongs to and its readings by channel."""

    scene: str
    sample: Sample
    readings: dict[str, Reading]


@dataclass(frozen=True)
class Index:
    """The tables of one version.

    Attributes:
        folder: where they are.
        scenes: names, in the order of scene.json.
        cameras: camera channels that were read.
        key_frames: by sample token, scene after scene, in order of time.
        lidarseg, panoptic: label file of a lidar reading's token.
    """

    folder: Path
    scenes: tuple[str, ...]
    cameras: tuple[str, ...]
    key_frames: dict[str, KeyFrame]
    lidarseg: dict[str, str]
    panoptic: dict[str, str]


def version_folder(root: Path, version: str) -> Path:
    """Folder of the tables, ``<root>/<version>``.

    Raises:
        DataError: there is none; says where the tables seem to be.
    """
    folder = root / version
    if (folder / "scene.json").is_file():
        return folder
    versions = sorted(path.parent.name for path in root.glob("*/scene.json"))
    if versions:
        raise DataError(
            f"there is no version '{version}' here",
            path=root,
            field="version",
            remedy=f"use version {' or '.join(versions)}",
        )
    candidates = [root.parent] if (root / "scene.json").is_file() else []
    candidates += sorted(path.parents[1] for path in root.glob("*/*/scene.json"))
    candidates += [parent for parent in root.parents[:2] if (parent / version).is_dir()]
    raise DataError(
        f"there is no '{version}/scene.json' below this folder",
        path=root,
        field="root",
        remedy=f"use root {candidates[0]}"
        if candidates
        else f"give the folder that holds samples/ and {version}/",
    )


def read_index(folder: Path, lidar: str, cameras: Sequence[str]) -> Index:
    """Read the tables of a version.

    Args:
        folder: e.g. ``<root>/v1.0-mini``.
        lidar: channel of the lidar.
        cameras: channels of cameras; empty = every camera of sensor.json.

    Raises:
        ConfigError: a channel is not in sensor.json.
        DataError: a table is missing, malformed, or refers to rows that do not exist.
    """
    sensors = list(read_rows(folder, Sensor))
    known = [sensor.channel for sensor in sensors]
    cameras = tuple(cameras) or tuple(s.channel for s in sensors if s.modality == "camera")
    for channel in (lidar, *cameras):
        if channel not in known:
            raise unknown_name("sensor", channel, known)
    readings = _read_readings(folder, sensors, {lidar, *cameras})
    scenes = list(read_rows(folder, Scene))
    samples = {sample.token: sample for sample in read_rows(folder, Sample)}
    path = folder / f"{Scene.table}.json"
    key_frames = {
        sample.token: KeyFrame(
            check_name(scene.name, path, "name"), sample, readings.get(sample.token, {})
        )
        for scene in scenes
        for sample in _samples_of_scene(scene, samples, path)
    }
    return Index(
        folder=folder,
        scenes=tuple(scene.name for scene in scenes),
        cameras=cameras,
        key_frames=key_frames,
        lidarseg=_label_files(folder, LidarSeg),
        panoptic=_label_files(folder, Panoptic),
    )


def _samples_of_scene(scene: Scene, samples: Mapping[str, Sample], path: Path) -> list[Sample]:
    found: list[Sample] = []
    token = scene.first_sample_token
    while token:
        sample = samples.get(token)
        if sample is None or sample.scene_token != scene.token or len(found) >= len(samples):
            raise DataError(
                f"{scene.name}: sample '{token[:40]}' does not exist, belongs to another scene, or "
                "closes a circle",
                path=path.with_name(f"{Sample.table}.json"),
                field="next",
                remedy="unpack the json tables of one version together",
            )
        check_name(token, path, "token")
        found.append(sample)
        token = sample.next
    return found


def _read_readings(
    folder: Path, sensors: Sequence[Sensor], wanted: set[str]
) -> dict[str, dict[str, Reading]]:
    """Readings of key frames, by sample token and channel."""
    channels = {sensor.token: sensor.channel for sensor in sensors if sensor.channel in wanted}
    calibrated = {
        row.token: row
        for row in read_rows(folder, CalibratedSensor)
        if row.sensor_token in channels
    }

    def is_wanted(row: RawRow) -> bool:
        return (
            row.get("is_key_frame") is True and _text(row, "calibrated_sensor_token") in calibrated
        )

    rows = list(read_rows(folder, SampleData, is_wanted))
    tokens = {row.ego_pose_token for row in rows}
    poses = {
        pose.token: pose
        for pose in read_rows(folder, EgoPose, lambda row: _text(row, "token") in tokens)
    }
    path = folder / f"{SampleData.table}.json"
    readings: dict[str, dict[str, Reading]] = {}
    for row in rows:
        if row.ego_pose_token not in poses:
            raise DataError(
                f"the ego pose '{row.ego_pose_token[:40]}' of a reading does not exist",
                path=folder / f"{EgoPose.table}.json",
                field="token",
                remedy="unpack the json tables of one version together",
            )
        sensor = calibrated[row.calibrated_sensor_token]
        readings.setdefault(row.sample_token, {})[channels[sensor.sensor_token]] = Reading(
            check_name(row.token, path, "token"), row.filename, poses[row.ego_pose_token], sensor
        )
    return readings


def _text(row: RawRow, name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""


def _label_files(folder: Path, kind: type[LidarSeg] | type[Panoptic]) -> dict[str, str]:
    if not (folder / f"{kind.table}.json").is_file():
        return {}
    return {row.sample_data_token: row.filename for row in read_rows(folder, kind)}


def raw_label_lookup(
    folder: Path, class_of_category: Mapping[str, str], classes: Sequence[str]
) -> np.ndarray:
    """Train id of each raw label, by the ``index`` of category.json.

    Returns:
        (L,) int64, -1 where no category has that index.

    Raises:
        DataError: a category has no index, one out of range, or a name without a class.
    """
    path = folder / f"{Category.table}.json"
    lookup = np.full(256, -1, np.int64)
    for category in read_rows(folder, Category):
        if category.index is None or not 0 <= category.index < len(lookup):
            raise DataError(
                f"category '{category.name[:80]}' has no index in 0..255",
                path=path,
                field="index",
                remedy="replace category.json by the one that comes with the lidarseg download",
            )
        if category.name not in class_of_category:
            raise DataError(
                f"category '{category.name[:80]}' has no train class", path=path, field="name"
            )
        lookup[category.index] = classes.index(class_of_category[category.name])
    return lookup


@dataclass(frozen=True)
class Annotations:
    """Boxes of all key frames in the global frame.

    Attributes:
        rows: first and last + 1 row of each sample that has boxes.
        values: (A, 10) float64: centre m, size (width, length, height) m, quaternion (w, x, y, z).
        label: (A,) int64.
        lidar_points: (A,) int64 number of lidar points inside, as the table says.
    """

    rows: dict[str, tuple[int, int]]
    values: np.ndarray
    label: np.ndarray
    lidar_points: np.ndarray

    def boxes(self, sample: str, lidar_from_global: Tensor) -> Boxes:
        """Boxes of a sample in its lidar frame.

        Args:
            sample: token.
            lidar_from_global: (4, 4) float64.
        """
        first, last = self.rows.get(sample, (0, 0))
        values = torch.from_numpy(self.values[first:last])
        rotation, translation = lidar_from_global[:3, :3], lidar_from_global[:3, 3]
        heading = _heading(values[:, 6:]) @ rotation.T
        return Boxes(
            center=(values[:, :3] @ rotation.T + translation).float(),
            size=values[:, [4, 3, 5]].float(),
            yaw=torch.atan2(heading[:, 1], heading[:, 0]).float(),
            label=torch.from_numpy(self.label[first:last].copy()),
        )


def _heading(quaternion: Tensor) -> Tensor:
    """x axis of each rotation, (A, 3), from (A, 4) quaternions (w, x, y, z)."""
    w, x, y, z = quaternion.unbind(1)
    return torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], dim=1)


def read_annotations(
    folder: Path, samples: Sequence[str], label_of_category: Mapping[str, int]
) -> Annotations:
    """Boxes of the categories in ``label_of_category``, sample after sample.

    Args:
        folder: of the version.
        samples: tokens of key frames.
        label_of_category: label of each wanted category name.

    Raises:
        DataError: a table is missing or malformed.
    """
    names = {row.token: row.name for row in read_rows(folder, Category)}
    labels = {
        row.token: label_of_category[names[row.category_token]]
        for row in read_rows(folder, Instance)
        if names.get(row.category_token) in label_of_category
    }
    number = {token: index for index, token in enumerate(samples)}
    values, columns = array("d"), array("q")

    def is_wanted(row: RawRow) -> bool:
        return _text(row, "instance_token") in labels and _text(row, "sample_token") in number

    for row in read_rows(folder, SampleAnnotation, is_wanted):
        values.extend((*row.translation, *row.size, *row.rotation))
        columns.extend((number[row.sample_token], labels[row.instance_token], row.num_lidar_pts))
    table = np.array(values, np.float64).reshape(-1, 10)
    owner, label, lidar_points = np.array(columns, np.int64).reshape(-1, 3).T
    order = np.argsort(owner, kind="stable")
    found, first, count = np.unique(owner[order], return_index=True, return_counts=True)
    rows = {
        samples[index]: (int(start), int(start + size))
        for index, start, size in zip(found, first, count, strict=True)
    }
    return Annotations(rows, table[order], label[order], lidar_points[order])
