"""Images whose pixels are class ids: bounded decoding, checked ids, nearest resizing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lidarssl.datasets.files import IMAGE_FILE_LIMIT, read_bytes
from lidarssl.datasets.image_files import PIXEL_LIMIT
from lidarssl.errors import DataError
from lidarssl.wording import counted

# Of a palette image the indices are the ids; its colours are for the eye.
_MODES = ("L", "P")
_REMEDY = "get the label file again; it must be a single-channel 8-bit PNG"


def read_label_image(path: Path, remedy: str | None = None) -> np.ndarray:
    """``parse_label_image`` of a file; ``remedy`` is for a missing one."""
    return parse_label_image(read_bytes(path, IMAGE_FILE_LIMIT, remedy), path)


def parse_label_image(data: bytes, path: Path) -> np.ndarray:
    """Ids of a single-channel 8-bit PNG, (H, W) uint8.

    Args:
        data: content of the file.
        path: its name, for messages.

    Raises:
        DataError: not such an image, does not decode, or above 50 million pixels.
    """
    image = _open(data, path, ("PNG",))
    if image.mode not in _MODES:
        raise DataError(
            f"the label image has mode '{image.mode}', not one id of 8 bits per pixel",
            path=path,
            field="labels",
            remedy="use the files of ids, not those of colours or instances",
        )
    try:
        return np.array(image)
    # Pillow's decoders raise almost any type on a corrupt stream; all of them mean the same.
    except Exception as error:
        raise _undecodable(error, path) from error


def parse_image_size(data: bytes, path: Path) -> tuple[int, int]:
    """(height, width) of a PNG or JPEG image by its header.

    Raises:
        DataError: not such an image, or above 50 million pixels.
    """
    image = _open(data, path, ("PNG", "JPEG"))
    return image.height, image.width


def _open(data: bytes, path: Path, formats: tuple[str, ...]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Exception as error:
        raise _undecodable(error, path) from error
    if not 0 < image.width * image.height <= PIXEL_LIMIT:
        raise DataError(
            f"the image claims {image.width} x {image.height} pixels; at most {PIXEL_LIMIT} are "
            "decoded",
            path=path,
            field="labels",
            remedy=_REMEDY,
        )
    return image


def _undecodable(error: Exception, path: Path) -> DataError:
    return DataError(
        f"the image does not decode ({str(error)[:200]})", path=path, field="labels", remedy=_REMEDY
    )


def map_pixels(raw: np.ndarray, lookup: np.ndarray, path: Path) -> Tensor:
    """Train ids of raw ids.

    Args:
        raw: (H, W) uint8.
        lookup: (256,) int64 train id of each raw id, -1 = unknown.
        path: of the label file, for messages.

    Returns:
        (H, W) int64.

    Raises:
        DataError: a raw id is unknown.
    """
    train = lookup[raw]
    unknown = train < 0
    if unknown.any():
        values = ", ".join(str(value) for value in np.unique(raw[unknown])[:8])
        raise DataError(
            f"{counted(int(unknown.sum()), 'pixel')} with ids outside of the class table: {values}",
            path=path,
            field="labels",
            remedy="check that the labels belong to this dataset and are of this kind",
        )
    return torch.from_numpy(train)


def nearest_pixels(labels: Tensor, height: int, width: int) -> Tensor:
    """The label under the centre of each pixel of an image of another size, (height, width)."""
    if labels.shape == (height, width):
        return labels
    rows, cols = (
        ((torch.arange(new) + 0.5) * old / new).long().clamp(max=old - 1)
        for old, new in zip(labels.shape, (height, width), strict=True)
    )
    return labels[rows[:, None], cols]
