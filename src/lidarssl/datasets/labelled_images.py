"""What datasets of single labelled images share: Cityscapes, and those labelled like it.

A frame is one image: no points, one camera whose place is nobody's business. Labels are files of
label ids or of train ids; where a frame has both, train ids are read, and the classes are equal.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.cityscapes_classes import CITYSCAPES_CLASSES, LOOKUPS
from lidarssl.datasets.files import IMAGE_FILE_LIMIT, read_bytes
from lidarssl.datasets.image_files import check_scale, parse_image, resize_intrinsics, scaled_size
from lidarssl.datasets.label_images import (
    map_pixels,
    nearest_pixels,
    parse_image_size,
    read_label_image,
)
from lidarssl.errors import DataError
from lidarssl.frame import Camera, Field, Frame, FrameId


class LabelledImages(Dataset):
    """Images with the 19 classes of Cityscapes, one camera and no lidar.

    Attributes:
        camera: name of the camera.

    Args:
        root: folder of the dataset.
        image_scale: factor on the size of images and their labels, in (0, 1].

    Raises:
        ConfigError: the image scale is not in (0, 1].
    """

    classes = CITYSCAPES_CLASSES
    lidar = False
    camera: str

    def __init__(self, root: Path, image_scale: float) -> None:
        self.root = root
        self.image_scale = check_scale(image_scale)

    @abstractmethod
    def _image_file(self, frame: FrameId) -> Path:
        """Where the image of a frame lies.

        Raises:
            DataError: no such image is here.
        """

    @abstractmethod
    def _label_stem(self, image: Path) -> tuple[Path, str] | None:
        """Folder of an image's label file, and its name up to ``labelIds.png``.

        None where the images of its split have no labels.
        """

    def _intrinsics(self, image: Path) -> Tensor:
        """(3, 3) float64, pixels of the file; NaN where nobody knows them."""
        return torch.full((3, 3), torch.nan, dtype=torch.float64)

    def provides(self, split: str) -> Field:
        labelled = self._label_stem(self._image_file(self.frames(split)[0])) is not None
        return Field.IMAGES | (Field.IMAGE_LABELS if labelled else Field.NONE)

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        self._check(frame)
        asked = (Field.IMAGES | Field.IMAGE_LABELS) & fields
        return Frame(
            id=frame,
            points=torch.zeros((0, 3)),
            intensity=torch.zeros(0),
            cameras=(self._camera(frame, asked),) if asked else (),
        )

    def _check(self, frame: FrameId) -> None:
        name = r"[^\\/\0.][^\\/\0]{0,199}"
        known = frame.dataset == self.name and re.fullmatch(name, frame.sequence)
        if not (known and re.fullmatch(name, frame.token)):
            raise unknown_image(frame, self.root)

    def _camera(self, frame: FrameId, fields: Field) -> Camera:
        path = self._image_file(frame)
        data = read_bytes(path, IMAGE_FILE_LIMIT)
        image = None
        if Field.IMAGES in fields:
            image, size = parse_image(data, path, self.image_scale)
        else:
            size = parse_image_size(data, path)
        after = scaled_size(*size, self.image_scale)
        return Camera(
            name=self.camera,
            token=f"{frame.sequence}_{self.camera}_{frame.token}",
            image=image,
            intrinsics=resize_intrinsics(self._intrinsics(path), size, after),
            camera_from_lidar=torch.eye(4, dtype=torch.float64),
            labels=self._labels(path, size) if Field.IMAGE_LABELS in fields else None,
        )

    def _labels(self, image: Path, size: tuple[int, int]) -> Tensor | None:
        """Classes of the pixels at the size that is read; None where the split has no labels."""
        found = self._label_file(image)
        if found is None:
            return None
        path, lookup = found
        raw = read_label_image(path, "unpack the labels of this split, or remove the image")
        if raw.shape != size:
            raise DataError(
                f"has {raw.shape[1]} x {raw.shape[0]} labels, but the image {image} has "
                f"{size[1]} x {size[0]} pixels",
                path=path,
                field="labels",
                remedy="use the label file made for this image, at its size",
            )
        return nearest_pixels(map_pixels(raw, lookup, path), *scaled_size(*size, self.image_scale))

    def _label_file(self, image: Path) -> tuple[Path, np.ndarray] | None:
        """The label file of an image, there or not, and what its ids mean; None: none expected."""
        where = self._label_stem(image)
        if where is None:
            return None
        folder, stem = where
        files = {kind: folder / f"{stem}{kind}.png" for kind in LOOKUPS}
        there = [kind for kind, file in files.items() if file.is_file()]
        kind = there[0] if there else "labelIds"
        return files[kind], LOOKUPS[kind]


def unknown_image(frame: FrameId, root: Path) -> DataError:
    return DataError(
        f"'{frame}' is not the id of an image that is here",
        path=root,
        field="token",
        remedy="use an id that frames() returned",
    )
