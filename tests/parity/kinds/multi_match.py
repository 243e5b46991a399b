"""NCLR's multi-match InfoNCE, the correspondences it takes, and the reading of its plane."""

from __future__ import annotations

import math
import re

import numpy as np
import torch

from lidarssl.backbones.bev import BevGrid
from lidarssl.losses.contrastive import multi_match_info_nce, near_pixels
from parity.case import Case

PARTS = {
    "loss": {"q", "k", "match", "loss_multi"},
    "correspondences": {"cam_coords", "corr"},
    "reading": {"keypoints", "coords", "interp"},
}
ORIGIN, VOXEL = (-51.2, -51.2), 0.05
"""Which the reference has in its code, whatever its configuration says."""


def recognises(case: Case) -> bool:
    return "MultiMatchInfoNCELoss" in case.reference and bool(parts(case))


def check(case: Case) -> None:
    checks = {
        "loss": check_loss,
        "correspondences": check_correspondences,
        "reading": check_reading,
    }
    for part in parts(case):
        checks[part](case)


def parts(case: Case) -> list[str]:
    return [part for part, arrays in PARTS.items() if arrays <= case.array_names]


def check_loss(case: Case) -> None:
    q, k = (torch.from_numpy(case.arrays[name]).requires_grad_() for name in ("q", "k"))
    matches = torch.from_numpy(case.arrays["match"])
    loss = multi_match_info_nce(q, k, matches, case.args["temperature"])
    loss.backward()
    np.testing.assert_allclose(loss.item(), case.arrays["loss_multi"], rtol=1e-5)
    for name, gradient in (("grad_q", q.grad), ("grad_k", k.grad)):
        if name in case.arrays:
            assert gradient is not None
            expected = case.arrays[name]
            # Sums of terms as large as the largest one, in float32.
            rounding = 1e-6 * np.abs(expected).max()
            np.testing.assert_allclose(
                gradient.numpy(), expected, rtol=1e-3, atol=rounding, err_msg=name
            )


def check_correspondences(case: Case) -> None:
    args, pixels = case.args, torch.from_numpy(case.arrays["cam_coords"])
    near = near_pixels(pixels, args["H"], args["W"], args["dist_thres"])
    np.testing.assert_array_equal(near.numpy(), case.arrays["corr"].astype(bool))


def check_reading(case: Case) -> None:
    shape, factor = stated_map(case)
    maps = torch.from_numpy(case.fill.value("bev", shape)).double() * factor
    cell = VOXEL * case.args["bev_stride"]
    grid = BevGrid(ORIGIN, (cell, cell), width=shape[3], height=shape[2])
    # A point on the border is outside or inside by the rounding of float32.
    points = torch.from_numpy(case.arrays["keypoints"][:, :3]).float()
    frame = torch.from_numpy(case.arrays["coords"][:, 0]).long()
    read = grid.read(maps, points, frame, "corners")
    np.testing.assert_allclose(read.numpy(), case.arrays["interp"], rtol=0, atol=1e-4)


def stated_map(case: Case) -> tuple[tuple[int, ...], float]:
    """Its shape, and what multiplies the filled values; the manifest gives both in words."""
    found = re.search(
        r'key "bev" of shape \[([\d, ]+)\] times sqrt\(([\d*]+)\)', case.manifest["conventions"]
    )
    assert found is not None, "the manifest does not say what the map is"
    shape = tuple(int(size) for size in found[1].split(","))
    assert len(shape) == 4
    return shape, math.sqrt(math.prod(int(number) for number in found[2].split("*")))
