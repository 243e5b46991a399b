"""ALSO's thinning of a scan, queries along its rays and augmentation, with the draws given."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lidarssl.frame import Frame, FrameId
from lidarssl.geometry.decimation import decimate
from lidarssl.geometry.poses import rotation_about_z
from lidarssl.transforms.occupancy import QueryDraws, occupancy_queries
from lidarssl.transforms.points import change_lidar_frame
from parity.case import Case


def recognises(case: Case) -> bool:
    return "create_points" in case.reference and {"non_manifold_points", "voxel"} <= set(case.args)


def check(case: Case) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in case.arrays.items()}
    args, scan = case.args, arrays["points"]
    kept = decimate(scan[:, :3], args["voxel"], "trunc")
    assert torch.equal(scan[kept, :3], arrays["decimated_pos"])
    assert torch.equal(scan[kept, 3:], arrays["decimated_intensity"])

    scan = scan[kept]
    queries = occupancy_queries(scan[:, :3], scan[:, 3], draws(arrays), args["non_manifold_dist"])
    assert torch.equal(queries.occupancy, arrays["occupancies"].long())
    assert torch.equal(queries.intensity, arrays["intensities"][:, 0])
    close(queries.positions, arrays["queries_before_aug"])

    supports = scan
    if len(scan) > args["manifold_points"]:
        supports = scan[arrays["perm_keep"].long()[: args["manifold_points"]]]
    assert torch.equal(supports[:, :3], arrays["pos_before_aug"])
    frame = Frame(FrameId("case", "0", "0"), supports[:, :3], supports[:, 3], queries=queries)
    frame = change_lidar_frame(frame, rotation_about_z(math.radians(args["angle_deg"])))
    if args["flip"]:
        frame = change_lidar_frame(frame, torch.diag(torch.tensor([-1.0, 1.0, 1.0])))
    assert frame.queries is not None
    close(frame.points, arrays["pos"])
    close(frame.queries.positions, arrays["queries"])


def draws(arrays: dict[str, Tensor]) -> QueryDraws:
    shares = [arrays[f"u_{name}"][:, 0] for name in ("in", "out", "far")]
    rows = [
        arrays[f"perm_{name}"].long()[: len(share)]
        for name, share in zip(("in", "out", "far"), shares, strict=True)
    ]
    return QueryDraws(*rows, *shares)


def close(actual: Tensor, expected: Tensor) -> None:
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=0, atol=1e-5)
