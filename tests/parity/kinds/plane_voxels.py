"""WaffleIron's and ScaLR's preparation of a cloud: voxels, crop, cells, neighbours, nearest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lidarssl.backbones.plane_tokens import PlaneGrids, TokenRule
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.frame import PointBatch
from lidarssl.transforms.thinning import nearest_to, random_of_each_voxel
from parity.case import Case

_COLUMNS = {
    "intensity": ("standard_intensity",),
    "xyz": ("x", "y", "z"),
    "radius": ("radius",),
    "height": ("z",),
    "constant": ("one",),
}


def recognises(case: Case) -> bool:
    return {"val_feat", "val_cell_ind", "val_neighbors", "val_upsample"} <= case.array_names


def check(case: Case) -> None:
    args, arrays = case.args, case.arrays
    cloud = torch.from_numpy(arrays["points"])
    low, high = (tuple(float(v) for v in corner) for corner in args["fov_xyz"])
    rule = TokenRule(
        PlaneGrids(
            (low, high),  # type: ignore[arg-type]
            tuple(args["dim_proj"]),
            tuple((rows, columns) for rows, columns in args["grids_shape"]),
        ),
        args["num_neighbors"],
        args["voxel_size"],
        PointInputs(tuple(name for one in args["input_feat"] for name in _COLUMNS[one])),
    )
    # WaffleIron itself takes raw intensities.
    statistics = torch.tensor([[args.get("mean_int", 0.0), args.get("std_int", 1.0)]])
    points = PointBatch(
        cloud[:, :3],
        cloud[:, 3],
        torch.zeros(len(cloud), dtype=torch.int64),
        1,
        intensity_statistics=statistics,
    )
    tokens = rule(points)
    np.testing.assert_allclose(tokens.features.T.numpy(), arrays["val_feat"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(tokens.cells.numpy(), arrays["val_cell_ind"])
    expected = torch.from_numpy(arrays["val_neighbors"].astype(np.int64)).T
    positions = tokens.positions
    assert torch.equal(expected[:, 0], torch.arange(len(positions)))
    _same_up_to_ties(positions, positions, tokens.neighbours, expected[:, 1:])
    nearest = torch.from_numpy(arrays["val_upsample"].astype(np.int64))
    _same_up_to_ties(cloud[:, :3], positions, tokens.token_of_point[:, None], nearest[:, None])
    if "train_perm" in arrays:
        _check_training(case, cloud)


def _check_training(case: Case, cloud: Tensor) -> None:
    args, arrays = case.args, case.arrays
    order = torch.from_numpy(arrays["train_perm"].astype(np.int64))
    kept = cloud[random_of_each_voxel(cloud[:, :3], args["voxel_size"], order)]
    np.testing.assert_array_equal(kept.numpy(), arrays["train_pc"])
    if "limit_idx" not in arrays:
        return
    points, center = kept[:, :3], args["limit_center_index"]
    limited = nearest_to(points, center, args["max_point"])
    expected = torch.from_numpy(arrays["limit_idx"].astype(np.int64))
    _same_up_to_ties(points[center, None], points, limited[None], expected[None])


def _same_up_to_ties(queries: Tensor, sources: Tensor, actual: Tensor, expected: Tensor) -> None:
    """Neighbours in the same order; equally near ones may swap."""
    one, other = (
        (sources[rows].double() - queries[:, None].double()).norm(dim=2)
        for rows in (actual, expected)
    )
    np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6, atol=1e-6)
    assert (actual == expected).double().mean() > 0.99
