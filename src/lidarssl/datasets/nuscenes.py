"""nuScenes key frames: one lidar sweep, six cameras, lidarseg or panoptic labels, boxes.

The tables are read directly, so that no devkit is needed. Lidar frame: x right, y forward, z up;
intensity 0..255. Data: https://www.nuscenes.org (Caesar et al., CVPR 2020; Fong et al., RA-L 2022).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.datasets.files import (
    POINT_FILE_LIMIT,
    read_bytes,
    read_json,
    resolve_inside,
)
from lidarssl.datasets.folder_files import parse_splits
from lidarssl.datasets.image_files import check_scale, open_image, with_image
from lidarssl.datasets.nuscenes_fractions import Fractions, NuScenesFractions
from lidarssl.datasets.nuscenes_index import (
    Annotations,
    Index,
    KeyFrame,
    Reading,
    global_from_sensor,
    raw_label_lookup,
    read_annotations,
    read_index,
    version_folder,
)
from lidarssl.datasets.point_files import (
    NUSCENES_COLUMNS,
    make_cloud,
    map_labels,
    parse_array,
    parse_bin,
    parse_labels,
)
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.geometry.poses import invert_pose

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_FRONT_LEFT",
)
INSTANCES_PER_CATEGORY = 1000

_CLASSES = (
    ("noise", (0, 0, 0)),
    ("barrier", (112, 128, 144)),
    ("bicycle", (220, 20, 60)),
    ("bus", (255, 127, 80)),
    ("car", (255, 158, 0)),
    ("construction_vehicle", (233, 150, 70)),
    ("motorcycle", (255, 61, 99)),
    ("pedestrian", (0, 0, 230)),
    ("traffic_cone", (47, 79, 79)),
    ("trailer", (255, 140, 0)),
    ("truck", (255, 99, 71)),
    ("driveable_surface", (0, 207, 191)),
    ("other_flat", (175, 0, 75)),
    ("sidewalk", (75, 0, 75)),
    ("terrain", (112, 180, 60)),
    ("manmade", (222, 184, 135)),
    ("vegetation", (0, 175, 0)),
)
_CATEGORIES = {
    "noise": "noise animal human.pedestrian.personal_mobility human.pedestrian.stroller "
    "human.pedestrian.wheelchair movable_object.debris movable_object.pushable_pullable "
    "static_object.bicycle_rack vehicle.emergency.ambulance vehicle.emergency.police "
    "static.other vehicle.ego",
    "barrier": "movable_object.barrier",
    "bicycle": "vehicle.bicycle",
    "bus": "vehicle.bus.bendy vehicle.bus.rigid",
    "car": "vehicle.car",
    "construction_vehicle": "vehicle.construction",
    "motorcycle": "vehicle.motorcycle",
    "pedestrian": "human.pedestrian.adult human.pedestrian.child "
    "human.pedestrian.construction_worker human.pedestrian.police_officer",
    "traffic_cone": "movable_object.trafficcone",
    "trailer": "vehicle.trailer",
    "truck": "vehicle.truck",
    "driveable_surface": "flat.driveable_surface",
    "other_flat": "flat.other",
    "sidewalk": "flat.sidewalk",
    "terrain": "flat.terrain",
    "manmade": "static.manmade",
    "vegetation": "static.vegetation",
}


class NuScenes(Dataset):
    """nuScenes, any version; also whatever is written in its layout (override the attributes).

    Splits: the official train, val, test, mini_train and mini_val, and SLidR's verifying (100
    scenes of train) and parametrizing (the other 600). Of each, the scenes that the version has.
    ``<root>/<version>/splits.json``, ``{"split": ["scene", ...]}``, replaces them where it exists.

    Args:
        root: folder that holds ``samples/`` and the folder of the version.
        version: ``v1.0-trainval``, ``v1.0-test``, ``v1.0-mini``, ...
        cameras: channels to read, in this order; default: ``default_cameras``.
        image_scale: factor on the size of images, in (0, 1].
        fractions: whose shares of the labels: ``slidr`` = every n-th scene; ``also`` = the same,
            and for 1/1000 scene-0392 alone; ``scalr`` = the lists of ``fraction_lists``, and
            without them as ``slidr``.
        fraction_offset: moves the choice by so many scenes, for other draws of a share.
        fraction_lists: folder with ScaLR's ``nuscenes-ratio_10-v_0.npy`` and
            ``nuscenes-ratio_100-v_0.npy``.

    Attributes:
        class_of_category: train class of each category of category.json.
        box_classes: train classes whose boxes are read.
        default_cameras: empty = every camera of sensor.json, in its order.
        lidar: channel of the lidar.

    Raises:
        ConfigError: unknown camera, image scale or fractions.
        DataError: the root is wrong, or a table is missing or malformed.
    """

    name = "nuscenes"
    intensity_statistics = (18.742355, 22.04632)
    forward = (0.0, 1.0)
    classes = ClassTable(tuple(name for name, _ in _CLASSES), tuple(color for _, color in _CLASSES))
    box_classes: tuple[str, ...] = classes.names[1:11]
    class_of_category: dict[str, str] = {  # noqa: RUF012
        category: name
        for name, categories in _CATEGORIES.items()
        for category in categories.split()
    }
    default_cameras: tuple[str, ...] = CAMERAS
    lidar_channel = "LIDAR_TOP"

    def __init__(
        self,
        root: str | Path,
        version: str = "v1.0-mini",
        cameras: Sequence[str] | None = None,
        image_scale: float = 1.0,
        fractions: Fractions = "slidr",
        fraction_offset: int = 0,
        fraction_lists: str | Path | None = None,
    ) -> None:
        self.root = Path(root)
        self.version = version
        self.fractions = NuScenesFractions(fractions, fraction_offset, fraction_lists)
        self.image_scale = check_scale(image_scale)
        folder = version_folder(self.root, version)
        chosen = self.default_cameras if cameras is None else tuple(cameras)
        if cameras is not None and not chosen:
            raise ConfigError("no camera is named", field="cameras", remedy="omit the argument")
        self.index: Index = read_index(folder, self.lidar_channel, chosen)
        self.scene_names: dict[str, list[str]] = _split_scenes(folder)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Channels that are read, in order."""
        return self.index.cameras

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.scene_names)

    def scenes(self, split: str) -> list[str]:
        """Scenes of a split that the version has, in the order of scene.json."""
        if split not in self.scene_names:
            raise unknown_name("split", split, self.splits)
        wanted = set(self.scene_names[split])
        found = [scene for scene in self.index.scenes if scene in wanted]
        if not found:
            raise DataError(
                f"none of the {len(wanted)} scenes of split '{split}' is in this version",
                path=self.index.folder,
                field="split",
                remedy=f"choose another version or one of: {', '.join(self._filled_splits())}",
            )
        return found

    def _filled_splits(self) -> list[str]:
        present = set(self.index.scenes)
        return [split for split, names in self.scene_names.items() if present & set(names)]

    def frames(self, split: str) -> list[FrameId]:
        return self._frames_of(self.scenes(split))

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        """All key frames of every skip-th scene, or those of a list: see ``NuScenesFractions``."""
        scenes, listed = self.scenes(split), self.fractions.listed(skip)
        if listed is None:
            return self._frames_of(self.fractions.scenes(scenes, split, skip))
        frames = self._frames_of(scenes)
        return [
            frame
            for frame in frames
            if self._reading(self._key_frame(frame), self.lidar_channel).token in listed
        ]

    def fraction_size(self, split: str, skip: int) -> int | None:
        listed = self.fractions.listed(skip)
        return None if listed is None else len(listed)

    def fraction_note(self, split: str, skip: int) -> str:
        return self.fractions.note(skip)

    def _frames_of(self, scenes: Sequence[str]) -> list[FrameId]:
        wanted = set(scenes)
        return [
            FrameId(self.name, frame.scene, token)
            for token, frame in self.index.key_frames.items()
            if frame.scene in wanted
        ]

    def provides(self, split: str) -> Field:
        first = self._key_frame(self.frames(split)[0])
        lidar = self._reading(first, self.lidar_channel)
        camera = first.readings.get(self.cameras[0]) if self.cameras else None
        provided = Field.POSE
        if camera is not None and self._file(camera.filename, "sample_data").is_file():
            provided |= Field.IMAGES
        if lidar.token in self.index.lidarseg:
            provided |= Field.SEMANTIC
        if lidar.token in self.index.panoptic:
            provided |= Field.SEMANTIC | Field.INSTANCE
        if self._annotated():
            provided |= Field.BOXES
        return provided

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        key_frame = self._key_frame(frame)
        lidar = self._reading(key_frame, self.lidar_channel)
        path = self._file(lidar.filename, "sample_data")
        data = read_bytes(path, POINT_FILE_LIMIT)
        cloud = make_cloud(parse_bin(data, path, NUSCENES_COLUMNS), path)
        channels = self.cameras if Field.IMAGES in fields else ()
        readings = [self._reading(key_frame, channel) for channel in channels]
        world_from_sensor = global_from_sensor([lidar, *readings])
        world_from_lidar = world_from_sensor[0]
        camera_from_lidar = invert_pose(world_from_sensor[1:]) @ world_from_lidar
        count = len(cloud.intensity)
        semantic, instance = self._labels(lidar.token, count, fields)
        boxes = None
        if Field.BOXES in fields and self._annotated():
            boxes = self._annotations.boxes(frame.token, invert_pose(world_from_lidar))
        return Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            ring=cloud.ring,
            cameras=tuple(
                self._camera(channel, reading, pose, fields)
                for channel, reading, pose in zip(
                    channels, readings, camera_from_lidar, strict=True
                )
            ),
            pose=world_from_lidar if Field.POSE in fields else None,
            semantic=semantic,
            instance=instance,
            boxes=boxes,
        )

    def _key_frame(self, frame: FrameId) -> KeyFrame:
        found = self.index.key_frames.get(frame.token)
        if found is None or found.scene != frame.sequence or frame.dataset != self.name:
            raise DataError(
                f"there is no frame {frame}",
                path=self.index.folder,
                field="token",
                remedy="use an id that frames() returned for this version",
            )
        return found

    def _reading(self, frame: KeyFrame, channel: str) -> Reading:
        if channel not in frame.readings:
            raise DataError(
                f"sample {frame.sample.token} ({frame.scene}) has no key frame of {channel}",
                path=self.index.folder / "sample_data.json",
                field="calibrated_sensor_token",
                remedy="unpack the json tables again, or choose other cameras",
            )
        return frame.readings[channel]

    def _file(self, filename: str, table: str) -> Path:
        return resolve_inside(self.root, filename, self.index.folder / f"{table}.json")

    def _camera(
        self, channel: str, reading: Reading, camera_from_lidar: Tensor, fields: Field
    ) -> Camera:
        if not reading.calibrated.camera_intrinsic:
            raise DataError(
                f"{channel} has no intrinsics",
                path=self.index.folder / "calibrated_sensor.json",
                field="camera_intrinsic",
                remedy="choose channels of cameras",
            )
        image = open_image(self._file(reading.filename, "sample_data"), self.image_scale)
        intrinsics = torch.tensor(reading.calibrated.camera_intrinsic, dtype=torch.float64)
        camera = Camera(channel, reading.token, None, intrinsics, camera_from_lidar)
        return with_image(camera, image, fields)

    def _labels(
        self, token: str, points: int, fields: Field
    ) -> tuple[Tensor | None, Tensor | None]:
        """Semantic and instance labels of a sweep, as far as asked for and present."""
        semantic = instance = None
        from_lidarseg = token in self.index.lidarseg and Field.SEMANTIC in fields
        if from_lidarseg:
            path = self._file(self.index.lidarseg[token], "lidarseg")
            raw = parse_labels(read_bytes(path, POINT_FILE_LIMIT), path, "<u1", points)
            semantic = map_labels(raw, self._lookup, path)
        if token in self.index.panoptic and (Field.SEMANTIC | Field.INSTANCE) & fields:
            path = self._file(self.index.panoptic[token], "panoptic")
            panoptic = parse_panoptic(read_bytes(path, POINT_FILE_LIMIT), path, points)
            if Field.SEMANTIC in fields and not from_lidarseg:
                semantic = map_labels(panoptic // INSTANCES_PER_CATEGORY, self._lookup, path)
            if Field.INSTANCE in fields:
                thing = panoptic % INSTANCES_PER_CATEGORY != 0
                instance = torch.from_numpy(np.where(thing, panoptic, 0))
        return semantic, instance

    @cached_property
    def _lookup(self) -> np.ndarray:
        return raw_label_lookup(self.index.folder, self.class_of_category, self.classes.names)

    def _annotated(self) -> bool:
        path = self.index.folder / "sample_annotation.json"
        return bool(self.box_classes) and path.is_file()

    @cached_property
    def _annotations(self) -> Annotations:
        labels = {
            category: self.box_classes.index(name)
            for category, name in self.class_of_category.items()
            if name in self.box_classes
        }
        return read_annotations(self.index.folder, list(self.index.key_frames), labels)


def parse_panoptic(data: bytes, path: Path, points: int) -> np.ndarray:
    """``category * 1000 + instance`` of each point of a nuScenes-panoptic .npz file.

    Returns:
        (N,) int64.

    Raises:
        DataError: not such a file, or not one label per point.
    """
    limit = 4096 + 8 * points
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("data.npy") as member:
            array = parse_array(member.read(limit), path)
    except DataError:
        raise
    # A corrupt archive fails in the zip directory, the member header or any decompressor.
    except Exception as error:
        raise DataError(f"is not a panoptic .npz file ({str(error)[:200]})", path=path) from error
    if array.shape != (points,) or array.dtype.kind != "u":
        raise DataError(
            f"'data' has shape {array.shape} and type {array.dtype}, but the sweep has {points} "
            "points",
            path=path,
            field="data",
            remedy="use the label file made for this sweep",
        )
    return array.astype(np.int64)


def _split_scenes(folder: Path) -> dict[str, list[str]]:
    """Scene names of every split."""
    path = folder / "splits.json"
    if path.is_file():
        return parse_splits(read_json(path), path)
    text = files("lidarssl.datasets").joinpath("nuscenes_splits.json").read_text("utf-8")
    names = {
        split: [f"scene-{number:04d}" for number in numbers]
        for split, numbers in json.loads(text).items()
    }
    verifying = set(names["verifying"])
    names["parametrizing"] = [scene for scene in names["train"] if scene not in verifying]
    return names
