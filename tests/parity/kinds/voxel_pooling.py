"""CLCP's voxels of a batch of clouds, and the mean of their features over each cloud."""

from __future__ import annotations

import re

import numpy as np
import torch

from lidarssl.backbones.voxelize import PointInputs, VoxelGrid, voxelize_batch
from lidarssl.frame import PointBatch
from lidarssl.methods.pooling import mean_of_frames
from parity.case import Case

ARRAYS = {"voxels", "coors", "voxel_feats_for_pool", "pooled"}


def recognises(case: Case) -> bool:
    return set(case.manifest.get("arrays", {})) >= ARRAYS and "voxel_layer" in case.args


def check(case: Case) -> None:
    clouds = _clouds(case)
    rows = torch.cat(clouds)
    sizes = torch.tensor([len(cloud) for cloud in clouds])
    batch = torch.repeat_interleave(torch.arange(len(clouds)), sizes)
    points = PointBatch(rows[:, :3], rows[:, 3], batch, len(clouds))
    size = tuple(case.args["voxel_layer"]["voxel_size"])
    grid = VoxelGrid("also", size, PointInputs(("x", "y", "z", "intensity"), reduce="first"))
    voxels = voxelize_batch(points, grid)
    batch_first = bool(case.args.get("batch_first", False))
    sites = voxels.maps.levels[0].coordinates
    expected = case.arrays["coors"]
    np.testing.assert_array_equal(
        sites.numpy() if batch_first else sites[:, [1, 2, 3, 0]].numpy(), expected
    )
    np.testing.assert_array_equal(voxels.features.numpy(), case.arrays["voxels"])
    if "point2voxel_map_last" in case.arrays:
        last = voxels.token_of_point[batch == len(clouds) - 1]
        first = int((voxels.batch < len(clouds) - 1).sum())
        np.testing.assert_array_equal(last - first, case.arrays["point2voxel_map_last"])
    pooled = mean_of_frames(
        torch.from_numpy(case.arrays["voxel_feats_for_pool"]), voxels.batch, len(clouds)
    )
    (rtol,) = re.findall(r"rtol ([\de.-]+)", case.manifest["tolerance"]["pooled"])
    np.testing.assert_allclose(pooled.numpy(), case.arrays["pooled"], rtol=float(rtol), atol=0)


def _clouds(case: Case) -> list[torch.Tensor]:
    names = sorted(
        (name for name in case.arrays if re.fullmatch(r"points_\d+", name)),
        key=lambda name: int(name.removeprefix("points_")),
    )
    return [torch.from_numpy(case.arrays[name]) for name in names]
