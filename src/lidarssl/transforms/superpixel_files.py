"""The files that an offline pass keeps superpixels in.

Each belongs to an image, is named after the camera's token, and has a segment id, from 0, for
every pixel. ``<token>.png`` is a single-channel PNG, 8 bits deep (16 when an id exceeds 255), which
everything reads. ``<token>.runs`` is a tenth of the work to read, of all or of a part of the image:
the header of ``_HEADER`` (magic, height, width, number of runs, bytes of an id), then, compressed
by zlib, the id of every run and the length of every run (uint16), all little-endian. A run is a
piece of one line, lines follow each other.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lidarssl.datasets.files import IMAGE_FILE_LIMIT, read_bytes
from lidarssl.datasets.image_files import PIXEL_LIMIT, WHOLE
from lidarssl.errors import DataError
from lidarssl.frame import Camera
from lidarssl.transforms.superpixel_settings import read_settings

FileFormat = Literal["runs", "png"]
SUFFIXES: dict[FileFormat, str] = {"runs": ".runs", "png": ".png"}
LARGEST_ID = 2**16 - 1
_HEADER = struct.Struct("<4sIIIB")
_MAGIC = b"RUN1"
_WIDEST = 2**16 - 1


def superpixel_path(folder: Path, camera: Camera, form: FileFormat | None = None) -> Path:
    """Where the superpixels of a camera's image are kept.

    Args:
        folder: of the files.
        camera: whose token names the file.
        form: of the file; None = that of the file that is there.

    Raises:
        DataError: the camera's token is no file name.
    """
    if not camera.token or camera.token.startswith(".") or set(camera.token) & set("/\\\0"):
        raise DataError(f"camera token {camera.token!r} is no file name", field="token")
    if form is not None:
        return folder / f"{camera.token}{SUFFIXES[form]}"
    runs, png = (superpixel_path(folder, camera, one) for one in ("runs", "png"))
    return png if png.is_file() and not runs.is_file() else runs


@dataclass(frozen=True)
class SuperpixelFile:
    """Superpixels as their file holds them; only decoding tells whether the file is whole.

    Attributes:
        data: content of the file.
        path: its name, for messages.
        size: (height, width).
    """

    data: bytes
    path: Path
    size: tuple[int, int]

    def decode(self, rows: slice = WHOLE, columns: slice = WHOLE) -> Tensor:
        """The ids of a rectangle, (h, w) uint8, or int32 where 8 bits do not hold them.

        Raises:
            DataError: they do not decode.
        """
        try:
            if self.data.startswith(_MAGIC):
                ids = _decode_runs(self.data, self.size, rows)[:, columns]
            else:
                image = Image.open(io.BytesIO(self.data), formats=("PNG",))
                ids = np.array(image)[rows, columns]
        # Decoders raise almost any type on a corrupt stream; all of them mean the same.
        except Exception as error:
            raise _damaged(self.path, error) from error
        return torch.from_numpy(ids if ids.dtype == np.uint8 else ids.astype(np.int32))


def open_superpixels(path: Path, size: tuple[int, int]) -> SuperpixelFile:
    """Superpixels of which only the header is looked at.

    Args:
        path: see the module for the formats; what the file holds tells which it is.
        size: (height, width) of the image they belong to.

    Raises:
        DataError: missing, corrupt, not single-channel, or of another size.
    """
    try:
        data = read_bytes(path, IMAGE_FILE_LIMIT)
    except DataError as error:
        raise DataError(error.problem, path=path, remedy=_remedy(path)) from error
    try:
        if data.startswith(_MAGIC):
            _, height, width, _, _ = _HEADER.unpack_from(data)
            mode = "L"
        else:
            image = Image.open(io.BytesIO(data), formats=("PNG",))
            height, width, mode = image.height, image.width, image.mode
    # As above.
    except Exception as error:
        raise _damaged(path, error) from error
    if (height, width) == size and height * width <= PIXEL_LIMIT and mode in ("L", "I;16", "I"):
        return SuperpixelFile(data, path, size)
    raise DataError(
        f"superpixels are {height} x {width} in mode '{mode}', "
        f"expected single-channel {size[0]} x {size[1]}",
        path=path,
        remedy="prepare them with the image size that is loaded now",
    )


def read_superpixels(path: Path, size: tuple[int, int]) -> Tensor:
    """Segment ids of a file, (H, W) int64; arguments and what is raised: ``open_superpixels``."""
    return open_superpixels(path, size).decode().to(torch.int64)


def encode_superpixels(ids: Tensor, path: Path) -> bytes:
    """The content of a file of (H, W) segment ids, in the format of the suffix of ``path``.

    Raises:
        DataError: an id that 16 bits do not hold, or an image wider than a run may be.
    """
    largest = int(ids.max())
    if int(ids.min()) < 0 or largest > LARGEST_ID:
        raise DataError(
            f"segment ids reach {largest}, a file holds 0..{LARGEST_ID}",
            path=path,
            remedy="ask for fewer segments",
        )
    array = ids.numpy().astype("<u1" if largest <= 255 else "<u2")
    if path.suffix == SUFFIXES["runs"]:
        return _encode_runs(array, path)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def _encode_runs(ids: np.ndarray, path: Path) -> bytes:
    height, width = ids.shape
    if width > _WIDEST:
        raise DataError(
            f"an image of {width} columns has no runs; at most {_WIDEST}",
            path=path,
            remedy="prepare with --format png",
        )
    starts = np.ones(ids.shape, bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=ids.size).astype("<u2")
    header = _HEADER.pack(_MAGIC, height, width, len(first), ids.itemsize)
    return header + zlib.compress(ids.reshape(-1)[first].tobytes() + lengths.tobytes())


def _decode_runs(data: bytes, size: tuple[int, int], rows: slice) -> np.ndarray:
    """Lines ``rows`` of a file of runs, (h, W); raises ValueError or zlib.error."""
    height, width = size
    _, _, _, count, item = _HEADER.unpack_from(data)
    if count > height * width or item not in (1, 2):
        raise ValueError(f"{count} runs with ids of {item} bytes")
    stream, length = zlib.decompressobj(), count * (item + 2)
    content = stream.decompress(memoryview(data)[_HEADER.size :], length + 1)
    if len(content) != length or not stream.eof:
        raise ValueError(f"{count} runs take {length} bytes")
    ids = np.frombuffer(content, f"<u{item}", count)
    lengths = np.frombuffer(content, "<u2", count, offset=count * item)
    ends = np.cumsum(lengths, dtype=np.int64)
    borders = np.arange(1, height + 1) * width
    last = np.searchsorted(ends, borders)
    if count == 0 or ends[-1] != borders[-1] or (ends[last] != borders).any():
        raise ValueError("the runs do not fill the lines")
    first = np.append(0, last + 1)
    top, bottom, _ = rows.indices(height)
    part = slice(first[top], first[bottom])
    return np.repeat(ids[part], lengths[part]).reshape(bottom - top, width)


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"the superpixels do not decode ({str(error)[:200]})", path=path, remedy=_remedy(path)
    )


def _remedy(path: Path) -> str:
    """How to make a file again, with the settings of its folder where that tells them."""
    try:
        settings = read_settings(path.parent)
    except DataError:
        settings = None
    command = "lidarssl prepare superpixels" if settings is None else settings.command(path.parent)
    return f"run `{command}` on this dataset and split; it makes what is missing or damaged"
