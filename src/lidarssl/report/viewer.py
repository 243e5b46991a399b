"""A live 3-D view of scans and cameras, in the rerun viewer (optional)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidarssl.errors import require
from lidarssl.frame import Camera, Frame
from lidarssl.report.pictures import ArrayLike, pca_rgb

POINT_RADIUS = 0.04


@dataclass
class Cells:
    """Boxes of one size, e.g. occupied space.

    Attributes:
        centers: (M, 3) m, lidar frame.
        size: along x, y, z, m.
        colors: (M, 3) RGB 0..255.
    """

    centers: Tensor
    size: tuple[float, float, float]
    colors: Tensor


@dataclass
class Scene:
    """A frame and the ways to colour its points.

    Attributes:
        colors: (N, 3) RGB 0..255 by name, e.g. truth, prediction; see ``class_colors`` and
            ``feature_colors``.
        cells: boxes beside the points, by name.
    """

    frame: Frame
    colors: Mapping[str, Tensor]
    cells: Mapping[str, Cells] = field(default_factory=dict)


def class_colors(labels: Tensor, palette: Sequence[tuple[int, int, int]]) -> Tensor:
    """(N, 3) uint8 colour of each class id (N,)."""
    return torch.tensor(palette, dtype=torch.uint8)[labels.cpu()]


def feature_colors(features: ArrayLike) -> Tensor:
    """(N, 3) uint8 colour of each feature (N, C): their three main directions."""
    return torch.from_numpy(np.round(255 * pca_rgb(features)).astype(np.uint8))


def view(scenes: Sequence[Scene], spawn: bool = True) -> None:
    """Show scenes one after the other on a time line called "frame".

    Each colouring, and each set of cells, is an entity of its own, to be switched on and off in
    the viewer.

    Args:
        spawn: open a window; False only records, for a viewer that is connected already.

    Raises:
        ConfigError: rerun is not installed; the message says how to install it.
    """
    rerun = require("rerun", "viewer")
    rerun.init("lidarssl", spawn=spawn)
    rerun.log("lidar", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    for index, scene in enumerate(scenes):
        rerun.set_time("frame", sequence=index)
        points = _array(scene.frame.points)
        for name, colors in scene.colors.items():
            cloud = rerun.Points3D(points, colors=_array(colors), radii=POINT_RADIUS)
            rerun.log(f"lidar/{name}", cloud)
        for name, cells in scene.cells.items():
            half = np.broadcast_to(np.array(cells.size) / 2, (len(cells.centers), 3))
            boxes = rerun.Boxes3D(
                centers=_array(cells.centers),
                half_sizes=half,
                colors=_array(cells.colors),
                fill_mode="solid",
            )
            rerun.log(f"lidar/{name}", boxes)
        for camera in scene.frame.cameras:
            _log_camera(rerun, camera)


def _log_camera(rerun: ModuleType, camera: Camera) -> None:
    if camera.image is None:
        return
    entity = f"lidar/{camera.name}"
    lidar_from_camera = np.linalg.inv(_array(camera.camera_from_lidar))
    pose = rerun.Transform3D(translation=lidar_from_camera[:3, 3], mat3x3=lidar_from_camera[:3, :3])
    rerun.log(entity, pose)
    height, width = camera.image.shape[1:]
    rerun.log(
        entity,
        rerun.Pinhole(image_from_camera=_array(camera.intrinsics), width=width, height=height),
    )
    image = _array(camera.image).transpose(1, 2, 0)
    rerun.log(entity, rerun.Image(image))


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
