"""Cityscapes: single images of 50 cities, finely labelled, by day and in fair weather.

No lidar is released with it. Data: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene
Understanding", CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lidarssl.datasets.files import MEBIBYTE, list_names, parse_json, read_bytes
from lidarssl.datasets.labelled_images import LabelledImages, unknown_image
from lidarssl.datasets.layout import find_root
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import FrameId

IMAGES = {"train": 2975, "val": 500, "test": 1525}
_SUFFIX = "_leftImg8bit.png"
_INTRINSIC = ("fx", "fy", "u0", "v0")
_LARGEST = 1e6


class Cityscapes(LabelledImages):
    """Cityscapes in its official layout, ``<root>/{leftImg8bit,gtFine}/<split>/<city>/...``.

    Splits: train (2975 images), val (500), test (1525, without useful labels). Sequences are
    cities. Labels are ``gtFine`` files of label ids or of train ids; ``camera/<split>`` gives the
    intrinsics where it is there. Images that are not there are left out.

    Args:
        root: folder that holds ``leftImg8bit``.
        image_scale: factor on the size of images and their labels, in (0, 1].

    Raises:
        ConfigError: the image scale is not in (0, 1].
        DataError: the root is wrong.
    """

    name = "cityscapes"
    camera = "leftImg8bit"

    def __init__(self, root: str | Path, image_scale: float = 1.0) -> None:
        marks = tuple(f"leftImg8bit/{split}" for split in IMAGES)
        remedy = "give the folder that holds leftImg8bit/train (leftImg8bit_trainvaltest.zip)"
        super().__init__(find_root(Path(root), marks, remedy), image_scale)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(IMAGES)

    def frames(self, split: str) -> list[FrameId]:
        """Images of a split, sorted by city and name."""
        if split not in IMAGES:
            raise unknown_name("split", split, self.splits)
        folder = self.root / "leftImg8bit" / split
        found = [
            FrameId(self.name, city, name.removesuffix(_SUFFIX))
            for city in list_names(folder, [""])
            for name in list_names(folder / city, [_SUFFIX])
        ]
        if not found:
            raise DataError(
                f"no image of split '{split}' is here",
                path=folder,
                field="leftImg8bit",
                remedy="unpack leftImg8bit_trainvaltest.zip here",
            )
        return found

    def absent(self, split: str) -> str:
        there = len(self.frames(split))
        gone = IMAGES[split] - there
        return f"{gone} of the {IMAGES[split]} images" if gone > 0 else ""

    def _image_file(self, frame: FrameId) -> Path:
        name = f"{frame.token}{_SUFFIX}"
        folders = [self.root / "leftImg8bit" / split / frame.sequence for split in IMAGES]
        there = [folder / name for folder in folders if (folder / name).is_file()]
        if not there:
            raise unknown_image(frame, self.root)
        return there[0]

    def _label_stem(self, image: Path) -> tuple[Path, str] | None:
        split, city = image.parts[-3:-1]
        folder = self.root / "gtFine" / split
        token = image.name.removesuffix(_SUFFIX)
        return (folder / city, f"{token}_gtFine_") if folder.is_dir() else None

    def _intrinsics(self, image: Path) -> Tensor:
        split, city = image.parts[-3:-1]
        token = image.name.removesuffix(_SUFFIX)
        path = self.root / "camera" / split / city / f"{token}_camera.json"
        if not (self.root / "camera" / split).is_dir():
            return super()._intrinsics(image)
        remedy = "unpack camera_trainvaltest.zip again, or remove its folder"
        return parse_camera(read_bytes(path, MEBIBYTE, remedy), path)


def parse_camera(data: bytes, path: Path) -> Tensor:
    """Intrinsics of ``{"intrinsic": {"fx", "fy", "u0", "v0"}}``, (3, 3) float64.

    Raises:
        DataError: a value is missing or cannot be.
    """
    content = parse_json(data, path)
    given = content.get("intrinsic") if isinstance(content, dict) else None
    values = [given.get(key) for key in _INTRINSIC] if isinstance(given, dict) else []
    numbers = [
        float(value) for value in values if isinstance(value, int | float) and abs(value) < _LARGEST
    ]
    if len(numbers) != len(_INTRINSIC) or min(numbers[:2]) <= 0:
        raise DataError(
            f"has no pinhole camera {', '.join(_INTRINSIC)}",
            path=path,
            field="intrinsic",
            remedy="unpack camera_trainvaltest.zip again, or remove its folder",
        )
    fx, fy, u0, v0 = numbers
    return torch.tensor([[fx, 0, u0], [0, fy, v0], [0, 0, 1]], dtype=torch.float64)
