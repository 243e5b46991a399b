"""Spconv networks seen from above: VoxelNet of SLidR and OLIVINE, NCLR's BEVNet."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lidarssl.backbones.second import Second
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.voxelnet import VoxelNet
from lidarssl.sparse.tensor import SparseTensor
from parity.case import Case
from parity.spconv import compare_sums, read_sites


def recognises(case: Case) -> bool:
    inputs = {"feats", "coords"} <= case.array_names
    return inputs and (is_voxelnet(case) or is_bevnet(case))


def check(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        if is_voxelnet(case):
            check_voxelnet(case, dtype)
        else:
            check_bevnet(case, dtype)


def is_voxelnet(case: Case) -> bool:
    return "spconv_backbone.py (VoxelNet)" in case.reference and "bev0_at" in case.manifest.get(
        "arrays", {}
    )


def is_bevnet(case: Case) -> bool:
    return "spconv_backbone.py (BEVNet)" in case.reference and "out_sample" in case.manifest.get(
        "arrays", {}
    )


def voxels(case: Case, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[SparseTensor, int]:
    """Voxels of the case, and its number of frames."""
    sites = read_sites(case.arrays["coords"])
    features = torch.from_numpy(case.arrays["feats"]).to(dtype)
    return SparseTensor.of(sites, features, shape=shape), int(sites[:, 0].max()) + 1


def inputs(case: Case) -> PointInputs:
    return PointInputs(("one",) * case.args["in_channels"], reduce="mean")


def check_voxelnet(case: Case, dtype: torch.dtype) -> None:
    """Both heads read the same trunk, and each is normalised."""
    args, arrays = case.args, case.arrays
    weights = {key: torch.from_numpy(value) for key, value in case.weights().items()}
    two = any(key.startswith("final_class_level.") for key in weights)
    assert bool(args["config"].get("is_pretraining")) == two
    model = VoxelNet(
        tuple(args["range"]),
        tuple(args["voxel_size"]),
        inputs(case),
        head_channels=args["out_channels"],
        heads=2 if two else 1,
        normalize=True,
    )
    model.load_state_dict(weights)
    model.to(dtype).eval()
    x, frames = voxels(case, model.voxelization.shape, dtype)
    with torch.no_grad():
        maps = model.forward_map(x, frames)
    for number, one in enumerate(maps.chunk(2 if two else 1, dim=1)):
        check_map(arrays, number, one)


def check_map(arrays: dict[str, np.ndarray], number: int, maps: Tensor) -> None:
    assert list(maps.shape) == arrays[f"bev{number}_shape"].tolist()
    row, column = torch.from_numpy(arrays["active_yx_sample"].astype(np.int64)).unbind(1)
    found = maps[0, :, row, column].t().numpy()
    np.testing.assert_allclose(found, arrays[f"bev{number}_at"], rtol=0, atol=1e-5)
    assert int((maps != 0).any(1).sum()) == int(arrays["n_active"][0])
    compare_sums(arrays, f"bev{number}", maps.permute(0, 2, 3, 1).flatten(0, 2))


def check_bevnet(case: Case, dtype: torch.dtype) -> None:
    args, arrays = case.args, case.arrays
    model = Second(
        tuple(args["range"]),
        tuple(args["voxel_size"]),
        inputs(case),
        head_channels=args["feature_dimension"],
    )
    model.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights().items()})
    assert model.backbone_3d.out_channels == args["out_channels"]
    model.to(dtype).eval()
    x, frames = voxels(case, model.backbone_3d.voxelization.shape, dtype)
    with torch.no_grad():
        maps = model.forward_map(x, frames)
    assert list(maps.shape) == arrays["out_shape"].tolist()
    row, column = (torch.from_numpy(arrays[f"sample_{axis}"].astype(np.int64)) for axis in "yx")
    found, expected = maps[0, :, row, column].t().numpy(), arrays["out_sample"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    compare_sums(arrays, "out", maps.permute(0, 2, 3, 1).flatten(0, 2))
