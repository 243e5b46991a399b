"""Crops of resized images for segmentation: image, labels, superpixels and intrinsics together.

The rules are those of mmsegmentation's RandomResize and RandomCrop.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.datasets.image_files import resize_intrinsics
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Frame
from lidarssl.transforms.images import (
    Crop,
    flip_camera,
    image_of,
    image_size,
    resize_nearest,
    superpixels_of,
)

Size = tuple[int, int]
REDRAWS = 10


class ResizedCrop:
    """Resize every image by a drawn factor, then cut a rectangle of one size out of it.

    An image that is smaller than the rectangle after resizing keeps what it has: ``PadImages``
    follows. A feature map made ahead of time is dropped.

    Args:
        size: (height, width) of the rectangle in pixels.
        ratio: range of the factor, uniform.
        base_height: height in pixels that the factor is of, aspect kept; None = the image's own.
        cat_max_ratio: a rectangle is drawn again, up to ten times, until it has more than one
            class and the most frequent covers less than this share of its labelled pixels;
            1 = the first is taken.
    """

    def __init__(
        self,
        size: Size,
        ratio: tuple[float, float] = (0.5, 2.0),
        base_height: int | None = None,
        cat_max_ratio: float = 0.75,
    ) -> None:
        self.size, self.ratio = size, ratio
        self.base_height, self.cat_max_ratio = base_height, cat_max_ratio

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        return _with_cameras(frame, [self._cropped(camera, rng) for camera in frame.cameras])

    def _cropped(self, camera: Camera, rng: np.random.Generator) -> Camera:
        size = image_size(camera)
        _check_labels(camera, size)
        factor = rng.uniform(*self.ratio) * (self.base_height or size[0]) / size[0]
        whole = scaled(size, factor)
        crop = draw_crop(whole, self.size, rng)
        if camera.labels is not None and self.cat_max_ratio < 1:
            rows, columns = nearest_rows(size[0], whole[0]), nearest_rows(size[1], whole[1])
            for _ in range(REDRAWS):
                below = slice(crop.top, crop.top + crop.height)
                beside = slice(crop.left, crop.left + crop.width)
                if mixed(camera.labels[rows[below]][:, columns[beside]], self.cat_max_ratio):
                    break
                crop = draw_crop(whole, self.size, rng)
        return crop_resized(camera, whole, crop)


class FlipImages:
    """Mirror every image left to right with a probability."""

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        cameras = [
            flip_camera(camera) if rng.random() < self.probability else camera
            for camera in frame.cameras
        ]
        return _with_cameras(frame, cameras)


class PadImages:
    """Extend every image to the right and below to at least a size.

    Labels beside the image are the ignored class 0, superpixels one more segment.

    Args:
        size: (height, width) in pixels.
        colour: RGB in [0, 1] beside the image.
    """

    def __init__(self, size: Size, colour: tuple[float, float, float]) -> None:
        self.size, self.colour = size, torch.tensor(colour)

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        return _with_cameras(frame, [self._padded(camera) for camera in frame.cameras])

    def _padded(self, camera: Camera) -> Camera:
        height, width = image_size(camera)
        sides = (0, max(self.size[1] - width, 0), 0, max(self.size[0] - height, 0))
        if not any(sides):
            return camera
        image = self.colour[:, None, None].repeat(1, height + sides[3], width + sides[1])
        image[:, :height, :width] = _as_floats(image_of(camera))
        labels, segments = camera.labels, superpixels_of(camera)
        return replace(
            camera,
            image=image,
            labels=None if labels is None else F.pad(labels, sides),
            superpixels=None
            if segments is None
            else F.pad(segments, sides, value=int(segments.max()) + 1),
            features=None,
        )


def scaled(size: Size, factor: float) -> Size:
    """(height, width) times a factor, halves rounded up, at least a pixel."""
    return max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))


def draw_crop(whole: Size, size: Size, rng: np.random.Generator) -> Crop:
    """A rectangle of ``size``, or as much of it as ``whole`` has, uniform over all places."""
    height, width = min(size[0], whole[0]), min(size[1], whole[1])
    top = int(rng.integers(whole[0] - height + 1))
    return Crop(top, int(rng.integers(whole[1] - width + 1)), height, width)


def mixed(labels: Tensor, cat_max_ratio: float) -> bool:
    """Whether labels have more than one class, none with this share of the labelled or more."""
    counts = torch.bincount(labels.flatten())[1:]
    labelled = int(counts.sum())
    return int((counts > 0).sum()) > 1 and int(counts.max()) < cat_max_ratio * labelled


def crop_resized(camera: Camera, whole: Size, crop: Crop) -> Camera:
    """A rectangle of a camera's image as it is after resizing to ``whole``, without smoothing.

    The same as resizing all of it and cutting the rectangle out, but only the rectangle is
    computed.

    Args:
        camera: with an image (3, H, W).
        whole: (height, width) to which all of the image is resized.
        crop: rectangle inside of ``whole``.

    Returns:
        The camera with image (3, h, w) float32 in [0, 1], ids by nearest, intrinsics moved along.
    """
    size = image_size(camera)
    below = slice(crop.top, crop.top + crop.height)
    beside = slice(crop.left, crop.left + crop.width)
    rows, columns = nearest_rows(size[0], whole[0])[below], nearest_rows(size[1], whole[1])[beside]
    intrinsics = resize_intrinsics(camera.intrinsics.double(), size, whole)
    intrinsics[0, 2] -= crop.left
    intrinsics[1, 2] -= crop.top

    def cut(ids: Tensor | None) -> Tensor | None:
        return None if ids is None else ids[rows][:, columns]

    return replace(
        camera,
        image=_bilinear(image_of(camera), whole, below, beside),
        superpixels=cut(superpixels_of(camera)),
        labels=cut(camera.labels),
        features=None,
        intrinsics=intrinsics,
    )


def nearest_rows(before: int, after: int) -> Tensor:
    """Which of ``before`` rows each of ``after`` rows takes, (after,) int64."""
    return resize_nearest(torch.arange(before)[:, None], (after, 1))[:, 0]


def _bilinear(image: Tensor, whole: Size, below: slice, beside: slice) -> Tensor:
    top, bottom, down = _neighbours(image.shape[1], whole[0], below)
    left, right, across = _neighbours(image.shape[2], whole[1], beside)
    first, last = int(top[0]), int(bottom[-1]) + 1
    rows = image[:, first:last]
    upper, lower = rows[:, top - first], rows[:, bottom - first]
    mean = torch.lerp(_as_floats(upper), _as_floats(lower), down[:, None])
    return torch.lerp(mean[..., left], mean[..., right], across)


def _neighbours(before: int, after: int, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels beside each new one along an axis, and the weight of the second."""
    place = (torch.arange(part.start, part.stop).double() + 0.5) * before / after - 0.5
    place = place.clamp(0, before - 1)
    low = place.floor()
    first = low.long()
    return first, (first + 1).clamp(max=before - 1), (place - low).float()


def _as_floats(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image


def _with_cameras(frame: Frame, cameras: list[Camera]) -> Frame:
    if frame.matches is not None:
        raise ConfigError(
            "crops of images alone would leave the matches behind",
            field="matches",
            remedy="use the transforms of lidarssl.transforms.paired",
        )
    return replace(frame, cameras=tuple(cameras))


def _check_labels(camera: Camera, size: Size) -> None:
    for name in ("labels", "superpixels"):
        ids = getattr(camera, name)
        if ids is not None and tuple(ids.shape) != size:
            raise DataError(
                f"{name} of {tuple(ids.shape)} pixels beside an image of {size} "
                f"({camera.name}, {camera.token})",
                field=name,
                remedy="mend the file, or load images and labels at one scale",
            )
