"""Crop, resize and mirror a camera: image, superpixels, labels and intrinsics together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.datasets.image_files import WHOLE, resize_intrinsics
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Frame
from lidarssl.geometry.projection import scale_intrinsics
from lidarssl.rows import true_rows

_LINES = 8


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def whole(cls, size: tuple[int, int]) -> Crop:
        """All of an image of ``size`` (height, width)."""
        return cls(0, 0, *size)


def image_of(camera: Camera) -> Tensor:
    """The image of a camera, (3, H, W), decoded if it is not yet.

    Raises:
        DataError: the camera was loaded without it, or it does not decode.
    """
    return _pixels(camera, WHOLE, WHOLE).contiguous()


def image_size(camera: Camera) -> tuple[int, int]:
    """(height, width) of a camera's image, which need not be decoded for that.

    Raises:
        DataError: the camera was loaded without it.
    """
    if camera.image is None and camera.undecoded is not None:
        return camera.undecoded.size
    height, width = _pixels(camera, WHOLE, WHOLE).shape[-2:]
    return height, width


def superpixels_of(camera: Camera) -> Tensor | None:
    """The superpixels of a camera, (H, W) int64, decoded if they are not yet; None without.

    Raises:
        DataError: they do not decode.
    """
    ids = _superpixels(camera, WHOLE, WHOLE)
    return None if ids is None else ids.to(torch.int64)


def decoded(frame: Frame) -> Frame:
    """The frame with nothing left undecoded.

    Raises:
        DataError: an image or superpixels do not decode.
    """
    return replace(frame, cameras=tuple(map(_decoded, frame.cameras)))


def _decoded(camera: Camera) -> Camera:
    waits = camera.image is None and camera.undecoded is not None
    return replace(
        camera,
        image=image_of(camera) if waits else camera.image,
        superpixels=superpixels_of(camera),
        undecoded=None,
        undecoded_superpixels=None,
    )


def _pixels(camera: Camera, rows: slice, columns: slice) -> Tensor:
    if camera.image is not None:
        return camera.image[:, rows, columns]
    if camera.undecoded is not None:
        return camera.undecoded.decode(rows, columns)
    raise DataError(
        f"camera {camera.name} ({camera.token}) has no image",
        field="image",
        remedy="load the frame with Field.IMAGES",
    )


def _superpixels(camera: Camera, rows: slice, columns: slice) -> Tensor | None:
    """Of whatever integer type they come in."""
    if camera.superpixels is not None:
        return camera.superpixels[rows, columns]
    found = camera.undecoded_superpixels
    return None if found is None else found.decode(rows, columns)


def resize_bilinear(image: Tensor, size: tuple[int, int], antialias: bool = False) -> Tensor:
    """(3, H, W) uint8, or float32 in [0, 1], -> (3, *size) float32 in [0, 1]."""
    # With the channels of a pixel side by side this takes a third of the time.
    if antialias:
        # Rows first, as one wide image: whole lines are added up, and there are fewer of them.
        lines = _smoothed_lines(image.permute(1, 2, 0).flatten(1), size[0])
        values = lines.unflatten(1, (-1, len(image))).permute(2, 0, 1)[None]
    else:
        values = image[None].to(torch.float32, memory_format=torch.channels_last)
    resized = _bilinear(values, size, antialias)[0]
    return resized.div_(255) if image.dtype == torch.uint8 else resized


def _smoothed_lines(image: Tensor, count: int) -> Tensor:
    """(H, W) of any type to (count, W) float32, some lines at a time: they stay in the cache."""
    smoothed = torch.empty((count, image.shape[1]))
    for first, top, weights in _weights_of_lines(len(image), count):
        below, above = weights.shape
        lines = image[top : top + above].to(torch.float32)
        torch.mm(weights, lines, out=smoothed[first : first + below])
    return smoothed


@lru_cache(maxsize=16)
def _weights_of_lines(before: int, after: int) -> list[tuple[int, int, Tensor]]:
    """What lines of a smoothed image are made of.

    Returns:
        The first of some lines, the first line that they are made of, and the weights of lines.
    """
    single = _bilinear(torch.eye(before)[None, None], (after, before), antialias=True)[0, 0]
    parts = []
    for first in range(0, after, _LINES):
        weights = single[first : first + _LINES]
        used = true_rows(weights.any(0))
        top, last = int(used[0]), int(used[-1])
        parts.append((first, top, weights[:, top : last + 1].contiguous()))
    return parts


def _bilinear(values: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    return F.interpolate(values, size, mode="bilinear", antialias=antialias)


def resize_nearest(ids: Tensor, size: tuple[int, int]) -> Tensor:
    """Ids (H, W) -> (*size), each pixel taking the id at floor(pixel * ratio)."""
    lines = ids.index_select(0, _nearest(ids.shape[0], size[0]))
    return lines.index_select(1, _nearest(ids.shape[1], size[1]))


def _nearest(before: int, after: int) -> Tensor:
    positions = torch.arange(before, dtype=torch.float64)[None, None]
    return F.interpolate(positions, after, mode="nearest")[0, 0].to(torch.int64)


def crop_camera(
    camera: Camera, crop: Crop, size: tuple[int, int], antialias: bool = False
) -> Camera:
    """A rectangle of a camera's image, brought to ``size`` (height, width).

    A feature map made ahead of time is dropped: it is of all of the image.
    """
    rows = slice(crop.top, crop.top + crop.height)
    cols = slice(crop.left, crop.left + crop.width)

    def nearest(ids: Tensor | None) -> Tensor | None:
        return None if ids is None else resize_nearest(ids, size).to(torch.int64)

    intrinsics = camera.intrinsics.double().clone()
    intrinsics[0, 2] -= crop.left
    intrinsics[1, 2] -= crop.top
    return replace(
        camera,
        image=resize_bilinear(_pixels(camera, rows, cols), size, antialias),
        superpixels=nearest(_superpixels(camera, rows, cols)),
        labels=None if camera.labels is None else nearest(camera.labels[rows, cols]),
        features=None,
        intrinsics=resize_intrinsics(intrinsics, (crop.height, crop.width), size),
    )


def flip_camera(camera: Camera) -> Camera:
    """A camera mirrored left to right: column c becomes W - 1 - c.

    A feature map made ahead of time is dropped: the mirrored image has another.
    """
    width = image_size(camera)[1]
    mirror = torch.tensor([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)

    def flipped(ids: Tensor | None) -> Tensor | None:
        return None if ids is None else ids.flip(-1)

    return replace(
        camera,
        image=flipped(image_of(camera)),
        superpixels=flipped(superpixels_of(camera)),
        labels=flipped(camera.labels),
        features=None,
        intrinsics=mirror @ camera.intrinsics.double(),
    )


class ResizeImages:
    """Bring every image to one size; superpixels and labels by nearest, intrinsics with it.

    For frames without matches: ``transforms.paired.ResizeWhole`` takes matches along.

    Args:
        height, width: pixels.
        antialias: smooth before reducing; the published methods do not.
        pixel_centers: lie at integers; False multiplies the intrinsics by the plain ratio.
    """

    def __init__(
        self, height: int, width: int, antialias: bool = False, pixel_centers: bool = True
    ) -> None:
        if height < 1 or width < 1:
            raise ConfigError(f"{height} x {width} is not an image size", field="height, width")
        self.size, self.antialias, self.pixel_centers = (height, width), antialias, pixel_centers

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        if frame.matches is not None:
            raise ConfigError(
                "ResizeImages would leave the matches behind",
                remedy="put it before MatchPixels, or use ResizeWhole",
            )
        return replace(frame, cameras=tuple(map(self._resized, frame.cameras)))

    def _resized(self, camera: Camera) -> Camera:
        before = image_size(camera)
        resized = crop_camera(camera, Crop.whole(before), self.size, self.antialias)
        if self.pixel_centers:
            return resized
        ratios = self.size[0] / before[0], self.size[1] / before[1]
        return replace(resized, intrinsics=scale_intrinsics(camera.intrinsics.double(), *ratios))
