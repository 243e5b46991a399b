"""The voxelisation rules of SLidR, ALSO and NCLR."""

from __future__ import annotations

import numpy as np
import torch

from lidarssl.geometry.voxels import voxelize
from parity.case import Case

RULES = {"slidr_cylindrical", "slidr_cartesian", "nclr_me", "also", "nclr_torchsparse"}


def _rules(case: Case) -> set[str]:
    rules = case.manifest.get("rules", {})
    return set(rules) if isinstance(rules, dict) else set()


def recognises(case: Case) -> bool:
    return bool(_rules(case)) and _rules(case) <= RULES and "voxel_size" in case.manifest


def check(case: Case) -> None:
    size = case.manifest["voxel_size"]
    points = torch.from_numpy(case.arrays["points"][:, :3])
    for rule in sorted(_rules(case)):
        voxels = voxelize(points, rule, tuple(size) if isinstance(size, list) else size)
        coordinates, index, inverse = (
            case.arrays[f"{rule}.{name}"].astype(np.int64)
            for name in ("coords", "index", "inverse")
        )
        # The order of voxels is free: compare what every point sees.
        assert len(voxels.index) == len(index), f"{rule}: number of voxels"
        of_point = voxels.inverse.numpy()
        np.testing.assert_array_equal(
            voxels.coordinates.numpy()[of_point], coordinates[inverse], err_msg=rule
        )
        np.testing.assert_array_equal(
            voxels.index.numpy()[of_point], index[inverse], err_msg=f"{rule}: representative"
        )
        _check_order(case, rule, voxels.coordinates.numpy(), voxels.index.numpy())


def _check_order(case: Case, rule: str, coordinates: np.ndarray, index: np.ndarray) -> None:
    observed = case.manifest.get("observed", {}).get(rule, {})
    if observed.get("order_of_first_appearance"):
        assert (np.diff(index) > 0).all(), f"{rule}: not in order of first appearance"
    if observed.get("rows_in_lexicographic_order"):
        assert (np.lexsort(coordinates.T[::-1]) == np.arange(len(coordinates))).all(), rule
