"""Transforms that keep points, images and the matches between them consistent.

Each is a pure function of what was drawn, and a thin class that draws. Source of the rules:
Sautier et al., "Image-to-Lidar Self-Supervised Distillation for Autonomous Driving Data",
CVPR 2022, and its code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Frame, Matches
from lidarssl.geometry.projection import Bounds, Rounding, match_pixels
from lidarssl.rows import true_rows
from lidarssl.transforms.images import Crop, crop_camera, flip_camera, image_size
from lidarssl.wording import counted

Size = tuple[int, int]


def match_frame(
    frame: Frame,
    min_depth: float = 1.0,
    rounding: Rounding = "round",
    bounds: Bounds = "strict",
) -> Matches:
    """Pairs of every point with the pixel it projects to, camera after camera, no occlusion.

    Raises:
        DataError: the frame has no cameras, or one without an image.
    """
    parts, points = [], torch.stack(frame.points.unbind(1)).double().t()
    for number, camera in enumerate(cameras_of(frame)):
        height, width = image_size(camera)
        found = match_pixels(
            points, camera.camera_from_lidar, camera.intrinsics, height, width, min_depth,
            rounding, bounds,
        )  # fmt: skip
        image = torch.full_like(found.point, number)
        parts.append(Matches(found.point, image, found.row, found.col))
    return Matches.joined(parts)


def cameras_of(frame: Frame) -> tuple[Camera, ...]:
    """The cameras of a frame.

    Raises:
        DataError: it has none.
    """
    if not frame.cameras:
        raise DataError(
            f"frame {frame.id} has no cameras to match points with",
            field="cameras",
            remedy="load it with Field.IMAGES, from a dataset that has images",
        )
    return frame.cameras


def matches_of(frame: Frame) -> Matches:
    """The matches of a frame.

    Raises:
        ConfigError: none were made.
    """
    if frame.matches is None:
        raise ConfigError(
            f"frame {frame.id} has no matches", remedy="put MatchPixels before this transform"
        )
    return frame.matches


def outside_cuboid(points: Tensor, fraction: float, center: int) -> Tensor:
    """Points that stay when a cuboid is cut out, (N,) bool.

    Args:
        points: (N, 3) m.
        fraction: edge of the cuboid over the extent of the cloud, on every axis.
        center: the point in the middle of the cuboid.
    """
    extent = points.amax(0) - points.amin(0)
    half = extent * fraction / 2
    low, high = points[center] - half, points[center] + half
    return ~((points > low) & (points < high)).all(1)


def enough_pairs_left(before: Matches, after: Matches, cameras: int, min_pairs: int) -> bool:
    """Whether every camera that had matches keeps at least ``min_pairs`` of them."""
    had = torch.bincount(before.image, minlength=cameras)
    has = torch.bincount(after.image, minlength=cameras)
    return bool(((has >= min_pairs) | (had == 0)).all())


def drop_cuboid(frame: Frame, fraction: float, center: int, min_pairs: int = 1024) -> Frame:
    """``frame`` without the points strictly inside a cuboid, or unchanged.

    It is unchanged when a camera would be left with fewer than ``min_pairs`` matches; a camera
    that has none to begin with has no say. Arguments as ``outside_cuboid``.
    """
    kept = frame.select(outside_cuboid(frame.points, fraction, center))
    accepted = enough_pairs_left(matches_of(frame), matches_of(kept), len(frame.cameras), min_pairs)
    return kept if accepted else frame


def crop_pixels(row: Tensor, col: Tensor, crop: Crop, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of a crop that is resized to ``size``.

    Args:
        row, col: (M,) int64 pixels of the image.
        crop: the rectangle.
        size: (height, width) it is brought to.

    Returns:
        (M,) int64 row and col, halves rounded to even, and (M,) bool whether they are inside.
    """
    new_row = _round_ratio(row - crop.top, size[0], crop.height)
    new_col = _round_ratio(col - crop.left, size[1], crop.width)
    inside = (new_row >= 0) & (new_row < size[0]) & (new_col >= 0) & (new_col < size[1])
    return new_row, new_col, inside


def resize_pixels(
    row: Tensor, col: Tensor, before: Size, after: Size, rounding: Rounding = "round"
) -> tuple[Tensor, Tensor]:
    """Pixels of an image resized as a whole; the last row and column hold what rounds up."""
    if rounding == "floor":
        return row * after[0] // before[0], col * after[1] // before[1]
    new_row = _round_ratio(row, after[0], before[0]).clamp(max=after[0] - 1)
    new_col = _round_ratio(col, after[1], before[1]).clamp(max=after[1] - 1)
    return new_row, new_col


