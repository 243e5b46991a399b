"""Camera images: bounded decoding, and intrinsics that follow a change of size."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lidarssl.datasets.files import IMAGE_FILE_LIMIT, open_file, read_bytes
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Field

PIXEL_LIMIT = 50_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_MODES = ("RGB", "RGBA", "L", "P", "CMYK", "YCbCr", "1")
WHOLE = slice(None)


@dataclass(frozen=True)
class ImageFile:
    """An 8-bit image as its file holds it; only decoding tells whether the file is whole.

    Attributes:
        held: content of a JPEG, PNG, WebP or BMP file, or None while it is on disk alone.
        path: its place, or its name for messages.
        scale: factor on width and height, in (0, 1]; JPEG is decoded at a fraction of its size
            where this allows.
        full_size: (height, width) before scaling.
    """

    held: bytes | None
    path: Path
    scale: float
    full_size: tuple[int, int]

    @property
    def data(self) -> bytes:
        """Content of the file.

        Raises:
            DataError: it is not there any more, or cannot be read.
        """
        return read_bytes(self.path, IMAGE_FILE_LIMIT) if self.held is None else self.held

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) after scaling."""
        return scaled_size(*self.full_size, self.scale)

    def decode(self, rows: slice = WHOLE, columns: slice = WHOLE) -> Tensor:
        """A rectangle of the image.

        Returns:
            (3, h, w) uint8 RGB; the channels of a pixel lie side by side in memory.

        Raises:
            DataError: it does not decode.
        """
        (top, bottom, _), (left, right, _) = (
            part.indices(length) for part, length in zip((rows, columns), self.size, strict=True)
        )
        with _decoding(self.path):
            image = _scaled(_header(io.BytesIO(self.data)), self.scale)
            image = image if image.mode == "RGB" else image.convert("RGB")
            if (right - left, bottom - top) != image.size:
                image = image.crop((left, top, right, bottom))
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def open_image(path: Path, scale: float = 1.0) -> ImageFile:
    """An image of which no more than the header is read.

    Raises:
        DataError: missing, too large, not an 8-bit image, or above 50 million pixels.
    """
    with open_file(path, IMAGE_FILE_LIMIT) as file, _decoding(path):
        return ImageFile(None, path, scale, _checked_size(_header(file), path))


def image_file(data: bytes, path: Path, scale: float) -> ImageFile:
    """The content of a file, of which only the header is looked at (see ``open_image``)."""
    with _decoding(path):
        return ImageFile(data, path, scale, _checked_size(_header(io.BytesIO(data)), path))


def with_image(camera: Camera, image: ImageFile, fields: Field) -> Camera:
    """A camera with its image, which stays undecoded where ``fields`` allow that.

    Args:
        camera: with the intrinsics of the image before scaling.
        image: its image.
        fields: that a frame is loaded with.

    Raises:
        DataError: the image does not decode.
    """
    later = Field.UNDECODED in fields
    return replace(
        camera,
        image=None if later else image.decode().contiguous(),
        undecoded=image if later else None,
        intrinsics=resize_intrinsics(camera.intrinsics, image.full_size, image.size),
    )


def read_image(path: Path, scale: float = 1.0) -> tuple[Tensor, tuple[int, int]]:
    """``parse_image`` of a file."""
    return parse_image(read_bytes(path, IMAGE_FILE_LIMIT), path, scale)


def parse_image(data: bytes, path: Path, scale: float = 1.0) -> tuple[Tensor, tuple[int, int]]:
    """Decode an 8-bit image.

    Args:
        data, path, scale: as of ``ImageFile``.

    Returns:
        (3, H, W) uint8 RGB, and (height, width) before scaling.

    Raises:
        DataError: not an 8-bit image, does not decode, or above 50 million pixels.
    """
    image = image_file(data, path, scale)
    return image.decode().contiguous(), image.full_size


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # Pillow's decoders raise almost any type on a corrupt stream; all of them mean the same.
    except Exception as error:
        raise DataError(
            f"the image does not decode ({str(error)[:200]})",
            path=path,
            field="image",
            remedy="get the file again, or remove the frame",
        ) from error


def _header(file: IO[bytes]) -> Image.Image:
    return Image.open(file, formats=_FORMATS)


def _checked_size(image: Image.Image, path: Path) -> tuple[int, int]:
    width, height = image.size
    if not 0 < width * height <= PIXEL_LIMIT:
        raise DataError(
            f"the image claims {width} x {height} pixels; at most {PIXEL_LIMIT} are decoded",
            path=path,
            field="image",
        )
    if image.mode not in _MODES:
        raise DataError(
            f"the image has mode '{image.mode}', not 8 bits per channel",
            path=path,
            field="image",
            remedy="convert it to 8-bit RGB",
        )
    return height, width


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    height, width = scaled_size(image.height, image.width, scale)
    if (width, height) == image.size:
        return image
    box: tuple[float, float, float, float] | None = None
    if image.format == "JPEG" and (draft := image.draft("RGB", (width, height))) is not None:
        box = draft[1]
    if image.size == (width, height):
        return image
    return image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, box=box)


def check_scale(scale: float) -> float:
    """``scale``, when it is in (0, 1].

    Raises:
        ConfigError: it is not.
    """
    if not 0 < scale <= 1:
        raise ConfigError(
            f"image_scale is {scale}",
            field="image_scale",
            remedy="give a factor above 0 and at most 1",
        )
    return scale


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Size of an image after scaling: rounded half up, at least one pixel."""
    return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))


def resize_intrinsics(
    intrinsics: Tensor, before: tuple[int, int], after: tuple[int, int]
) -> Tensor:
    """Intrinsics of a resized image.

    Pixel centres are integers, so an image of width W spans [-0.5, W - 0.5] and a coordinate
    becomes (u + 0.5) s - 0.5.

    Args:
        intrinsics: (3, 3) float64.
        before, after: (height, width).
    """
    rows, columns = after[0] / before[0], after[1] / before[1]
    resize = torch.tensor(
        [[columns, 0, 0.5 * columns - 0.5], [0, rows, 0.5 * rows - 0.5], [0, 0, 1]],
        dtype=torch.float64,
    )
    return resize @ intrinsics
