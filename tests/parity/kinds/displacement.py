"""NCLR's sample: displaced scan, its calibration, grid intrinsics, overlap masks and pairs."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lidarssl.frame import Camera, Frame, FrameId
from lidarssl.geometry.poses import planar_motion, pose_from_rotation
from lidarssl.geometry.projection import match_pixels, scale_intrinsics
from lidarssl.transforms.displacement import Displacement, displace
from lidarssl.transforms.grid_matches import grid_intrinsics, match_grid, mirror_intrinsics
from parity.case import Case

DRAWS = {"draw_translation", "draw_angle_u", "draw_flip_u"}
INPUTS = {"points_in", "R_in", "T_in", "K_in"}
OUTPUTS = {
    *("points_out", "R_out", "T_out", "K_out"),
    *("img_overlap_masks", "pairing_points", "pairing_images"),
}
ARGUMENTS = {"img_h", "img_w", "downsample", "flip_prob"}


def recognises(case: Case) -> bool:
    return case.array_names >= DRAWS | INPUTS | OUTPUTS and set(case.args) >= ARGUMENTS


def check(case: Case) -> None:
    stride = round(1 / case.args["downsample"])
    frame = _mirrored(displace(_read(case), _motion(case)), case)
    _check_points(case, frame)
    _check_calibration(case, frame, stride)
    found = match_grid(frame, stride, min_depth=0.0, pixel_centers=False)
    pairs = torch.stack([found.point, found.image, found.row, found.col], 1).tolist()
    expected = np.column_stack(
        [case.arrays["pairing_points"], case.arrays["pairing_images"]]
    ).tolist()
    same = set(map(tuple, pairs)) & set(map(tuple, expected))
    assert len(same) >= _share(case, "pairs") * max(len(pairs), len(expected)), len(same)
    masks = torch.stack([_overlap(frame, camera, stride) for camera in frame.cameras]).numpy()
    agreement = (masks == case.arrays["img_overlap_masks"].astype(bool)).mean()
    assert agreement >= _share(case, "mask"), agreement
    # Nearly all cells are empty: those that are not have to agree by themselves.
    hit = case.arrays["img_overlap_masks"].astype(bool)
    assert (masks & hit).sum() >= _share(case, "mask") * (masks | hit).sum()


def _read(case: Case) -> Frame:
    """The undisplaced frame with images of the final size, which only their shape matters of."""
    arrays = {name: torch.from_numpy(case.arrays[name]) for name in INPUTS}
    height, width = int(case.args["img_h"]), int(case.args["img_w"])
    image = torch.zeros((3, height, width), dtype=torch.uint8)
    cameras = []
    for number, original in enumerate(arrays["K_in"].double()):
        rows, cols = _original_size(case, number)
        intrinsics = scale_intrinsics(original, height / rows, width / cols)
        pose = pose_from_rotation(arrays["R_in"][number], arrays["T_in"][number])
        cameras.append(Camera(str(number), str(number), image, intrinsics, pose))
    return Frame(
        id=FrameId("reference", "0", "0"),
        points=arrays["points_in"][:, :3].contiguous(),
        intensity=arrays["points_in"][:, 3].contiguous(),
        cameras=tuple(cameras),
    )


def _original_size(case: Case, camera: int) -> tuple[int, int]:
    """(height, width) in whole pixels that the change of the focal lengths tells."""
    before, after = case.arrays["K_in"][camera], case.arrays["K_out"][camera]
    rows = case.args["img_h"] * case.args["downsample"] * before[1, 1] / after[1, 1]
    cols = case.args["img_w"] * case.args["downsample"] * before[0, 0] / after[0, 0]
    return round(float(rows)), round(float(cols))


def _motion(case: Case) -> Tensor:
    limit = Displacement().limit
    step = case.arrays["draw_translation"].astype(np.float32).clip(-limit, limit)
    # The reference multiplies row vectors, so its angle counts clockwise.
    return planar_motion(torch.from_numpy(step), -2 * math.pi * float(case.arrays["draw_angle_u"]))


def _mirrored(frame: Frame, case: Case) -> Frame:
    mirrored = case.arrays["draw_flip_u"] < case.args["flip_prob"]
    cameras = (
        mirror_intrinsics(camera) if mirror else camera
        for camera, mirror in zip(frame.cameras, mirrored, strict=True)
    )
    return replace(frame, cameras=tuple(cameras))


def _check_points(case: Case, frame: Frame) -> None:
    found, expected = frame.points.numpy(), case.arrays["points_out"][:, :3]
    tolerance = _number(case, "points", "atol")
    close = np.abs(found - expected) <= tolerance
    # Far from the sensor the last place of float32 is as large as the tolerance. Where the
    # reference's steps in float32 lead to its value, ours may be a few last places beside it.
    steps = _steps_in_float32(case)
    last_place = np.spacing(np.abs(steps).max(1, keepdims=True))
    rounded = np.abs(steps - expected) <= tolerance
    assert (close | (rounded & (np.abs(found - steps) <= 3 * last_place))).all()
    assert close.mean() >= 0.999
    np.testing.assert_array_equal(frame.intensity.numpy(), case.arrays["points_out"][:, 3])


def _steps_in_float32(case: Case) -> np.ndarray:
    """Displaced points (N, 3), rounded to float32 after the step and in the turn."""
    motion = _motion(case).numpy()
    turn = motion[:3, :3].astype(np.float32)
    step = motion[:3, :3].T @ motion[:3, 3]
    return (case.arrays["points_in"][:, :3] + step.astype(np.float32)) @ turn.T


def _check_calibration(case: Case, frame: Frame, stride: int) -> None:
    poses = torch.stack([camera.camera_from_lidar for camera in frame.cameras]).numpy()
    intrinsics = torch.stack([camera.intrinsics for camera in frame.cameras])
    reduced = grid_intrinsics(intrinsics, stride, pixel_centers=False).numpy()
    tolerance = _number(case, "R_T_K", "rtol")
    # The reference rounds sine and cosine to float32: half a unit in the last place of each.
    np.testing.assert_allclose(
        poses[:, :3, :3], case.arrays["R_out"], rtol=tolerance, atol=2.0**-24
    )
    np.testing.assert_allclose(poses[:, :3, 3], case.arrays["T_out"], rtol=tolerance)
    np.testing.assert_allclose(reduced, case.arrays["K_out"], rtol=tolerance)


def _overlap(frame: Frame, camera: Camera, stride: int) -> Tensor:
    """The cells that a point falls into, (h, w) bool."""
    assert camera.image is not None
    height, width = (size // stride for size in camera.image.shape[-2:])
    intrinsics = grid_intrinsics(camera.intrinsics, stride, pixel_centers=False)
    found = match_pixels(
        frame.points, camera.camera_from_lidar, intrinsics, height, width, 0.0, bounds="nearest"
    )
    mask = torch.zeros((height, width), dtype=torch.bool)
    mask[found.row, found.col] = True
    return mask


def _share(case: Case, name: str) -> float:
    stated = re.search(r">=\s*([\d.]+)\s*%", str(case.manifest["tolerance"][name]))
    assert stated is not None, f"tolerance of {name} is not understood"
    return float(stated.group(1)) / 100


def _number(case: Case, name: str, kind: str) -> float:
    stated = re.search(rf"{kind}\s*([\d.e+-]+)", str(case.manifest["tolerance"][name]))
    assert stated is not None, f"tolerance of {name} is not understood"
    return float(stated.group(1))
