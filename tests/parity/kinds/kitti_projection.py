"""KITTI point-pixel pairs by the rules of ScaLR and NCLR, OpenPCDet's field-of-view flag."""

from __future__ import annotations

import math
import re

import numpy as np
import torch

from lidarssl.geometry.projection import (
    PixelMatches,
    inside_image,
    kitti_camera,
    match_pixels,
    project_rectified,
    scale_intrinsics,
)
from parity.case import Case

INPUTS = {"points", "P2", "R0_rect", "Tr_velo_to_cam"}
OUTPUTS = {"scalr_points", "nclr_points", "nclr_fixed_points", "fov_flag"}


def recognises(case: Case) -> bool:
    arrays = set(case.manifest.get("arrays", {}))
    return arrays >= INPUTS and bool(arrays & OUTPUTS) and "image" in case.args


def check(case: Case) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in case.arrays.items()}
    points = arrays["points"][:, :3]
    rectified_from_lidar = arrays["R0_rect"].double() @ arrays["Tr_velo_to_cam"].double()
    height, width = case.args["image"]
    intrinsics, camera_from_lidar = kitti_camera(arrays["P2"], rectified_from_lidar)
    if "scalr_points" in arrays:
        ahead = points[:, 0] > case.args["min_dist"]
        matches = match_pixels(
            points, camera_from_lidar, intrinsics, height, width, -math.inf, "floor", keep=ahead
        )
        _check_pairs(case, "scalr", matches)
    for name, translation in (("nclr", False), ("nclr_fixed", True)):
        if f"{name}_points" not in arrays:
            continue
        rows, cols = case.args["nclr_scaled"]
        _, from_lidar = kitti_camera(arrays["P2"], rectified_from_lidar, translation)
        reduced = scale_intrinsics(intrinsics, rows / height, cols / width)
        matches = match_pixels(
            points, from_lidar, reduced, rows, cols, min_depth=0, bounds="inclusive"
        )
        _check_pairs(case, name, matches)
        if name == "nclr" and "nclr_T" in arrays:
            torch.testing.assert_close(reduced.float(), arrays["nclr_K"])
            torch.testing.assert_close(from_lidar[:3, 3].float(), arrays["nclr_T"])
    if "fov_flag" in arrays:
        projection = project_rectified(points, rectified_from_lidar, arrays["P2"])
        seen = inside_image(projection, height, width, min_depth=0, bounds="half_open")
        agreement = (seen == arrays["fov_flag"]).double().mean().item()
        assert agreement >= _required(case), agreement
        if "proj_uv" in arrays:
            shown = arrays["fov_flag"]
            np.testing.assert_allclose(projection.uv[shown], arrays["proj_uv"][shown], atol=1e-3)
            np.testing.assert_allclose(projection.depth, arrays["depth"], atol=1e-4)


def _required(case: Case) -> float:
    stated = str(case.manifest["tolerance"]["pairs"])
    percent = re.search(r">=\s*([\d.]+)\s*%", stated)
    if percent is None:
        assert "exact" in stated, f"tolerance {stated!r} is not understood"
        return 1.0
    return float(percent.group(1)) / 100


def _check_pairs(case: Case, name: str, matches: PixelMatches) -> None:
    actual = torch.stack(matches, 1).tolist()
    pixels = case.arrays[f"{name}_pixels"].astype(np.int64)
    expected = np.concatenate([case.arrays[f"{name}_points"][:, None], pixels], 1).tolist()
    same = set(map(tuple, actual)) & set(map(tuple, expected))
    assert len(same) >= _required(case) * max(len(actual), len(expected)), (name, len(same))