def _round_ratio(pixels: Tensor, numerator: int, denominator: int) -> Tensor:
    return torch.round(pixels.double() * numerator / denominator).to(torch.int64)


def crop_accepted(inside: Tensor, min_pairs: int = 1024, min_fraction: float = 0.75) -> bool:
    """Whether a crop keeps more than ``min_pairs`` or ``min_fraction`` of the pairs.

    Args:
        inside: (M,) bool, which of a camera's pairs fall into the crop. Of no pairs there is
            nothing to lose: accepted.
    """
    kept = int(inside.sum())
    return len(inside) == 0 or kept > min_pairs or kept > min_fraction * len(inside)


def first_accepted(
    crops: Iterator[Crop],
    row: Tensor,
    col: Tensor,
    size: Size,
    min_pairs: int = 1024,
    min_fraction: float = 0.75,
) -> Crop | None:
    """The first of ``crops`` that keeps enough of a camera's pairs; takes no more than it needs."""
    for crop in crops:
        inside = crop_pixels(row, col, crop, size)[2]
        if crop_accepted(inside, min_pairs, min_fraction):
            return crop
    return None


def by_image(matches: Matches, images: int) -> list[Matches]:
    """The matches of each of ``images`` images, in their order."""
    if bool((matches.image.diff() < 0).any()):
        return [matches[matches.image == number] for number in range(images)]
    ends = torch.bincount(matches.image, minlength=images).cumsum(0).tolist()
    return [matches[slice(*part)] for part in zip([0, *ends[:-1]], ends, strict=True)]


def crop_matches(matches: Matches, crops: Sequence[Crop], size: Size) -> Matches:
    """Matches after crop i of camera i is resized to ``size``; pairs outside are dropped."""
    parts = []
    for crop, part in zip(crops, by_image(matches, len(crops)), strict=True):
        row, col, inside = crop_pixels(part.row, part.col, crop, size)
        parts.append(replace(part, row=row, col=col)[inside])
    return Matches.joined(parts)


def flip_matches(matches: Matches, flipped: Tensor, width: Tensor | int) -> Matches:
    """Matches after the images ``flipped`` (I,) bool, ``width`` pixels wide, are mirrored."""
    widths = torch.as_tensor(width).expand(flipped.shape)[matches.image]
    col = torch.where(flipped[matches.image], widths - 1 - matches.col, matches.col)
    return replace(matches, col=col)


class MatchPixels:
    """Fill ``frame.matches``: every point with each pixel it projects to.

    Args:
        min_depth: m along the optical axis; points must be deeper.
        rounding, bounds: see ``geometry.projection``; the defaults are SLidR's.
        allow_none: accept a frame no point of which falls into any image.

    Raises:
        DataError: no point falls into any image, which a wrong calibration does.
    """

    def __init__(
        self,
        min_depth: float = 1.0,
        rounding: Rounding = "round",
        bounds: Bounds = "strict",
        allow_none: bool = False,
    ) -> None:
        self.min_depth: float = min_depth
        self.rounding: Rounding = rounding
        self.bounds: Bounds = bounds
        self.allow_none = allow_none

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        found = match_frame(frame, self.min_depth, self.rounding, self.bounds)
        if not self.allow_none and len(found.point) == 0:
            raise DataError(
                f"frame {frame.id}: none of its {len(frame)} points falls into its "
                f"{counted(len(frame.cameras), 'image')}",
                field="matches",
                remedy="check intrinsics, camera_from_lidar and its direction; "
                "`lidarssl data check` counts the points of every image",
            )
        return replace(frame, matches=found)


class DropCuboids:
    """Remove the points of one random cuboid, see ``drop_cuboid``.

    Args:
        max_fraction: largest edge of the cuboid over the extent of the cloud.
        min_pairs: see ``drop_cuboid``.
    """

    def __init__(self, max_fraction: float = 0.2, min_pairs: int = 1024) -> None:
        self.max_fraction, self.min_pairs = max_fraction, min_pairs

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        if len(frame) == 0:
            return frame
        fraction = rng.random() * self.max_fraction
        return drop_cuboid(frame, fraction, int(rng.integers(len(frame))), self.min_pairs)


