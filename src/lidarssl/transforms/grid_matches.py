"""Matches of points with the cells of a grid over the images, and mirrored scenes.

Source: Zhang et al., "NCLR: Self-supervised pretraining by 2D-3D neural calibration"
(arXiv 2401.12452) and its code, whose feature maps have a quarter of the image's resolution.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.frame import Camera, Frame, Matches
from lidarssl.geometry.projection import match_pixels, scale_intrinsics
from lidarssl.transforms.images import flip_camera, image_of, image_size
from lidarssl.transforms.paired import cameras_of
from lidarssl.transforms.points import change_lidar_frame


def grid_intrinsics(intrinsics: Tensor, stride: int, pixel_centers: bool = True) -> Tensor:
    """Intrinsics in cells of a grid of ``stride`` pixels per cell.

    Args:
        intrinsics: (..., 3, 3), pixels.
        stride: pixels.
        pixel_centers: pixels and cells have their centres at integers, so that a coordinate
            becomes (u + 0.5) / stride - 0.5; or NCLR's plain u / stride, which places every
            point up to half a cell too far right and down.

    Returns:
        (..., 3, 3) in the dtype of ``intrinsics``.
    """
    scaled = scale_intrinsics(intrinsics, 1 / stride, 1 / stride)
    if not pixel_centers:
        return scaled
    shift = 0.5 / stride - 0.5
    offset = intrinsics.new_tensor([shift, shift, 0.0])
    return scaled + offset[:, None] * intrinsics[..., 2:, :]


def grid_size(camera: Camera, stride: int) -> tuple[int, int]:
    """(rows, columns) of the grid over a camera's image.

    Raises:
        ConfigError: the image is not covered by whole cells.
        DataError: the camera has no image.
    """
    height, width = image_size(camera)
    if height % stride or width % stride:
        raise ConfigError(
            f"image {height} x {width} of {camera.name} is not made of cells of {stride} pixels",
            field="image_size",
            remedy=f"resize images to a multiple of {stride}",
        )
    return height // stride, width // stride


def match_grid(
    frame: Frame, stride: int = 4, min_depth: float = 0.1, pixel_centers: bool = True
) -> Matches:
    """Pairs of every point with the grid cell it projects to, camera after camera, no occlusion.

    Arguments and what is raised: see ``MatchGrid``.
    """
    parts, points = [], frame.points.double()
    for number, camera in enumerate(cameras_of(frame)):
        rows, cols = grid_size(camera, stride)
        found = match_pixels(
            points,
            camera.camera_from_lidar,
            grid_intrinsics(camera.intrinsics.double(), stride, pixel_centers),
            rows,
            cols,
            min_depth,
            bounds="nearest" if pixel_centers else "inclusive",
        )
        image = torch.full_like(found.point, number)
        parts.append(Matches(found.point, image, found.row, found.col))
    return Matches.joined(parts)


class MatchGrid:
    """Fill ``frame.matches`` with the cells (row, col) of a grid over each image.

    A frame of which no camera sees a point gets no matches, which is no error.

    Args:
        stride: pixels per cell and axis; sizes of images must be multiples of it.
        min_depth: m along the optical axis; points must be deeper.
        pixel_centers: every point belongs to the cell it falls into, up to the border of the
            image; False is NCLR's rule, plain ratio and 0 <= u <= columns - 1, only to remake
            its pairs.

    Raises:
        ConfigError: no such stride or depth, or a size of an image is no multiple of the stride.
        DataError: the frame has no cameras, or one without an image.
    """

    def __init__(self, stride: int = 4, min_depth: float = 0.1, pixel_centers: bool = True) -> None:
        if stride < 1:
            raise ConfigError(f"cells of {stride} pixels", field="stride")
        if not 0 <= min_depth < math.inf:
            raise ConfigError(
                f"smallest depth {min_depth} m",
                field="min_depth",
                remedy="a finite number from 0; points behind a camera are never seen",
            )
        self.stride, self.min_depth, self.pixel_centers = stride, min_depth, pixel_centers

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        found = match_grid(frame, self.stride, self.min_depth, self.pixel_centers)
        return replace(frame, matches=found)


def mirror_scene(frame: Frame) -> Frame:
    """A mirrored world in mirrored images: y -> -y in the lidar frame, columns left to right.

    A camera that sees a mirrored world mirrored is a camera again: ``camera_from_lidar`` stays a
    rigid motion and the focal lengths positive. ``pose`` still leads to the world as it was and
    mirrors. A feature map made ahead of time is dropped: the mirrored image has another.

    Raises:
        DataError: a camera has no image.
    """
    mirrored = change_lidar_frame(frame, torch.diag(torch.tensor([1.0, -1.0, 1.0])))
    return replace(mirrored, cameras=tuple(map(_turn_x_axis, mirrored.cameras)))


def _turn_x_axis(camera: Camera) -> Camera:
    """``flip_camera`` with the sign of its focal length moved into the camera frame."""
    signs = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    flipped = flip_camera(camera)
    return replace(
        flipped,
        intrinsics=flipped.intrinsics * signs[:3],
        camera_from_lidar=signs[:, None] * camera.camera_from_lidar.double(),
    )


class MirrorScene:
    """``mirror_scene`` with probability ``probability``, one draw for a frame.

    Raises:
        ConfigError: the probability is none, or the frame has matches already.
    """

    def __init__(self, probability: float = 0.5) -> None:
        _check_probability(probability)
        self.probability = probability

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        _refuse_matches(frame, "MirrorScene")
        return mirror_scene(frame) if rng.random() < self.probability else frame


def mirror_intrinsics(camera: Camera) -> Camera:
    """A camera with cx -> W - cx and nothing else changed; see ``MirrorIntrinsics``."""
    intrinsics = camera.intrinsics.clone()
    intrinsics[0, 2] = image_size(camera)[1] - intrinsics[0, 2]
    return replace(camera, intrinsics=intrinsics)


class MirrorIntrinsics:
    """The accident of NCLR's published code: a mirroring of K that the image does not follow.

    cx becomes W - cx, for each camera with its own draw; the image and the focal length stay.
    Points are thus paired with pixels |W - 2 cx| beside those that show them. Only to remake
    published results.

    Raises:
        ConfigError: the probability is none, or the frame has matches already.
    """

    def __init__(self, probability: float = 0.5) -> None:
        _check_probability(probability)
        self.probability = probability

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        _refuse_matches(frame, "MirrorIntrinsics")
        mirrored = rng.random(len(frame.cameras)) < self.probability
        cameras = (
            mirror_intrinsics(camera) if mirror else camera
            for camera, mirror in zip(frame.cameras, mirrored, strict=True)
        )
        return replace(frame, cameras=tuple(cameras))


class SwapChannels:
    """RGB -> BGR, as NCLR's code feeds the images that it reads with OpenCV.

    A feature map made ahead of time is dropped: the other image has another.
    """

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        cameras = (
            replace(camera, image=image_of(camera).flip(0), features=None)
            for camera in frame.cameras
        )
        return replace(frame, cameras=tuple(cameras))


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ConfigError(f"{probability} is no probability", field="probability")


def _refuse_matches(frame: Frame, transform: str) -> None:
    if frame.matches is not None:
        raise ConfigError(
            f"{transform} would leave the matches behind", remedy="put it before MatchGrid"
        )
