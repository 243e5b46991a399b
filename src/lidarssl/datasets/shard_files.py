"""The files of a shard: plain tar, as the webdataset package writes and reads it.

A frame is a run of members ``00000012.<suffix>``, where 12 is its place in the split:

==========================  =====================================================================
``frame.json``              identity, pose, boxes, calibration (exact decimals)
``points.npy``              (N, 3) float32 m
``intensity.npy``           (N,) float32
``ring.npy``, ``time.npy``  (N,) integers, float32
``image0.jpg``              image of camera 0: the file of the dataset, or PNG, without loss
``superpixels0.png``        its segment ids
``labels0.png``             its class ids
``semantic.npy``            (N,) integers
``instance.npy``            (N,) integers
==========================  =====================================================================

Integers are as narrow as their values allow. What a frame does not have is left out.
"""

from __future__ import annotations

import io
import math
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lidarssl.datasets.files import IMAGE_FILE_LIMIT, MEBIBYTE, POINT_FILE_LIMIT
from lidarssl.datasets.image_files import PIXEL_LIMIT, ImageFile, image_file
from lidarssl.datasets.point_files import parse_npy_header
from lidarssl.datasets.shard_frames import REMEDY, describe
from lidarssl.errors import DataError
from lidarssl.frame import Frame
from lidarssl.wording import counted

BLOCK = 512
CHECKSUM = 8
END = bytes(2 * BLOCK)
"""What closes a tar file."""
FRAME = "frame.json"
POINT_MEMBERS = ("points", "intensity", "ring", "time")
LABEL_MEMBERS = ("semantic", "instance")
_NPY_HEADER = 4096
_FRAME_LIMIT = 16 * MEBIBYTE
_SUFFIX = re.compile(
    r"frame\.json|(points|intensity|ring|time|semantic|instance)\.npy"
    r"|(image)([0-9]{1,2})\.(jpg|png|webp|bmp)|(superpixels|labels)([0-9]{1,2})\.png",
    re.ASCII,
)
_FLOAT_COLUMNS = ("points", "intensity", "time")
_KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}


@dataclass(frozen=True)
class Member:
    """One file of a frame.

    Attributes:
        kind: ``points``, ``image``, ...; ``frame`` of ``frame.json``.
        camera: which one it belongs to, or None.
    """

    suffix: str
    kind: str
    camera: int | None

    @property
    def limit(self) -> int:
        """Most bytes it may have."""
        if self.kind == "frame":
            return _FRAME_LIMIT
        return POINT_FILE_LIMIT if self.camera is None else IMAGE_FILE_LIMIT


def member(suffix: str, path: Path) -> Member:
    """What a suffix stands for.

    Raises:
        DataError: none of the table above.
    """
    found = _SUFFIX.fullmatch(suffix)
    if found is None:
        raise DataError(
            f"'{suffix[:60]}' is no file of a frame", path=path, field="members", remedy=REMEDY
        )
    kind = found[1] or found[2] or found[5] or "frame"
    number = found[3] or found[6]
    return Member(suffix, kind, None if number is None else int(number))


def key(number: int) -> str:
    """Name that the files of frame ``number`` of a split share."""
    return f"{number:08d}"


def tar_member(name: str, data: bytes) -> bytes:
    """Header, content and padding; equal content gives equal bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def padded(size: int) -> int:
    """Bytes of a member in the tar file, header included."""
    return BLOCK + size + -size % BLOCK


def checksum(data: bytes | memoryview) -> str:
    """CRC-32 in ``CHECKSUM`` hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def parse_member(
    data: memoryview, name: str, size: int, check: str, path: str | Path
) -> memoryview:
    """Content of the member that ``data`` starts with.

    Args:
        data: from its header on, ``BLOCK + size`` bytes or more.
        name, size, check: what it must be; ``check`` is the ``checksum`` of its content.
        path: for messages.

    Raises:
        DataError: another member, or no member, starts there.
    """
    try:
        info = tarfile.TarInfo.frombuf(bytes(data[:BLOCK]), "ascii", "strict")
        found = (info.name, info.size, info.isreg())
    # A damaged header fails in every way a parser of numbers can.
    except Exception as error:
        raise _foreign(
            f"no file starts where '{name}' should ({str(error)[:100]})", path
        ) from error
    if found != (name, size, True) or len(data) < BLOCK + size:
        there = f"'{found[0][:60]}' of {found[1]} bytes"
        raise _foreign(f"{there} is where '{name}' of {size} should be", path)
    content = data[BLOCK : BLOCK + size]
    if checksum(content) != check:
        raise _foreign(f"'{name}' has another content", path)
    return content


def _foreign(problem: str, path: str | Path) -> DataError:
    return DataError(
        f"the shard is damaged, or not the one that its index was packed with: {problem}",
        path=path,
        field="shard",
        remedy="copy or upload the tar files and tables of one packing again",
    )