def draw_crop(
    image: Size,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
    attempts: int = 10,
) -> Crop:
    """A rectangle of random area and aspect: Inception's crop.

    Args:
        image: (height, width).
        scale: range of its area over that of the image, uniform.
        ratio: range of its width / height, log-uniform.
        rng: generator.
        attempts: draws until one fits; then the largest centred rectangle of a valid ratio.
    """
    height, width = image
    for _ in range(attempts):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            return Crop(top, int(rng.integers(width - w + 1)), h, w)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


class ResizedCrop:
    """Cut a random rectangle out of every image and bring it to ``size``.

    Crops are drawn until one keeps enough matches, at most ``max_draws`` times; then the whole
    image is taken. The published code draws for ever.

    Args:
        size: (height, width).
        scale, ratio: see ``draw_crop``.
        min_pairs, min_fraction: a crop is kept when more than ``min_pairs`` of a camera's
            matches, or more than ``min_fraction`` of them, fall into it.
        max_draws: see above.
    """

    def __init__(
        self,
        size: Size = (224, 416),
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: tuple[float, float] = (14 / 9, 17 / 9),
        min_pairs: int = 1024,
        min_fraction: float = 0.75,
        max_draws: int = 100,
    ) -> None:
        if not (0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]):
            raise ConfigError(f"scale {scale} or ratio {ratio} is no range", field="scale, ratio")
        self.size: Size = (size[0], size[1])
        self.scale, self.ratio = scale, ratio
        self.min_pairs, self.min_fraction, self.max_draws = min_pairs, min_fraction, max_draws

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        matches = matches_of(frame)
        parts = by_image(matches, len(frame.cameras))
        crops = [
            self._draw(camera, part, rng) for camera, part in zip(frame.cameras, parts, strict=True)
        ]
        cameras = (
            crop_camera(camera, crop, self.size)
            for camera, crop in zip(frame.cameras, crops, strict=True)
        )
        return replace(
            frame, cameras=tuple(cameras), matches=crop_matches(matches, crops, self.size)
        )

    def _draw(self, camera: Camera, pairs: Matches, rng: np.random.Generator) -> Crop:
        image = image_size(camera)
        draws = (draw_crop(image, self.scale, self.ratio, rng) for _ in range(self.max_draws))
        crop = first_accepted(
            draws, pairs.row, pairs.col, self.size, self.min_pairs, self.min_fraction
        )
        return crop or Crop.whole(image)


class ResizeWhole:
    """Bring every image to ``size`` (height, width), all of it; every match is kept.

    SLidR's validation transform, which its code calls a centre crop, and ScaLR's only one.

    Args:
        size: see above.
        rounding: of the pixels of matches, ``round`` (SLidR) or ``floor`` (ScaLR).
        antialias: smooth before reducing.
    """

    def __init__(
        self, size: Size = (224, 416), rounding: Rounding = "round", antialias: bool = False
    ) -> None:
        self.size: Size = (size[0], size[1])
        self.rounding: Rounding = rounding
        self.antialias = antialias

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        matches = matches_of(frame)
        row, col = matches.row.clone(), matches.col.clone()
        cameras = []
        for number, camera in enumerate(frame.cameras):
            before, mine = image_size(camera), true_rows(matches.image == number)
            row[mine], col[mine] = resize_pixels(
                matches.row[mine], matches.col[mine], before, self.size, self.rounding
            )
            whole = Crop.whole(before)
            cameras.append(crop_camera(camera, whole, self.size, self.antialias))
        return replace(frame, cameras=tuple(cameras), matches=replace(matches, row=row, col=col))


class FlipImages:
    """Mirror every image left to right, each with its own draw."""

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = probability

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        flipped = rng.random(len(frame.cameras)) < self.probability
        widths = torch.tensor([image_size(camera)[1] for camera in frame.cameras])
        cameras = (
            flip_camera(camera) if flip else camera
            for camera, flip in zip(frame.cameras, flipped, strict=True)
        )
        matches = flip_matches(matches_of(frame), torch.from_numpy(flipped), widths)
        return replace(frame, cameras=tuple(cameras), matches=matches)


def order_cameras(frame: Frame, order: Sequence[int]) -> Frame:
    """The frame with camera ``order[i]`` in place i; matches sorted by their new camera."""
    cameras = tuple(frame.cameras[number] for number in order)
    matches = frame.matches
    if matches is not None:
        place = torch.empty(len(order), dtype=torch.int64)
        place[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(order))
        image = place[matches.image]
        matches = replace(matches, image=image)[image.argsort(stable=True)]
    return replace(frame, cameras=cameras, matches=matches)


class ShuffleCameras:
    """Put the cameras into a random order."""

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        return order_cameras(frame, rng.permutation(len(frame.cameras)).tolist())
