"""Hard voxelisation of spconv 2.x and the mean of each voxel's points."""

from __future__ import annotations

import numpy as np
import torch

from lidarssl.geometry.hard_voxels import BoundedGrid, hard_voxelize
from parity.case import Case


def recognises(case: Case) -> bool:
    return {"voxel_size", "range", "max_points", "max_voxels"} <= case.args.keys() and {
        "points",
        "coords",
        "mean",
        "point_to_voxel",
    } <= case.array_names


def check(case: Case) -> None:
    args, arrays = case.args, case.arrays
    points = torch.from_numpy(arrays["points"])
    grid = BoundedGrid(tuple(args["range"]), tuple(args["voxel_size"]))
    voxels = hard_voxelize(points[:, :3], grid, args["max_points"], args["max_voxels"])
    np.testing.assert_array_equal(voxels.coordinates.flip(1).numpy(), arrays["coords"])
    np.testing.assert_array_equal(voxels.voxel_of_point.numpy(), arrays["point_to_voxel"])
    stored = torch.bincount(voxels.voxel_of_point[voxels.stored], minlength=len(voxels.coordinates))
    np.testing.assert_array_equal(stored.numpy(), arrays["num_points"])
    mean = voxels.mean(points).numpy()
    np.testing.assert_allclose(mean, arrays["mean"], rtol=0, atol=1e-5)
