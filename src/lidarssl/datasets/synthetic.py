"""The synthetic driving world as a dataset: made on the spot, labelled in full, never downloaded.

Written in the layout of nuScenes, with lidar x right, y forward, z up and intensity 0..255, plus
a class image for every camera image. See ``lidarssl.datasets.world`` for how it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.files import read_json
from lidarssl.datasets.image_files import read_image, scaled_size
from lidarssl.datasets.label_images import nearest_pixels
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.datasets.world.classes import PALETTE, Semantic
from lidarssl.datasets.world.config import (
    VERSION,
    WEATHER_FILE,
    WEATHERS,
    Weather,
    WorldConfig,
)
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Field, Frame, FrameId


class Synthetic(NuScenes):
    """Synthetic streets with lidar, cameras, and labels of points, pixels and boxes.

    Splits are those of the ``WorldConfig``; by default ``teacher`` (labelled images for a stand-in
    image encoder), ``train`` and ``val``, with disjoint scenes. Those that repeat the scenes of
    another in fog, at night, in rain or in snow are its ``conditions``.

    Args:
        root: folder that ``Synthetic.generate`` has filled.
        version: folder of the tables.
        cameras: channels to read, in this order; default: all.
        image_scale: factor on the size of images and their labels, in (0, 1].

    Raises:
        ConfigError: unknown camera or image scale.
        DataError: the root is wrong, or a table is missing or malformed.
    """

    name = "synthetic"
    intensity_statistics = (42.89, 32.64)
    classes = ClassTable(tuple(semantic.name.lower() for semantic in Semantic), PALETTE)
    box_classes = ("car", "truck", "cyclist", "pedestrian")
    class_of_category = {name: name for name in classes.names}  # noqa: RUF012
    default_cameras = ()

    def __init__(
        self,
        root: str | Path,
        version: str = VERSION,
        cameras: Sequence[str] | None = None,
        image_scale: float = 1.0,
    ) -> None:
        if not Path(root).is_dir():
            raise DataError(
                "there is no such folder",
                path=root,
                field="root",
                remedy=f"make the world with `lidarssl data synthesize {root}`; `lidarssl demo` "
                "makes the one of the recipes, with their teacher",
            )
        super().__init__(root, version, cameras, image_scale)

    @classmethod
    def generate(
        cls,
        root: str | Path,
        config: WorldConfig | None = None,
        workers: int = 0,
        progress: bool = True,
    ) -> Synthetic:
        """Make the world in ``root`` where it is not yet there, and open it.

        Args:
            root: folder, created if absent; what an earlier call finished is kept.
            config: default: the world of the demo.
            workers: processes; 0 = one per core. The bytes written do not depend on it.
            progress: show a bar with the time left.

        Raises:
            ConfigError: the folder holds another world, or the extra ``synthetic`` is missing.
        """
        from lidarssl.datasets.world.nuscenes_writer import write_nuscenes

        write_nuscenes(config or WorldConfig(), root, VERSION, workers, progress)
        return cls(root)

    def provides(self, split: str) -> Field:
        provided = super().provides(split)
        first = self._key_frame(self.frames(split)[0])
        cameras = [first.readings[name] for name in self.cameras if name in first.readings]
        if cameras and self._label_file(self.cameras[0], cameras[0].token).is_file():
            provided |= Field.IMAGE_LABELS
        return provided

    def conditions(self, split: str) -> dict[str, list[FrameId]]:
        """Frames of a split and of those that repeat its scenes, by weather; clear first.

        Empty where no other split repeats it.

        Raises:
            ConfigError: unknown split.
            DataError: the file that tells the weather is malformed.
        """
        own = self.frames(split)
        path = self.root / self.version / WEATHER_FILE
        shown = parse_weather(read_json(path), path) if path.is_file() else {}
        found: dict[str, list[FrameId]] = {
            weather: self.frames(name)
            for name, (like, weather) in shown.items()
            if like == split and name in self.splits
        }
        if found:
            found[shown[split][1] if split in shown else "clear"] = own
        return {weather: found[weather] for weather in WEATHERS if weather in found}

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        if Field.IMAGE_LABELS not in fields:
            return super().load(frame, fields)
        loaded = super().load(frame, (fields | Field.IMAGES) & ~Field.UNDECODED)
        cameras = [self._with_labels(camera) for camera in loaded.cameras]
        if Field.IMAGES not in fields:
            cameras = [replace(camera, image=None) for camera in cameras]
        return replace(loaded, cameras=tuple(cameras))

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        """Frames 0, ``skip``, 2 ``skip``, ... of the split: at least one."""
        if skip < 1:
            raise ConfigError(f"skip is {skip}", field="skip", remedy="give 1 or more")
        return self.frames(split)[::skip]

    def _label_file(self, camera: str, token: str) -> Path:
        return self.root / "camseg" / camera / f"{token}.png"

    def _with_labels(self, camera: Camera) -> Camera:
        path = self._label_file(camera.name, camera.token)
        pixels, size = read_image(path)
        labels = pixels[0].to(torch.int64)
        if camera.image is not None:
            shape = int(camera.image.shape[1]), int(camera.image.shape[2])
            if scaled_size(*size, self.image_scale) != shape:
                raise DataError(
                    f"{size[0]} x {size[1]} labels do not belong to an image of which "
                    f"{shape[0]} x {shape[1]} pixels were read",
                    path=path,
                    field="labels",
                    remedy="delete the folder and generate the world again",
                )
            labels = nearest_pixels(labels, *shape)
        if labels.max() >= len(self.classes):
            raise DataError(
                f"holds class {int(labels.max())}; there are {len(self.classes)}",
                path=path,
                field="labels",
                remedy="delete the folder and generate the world again",
            )
        return replace(camera, labels=labels)


def parse_weather(value: Any, path: Path) -> dict[str, tuple[str, Weather]]:
    """weather.json, ``{"val_fog": {"like": "val", "weather": "fog"}}``: what each split repeats
    (nothing: an empty name) and under which weather.

    Raises:
        DataError: of another shape, or an unknown weather.
    """
    remedy = "generate the world again, which rewrites this file"
    if not isinstance(value, dict):
        raise DataError("is not an object of splits", path=path, field="splits", remedy=remedy)
    shown: dict[str, tuple[str, Weather]] = {}
    for split, entry in value.items():
        if not (
            isinstance(entry, dict)
            and isinstance(like := entry.get("like"), str)
            and (weather := entry.get("weather")) in WEATHERS
        ):
            raise DataError(
                f"split '{split[:40]}' does not say what it is like and one weather of "
                f"{', '.join(WEATHERS)}",
                path=path,
                field="weather",
                remedy=remedy,
            )
        shown[split] = like, weather
    return shown