def encode_frame(
    frame: Frame, files: Mapping[int, bytes], superpixels: Mapping[int, Tensor]
) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of every file of a frame, in the order of a shard.

    Args:
        frame: as its dataset loads it.
        files: by number of the camera, content of an image file that decodes to its image.
        superpixels: by number of the camera, (H, W) segment ids.

    Raises:
        DataError: an id that 16 bits do not hold.
    """
    yield FRAME, describe(frame)
    yield from _columns(frame, POINT_MEMBERS)
    for number, camera in enumerate(frame.cameras):
        if camera.image is not None:
            content = files.get(number) or _encode_image(camera.image)
            kind = _KINDS[str(Image.open(io.BytesIO(content)).format)]
            yield f"image{number}.{kind}", content
        if number in superpixels:
            yield f"superpixels{number}.png", encode_ids(superpixels[number], "superpixels")
    for number, camera in enumerate(frame.cameras):
        if camera.labels is not None:
            yield f"labels{number}.png", encode_ids(camera.labels, "labels")
    yield from _columns(frame, LABEL_MEMBERS)


def _columns(frame: Frame, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        values = getattr(frame, name)
        if values is not None:
            stream = io.BytesIO()
            np.save(stream, _narrowed(values.numpy()), allow_pickle=False)
            yield f"{name}.npy", stream.getvalue()


def _narrowed(values: np.ndarray) -> np.ndarray:
    """The same integers in the narrowest type; floats as they are."""
    if values.dtype.kind == "f":
        return values
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    kinds = (np.uint8, np.uint16, np.uint32) if low >= 0 else ()
    return values.astype(next((k for k in kinds if high <= np.iinfo(k).max), np.int64))


def _encode_image(image: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(stream, "PNG")
    return stream.getvalue()


def encode_ids(ids: Tensor, field: str) -> bytes:
    """(H, W) ids as a single-channel PNG, 8 or 16 bits deep.

    Raises:
        DataError: an id that 16 bits do not hold.
    """
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= 1 << 16:
        raise DataError(
            f"ids {low}..{high} do not fit into a shard, which holds 0..65535",
            field=field,
            remedy="leave this field out with --fields",
        )
    stream = io.BytesIO()
    array = ids.numpy().astype(np.uint8 if high < 256 else np.uint16)
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def parse_ids(data: bytes, path: Path, size: tuple[int, int]) -> Tensor:
    """(H, W) int64 ids of a PNG of ``encode_ids``.

    Raises:
        DataError: not such an image, or of another size.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        found = (image.height, image.width, image.mode)
        known = found[:2] == size and size[0] * size[1] <= PIXEL_LIMIT
        if known and found[2] in ("L", "I;16", "I"):
            return torch.from_numpy(np.array(image).astype(np.int64))
    # Pillow's decoders raise almost any type on a corrupt stream; all of them mean the same.
    except Exception as error:
        raise DataError(
            f"the ids do not decode ({str(error)[:200]})", path=path, field="ids", remedy=REMEDY
        ) from error
    raise DataError(
        f"{found[0]} x {found[1]} pixels in mode '{found[2]}' are not the ids of an image of "
        f"{size[0]} x {size[1]}",
        path=path,
        field="ids",
        remedy=REMEDY,
    )


def parse_column(data: memoryview, path: Path, kind: str, count: int) -> Tensor:
    """A column of points: float32, in place where that can be, or int64.

    Args:
        data: content of a .npy file, which can be changed.
        path: its name, for messages.
        kind: which column.
        count: of points.

    Raises:
        DataError: of another shape or type, or not finite.
    """
    header = parse_npy_header(bytes(data[:_NPY_HEADER]), path)
    shape, columns_first, dtype, start = header
    floats = kind in _FLOAT_COLUMNS
    wanted = (count, 3) if kind == "points" else (count,)
    values = math.prod(wanted)
    fits = dtype == np.float32 if floats else dtype.kind in "iu"
    whole = len(data) - start == values * dtype.itemsize
    if shape == wanted and fits and whole and not columns_first:
        array = np.frombuffer(data, dtype, values, start).reshape(wanted)
        if not floats or np.isfinite(array).all():
            return torch.from_numpy(array.astype(np.float32 if floats else np.int64, copy=False))
    raise DataError(
        f"an array of shape {shape} and type {dtype} is not the finite {kind} of "
        f"{counted(count, 'point')}",
        path=path,
        field=kind,
        remedy=REMEDY,
    )


def stored_image(data: bytes, path: Path, scale: float, size: tuple[int, int]) -> ImageFile:
    """An image, not yet decoded, whose size before scaling must be ``size``.

    Raises:
        DataError: not an 8-bit image, or of another size.
    """
    image = image_file(data, path, scale)
    if image.full_size != size:
        raise DataError(
            f"the image has {image.full_size} pixels, not {size}",
            path=path,
            field="image",
            remedy=REMEDY,
        )
    return image
