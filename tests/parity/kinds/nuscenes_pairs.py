"""nuScenes point-pixel pairs: SLidR's and ScaLR's rules, float32 chain and direct."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lidarssl.geometry.projection import (
    PixelMatches,
    devkit_float32_chain,
    match_pixels,
    pinhole,
    select_pixels,
)
from parity.case import Case

CALIBRATION = {"points", "lidar2ego", "ego2global", "cam_ego2global", "cam2ego", "K"}


def recognises(case: Case) -> bool:
    arrays = set(case.manifest.get("arrays", {}))
    return (
        "map_pointcloud_to_image" in case.reference
        and arrays >= CALIBRATION
        and "image_size" in case.args
    )


def check(case: Case) -> None:
    calibration = {
        name: torch.from_numpy(array).double()
        for name, array in case.arrays.items()
        if name in CALIBRATION | {"lidar2cam"}
    }
    points = torch.from_numpy(case.arrays["points"][:, :3])
    height, width = case.args["image_size"]
    min_depth = case.args["min_dist"]

    def chained(camera: int) -> Tensor:
        return devkit_float32_chain(
            points,
            calibration["lidar2ego"],
            calibration["ego2global"],
            calibration["cam_ego2global"][camera],
            calibration["cam2ego"][camera],
        )

    def by_chain(camera: int, rounding: str) -> PixelMatches:
        projection = pinhole(chained(camera), calibration["K"][camera])
        return select_pixels(projection, height, width, min_depth, rounding)  # type: ignore[arg-type]

    def directly(camera: int) -> PixelMatches:
        matrix, intrinsics = calibration["lidar2cam"][camera], calibration["K"][camera]
        return match_pixels(points, matrix, intrinsics, height, width, min_depth)

    cameras = len(calibration["K"])
    slidr = _pairs(cameras, lambda camera: by_chain(camera, "round"))
    _assert_equal(case, slidr, "pairs_slidr_points", "pairs_slidr_images")
    _assert_equal(case, _pairs(cameras, directly), "pairs_direct_points", "pairs_direct_images")
    scalr = _pairs(cameras, lambda camera: by_chain(camera, "floor"))
    _assert_equal(case, scalr, "pairs_slidr_points", "pixels_scalr")


def _pairs(cameras: int, match: Callable[[int], PixelMatches]) -> np.ndarray:
    """(M, 4) point, camera, row, col."""
    found = [(camera, match(camera)) for camera in range(cameras)]
    return torch.cat(
        [torch.stack([m.point, m.point * 0 + camera, m.row, m.col], 1) for camera, m in found]
    ).numpy()


def _assert_equal(case: Case, pairs: np.ndarray, points: str, pixels: str) -> None:
    if pixels in case.arrays:
        expected = np.concatenate([case.arrays[points][:, None], case.arrays[pixels]], 1)
        np.testing.assert_array_equal(pairs, expected, err_msg=pixels)
