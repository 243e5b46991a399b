"""Lidar points in images: the pinhole projection and the pixels that points are paired with.

A pixel is (row, col), an integer at pixel centres; uv is (col, row). The field's code differs in
rounding, border and depth rules; each is an option here so that published pairs can be remade.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.geometry.poses import pose_from_rotation, transform_points
from lidarssl.rows import true_rows

Rounding = Literal["round", "floor"]
Bounds = Literal["strict", "inclusive", "half_open", "nearest"]


class Projection(NamedTuple):
    """Where points fall in the plane of an image.

    Attributes:
        uv: (N, 2) float64 (col, row) in pixels; anything, also NaN, at depth 0 or behind.
        depth: (N,) float64 m along the optical axis.
    """

    uv: Tensor
    depth: Tensor


class PixelMatches(NamedTuple):
    """Points that fall into one image, in increasing order of the point.

    Attributes:
        point, row, col: (M,) int64.
    """

    point: Tensor
    row: Tensor
    col: Tensor


def pinhole(points: Tensor, intrinsics: Tensor) -> Projection:
    """Project points (N, 3) m of the camera frame by intrinsics (3, 3), in float64."""
    points = points.to(torch.float64)
    homogeneous = points @ intrinsics.to(points).T
    return Projection(homogeneous[:, :2] / homogeneous[:, 2:], points[:, 2])


def project(points: Tensor, camera_from_lidar: Tensor, intrinsics: Tensor) -> Projection:
    """Project lidar points into an image.

    Args:
        points: (N, 3) m, lidar frame.
        camera_from_lidar: (4, 4).
        intrinsics: (3, 3), pixels.
    """
    return pinhole(transform_points(points, camera_from_lidar), intrinsics)


def inside_image(
    projection: Projection,
    height: int,
    width: int,
    min_depth: float = 1.0,
    bounds: Bounds = "strict",
) -> Tensor:
    """Which points an image sees (no occlusion), (N,) bool.

    Args:
        projection: see there.
        height, width: of the image in pixels.
        min_depth: m; points must be deeper.
        bounds: ``strict`` 0 < u < W-1 (SLidR, ScaLR), ``inclusive`` 0 <= u <= W-1 (NCLR),
            ``half_open`` 0 <= u < W (OpenPCDet), ``nearest`` -0.5 <= u < W-0.5: all that an
            image covers whose pixel centres are integers, and never rounded out of it.
    """
    u, v = projection.uv.unbind(1)
    if bounds == "strict":
        inside = (u > 0) & (u < width - 1) & (v > 0) & (v < height - 1)
    elif bounds == "inclusive":
        inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    elif bounds == "half_open":
        inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    elif bounds == "nearest":
        inside = (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)
    else:
        raise ConfigError(f"unknown bounds '{bounds}'", field="bounds")
    return inside & (projection.depth > min_depth)


def select_pixels(
    projection: Projection,
    height: int,
    width: int,
    min_depth: float = 1.0,
    rounding: Rounding = "round",
    bounds: Bounds = "strict",
    keep: Tensor | None = None,
) -> PixelMatches:
    """Points that fall into an image, and the pixel of each.

    Args:
        projection, height, width, min_depth, bounds: as ``inside_image``.
        rounding: ``round`` to the nearest pixel, halves to even (SLidR), or ``floor`` (ScaLR).
        keep: (N,) bool, points that may be matched at all; None = all.
    """
    if rounding not in ("round", "floor"):
        raise ConfigError(f"unknown rounding '{rounding}'", field="rounding")
    inside = inside_image(projection, height, width, min_depth, bounds)
    if keep is not None:
        inside = inside & keep
    point = true_rows(inside)
    nearest = torch.round if rounding == "round" else torch.floor
    col, row = (
        nearest(axis.index_select(0, point)).to(torch.int64) for axis in projection.uv.unbind(1)
    )
    return PixelMatches(point, row, col)


def match_pixels(
    points: Tensor,
    camera_from_lidar: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    min_depth: float = 1.0,
    rounding: Rounding = "round",
    bounds: Bounds = "strict",
    keep: Tensor | None = None,
) -> PixelMatches:
    """``select_pixels`` of ``project`` up to rounding; the defaults are SLidR's rule (section 3.1).

    It is fastest where the numbers of an axis of ``points`` lie side by side in memory.

    ScaLR: ``rounding="floor"``; on KITTI also ``min_depth=-inf, keep=points[:, 0] > 1``.
    NCLR: ``min_depth=0, bounds="inclusive"`` with the intrinsics of its reduced image.
    """
    axes = points.to(torch.float64).t()
    camera_from_lidar = camera_from_lidar.to(axes)
    # One matrix for all; to leave out points behind the camera first takes longer.
    matrix = torch.cat([intrinsics.to(axes) @ camera_from_lidar[:3], camera_from_lidar[2:3]])
    seen = (matrix[:, :3] @ axes).add_(matrix[:, 3:])
    projection = Projection(seen[:2].div_(seen[2]).t(), seen[3])
    return select_pixels(projection, height, width, min_depth, rounding, bounds, keep)


def scale_intrinsics(intrinsics: Tensor, rows: float, cols: float) -> Tensor:
    """Intrinsics (3, 3) of an image resized by the factors ``rows`` and ``cols``.

    The plain ratio of the field's code: pixel coordinates are multiplied by the factor.
    """
    factors = torch.tensor([cols, rows, 1.0], dtype=intrinsics.dtype, device=intrinsics.device)
    return intrinsics * factors[:, None]


def kitti_camera(
    projection: Tensor, rectified_from_lidar: Tensor, lidar_translation: bool = True
) -> tuple[Tensor, Tensor]:
    """Intrinsics (3, 3) and camera_from_lidar (4, 4), float64, of a rectified KITTI camera.

    Args:
        projection: (3, 4), P0..P3 of the calibration file: intrinsics and, in the last column,
            intrinsics times the offset of this camera from camera 0.
        rectified_from_lidar: (4, 4), R0_rect Tr_velo_to_cam (SemanticKITTI's ``Tr``).
        lidar_translation: False drops the translation of ``rectified_from_lidar``, as NCLR's
            SemanticKITTI loader does: an error of ~0.3 m, only to remake its pairs.
    """
    projection = projection.to(torch.float64)
    intrinsics = projection[:, :3].clone()
    offset = torch.linalg.solve(intrinsics, projection[:, 3])
    rectified = rectified_from_lidar.to(torch.float64).clone()
    if not lidar_translation:
        rectified[:3, 3] = 0
    identity = torch.eye(3, dtype=torch.float64)
    return intrinsics, pose_from_rotation(identity, offset) @ rectified


def project_rectified(
    points: Tensor, rectified_from_lidar: Tensor, projection: Tensor
) -> Projection:
    """OpenPCDet's KITTI projection: divides by the depth before the camera's own offset.

    Args:
        points: (N, 3) m, lidar frame.
        rectified_from_lidar: (4, 4).
        projection: (3, 4), P2 of the calibration file.

    Returns:
        Pixels ~1 % of a pixel away from ``project`` for KITTI's 3 mm offset; depth in the
        rectified frame of camera 0. ``inside_image(..., min_depth=0, bounds="half_open")``
        is OpenPCDet's field-of-view flag.
    """
    rectified = transform_points(points, rectified_from_lidar)
    matrix = projection.to(rectified)
    image = rectified @ matrix[:, :3].T + matrix[:, 3]
    return Projection(image[:, :2] / rectified[:, 2:], rectified[:, 2])


def devkit_float32_chain(
    points: Tensor,
    ego_from_lidar: Tensor,
    world_from_ego: Tensor,
    world_from_camera_ego: Tensor,
    ego_from_camera: Tensor,
) -> Tensor:
    """Points in the camera frame, rounded to float32 after each of eight steps.

    That is how the nuScenes devkit moves a cloud; at global coordinates of ~1e3 m it loses
    ~0.1 mm, which moves one pair in three hundred by a pixel. Use ``poses.camera_from_lidar``
    unless published pairs must be remade bit by bit.

    Args:
        points: (N, 3) m, lidar frame.
        ego_from_lidar, world_from_ego, world_from_camera_ego, ego_from_camera: (4, 4) float64.

    Returns:
        (N, 3) float32 m, camera frame.
    """
    points = points.float()
    for pose in (ego_from_lidar, world_from_ego):
        points = (points.double() @ pose[:3, :3].T).float()
        points = (points.double() + pose[:3, 3]).float()
    for pose in (world_from_camera_ego, ego_from_camera):
        points = (points.double() - pose[:3, 3]).float()
        points = (points.double() @ pose[:3, :3]).float()
    return points
