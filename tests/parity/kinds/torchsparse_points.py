"""Point-voxel operations of SPVCNN: mean of points, interpolation at points, mean again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.levels import Level
from lidarssl.sparse.points import Blend, blend, point_to_voxel, voxel_to_point
from lidarssl.sparse.tensor import SparseTensor
from parity.case import Case, relative_l2


def recognises(case: Case) -> bool:
    manifest = case.manifest
    steps = " ".join(manifest.get("steps", []))
    return (
        "torchsparse" in manifest.get("library", "")
        and {"stem", "down1"} <= {key.split(".")[0] for key, _, _ in manifest.get("state_dict", [])}
        and "voxel_to_point" in steps
        and "point_to_voxel" in steps
    )


@dataclass
class Run:
    layers: nn.ModuleDict
    features: Tensor
    voxels: SparseTensor
    coarse: SparseTensor
    weights: Blend
    point_fine: Tensor
    point_coarse: Tensor
    back: Tensor

    def loss(self) -> Tensor:
        return sum(
            (value.square().sum() for value in (self.point_fine, self.point_coarse, self.back)),
            torch.zeros(()),
        )


def check(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        done = run(case, dtype)
        limit = case.manifest["tolerance"][str(dtype).removeprefix("torch.")]["rel_l2"]
        loss = done.loss()
        loss.backward()
        assert loss.item() == pytest.approx(case.manifest["loss_value"], rel=limit)
        compare_voxels(case, done, limit)
        compare_points(case, done, limit)
        compare_weights(case, done)
        for name, layer in done.layers.items():
            expected = case.arrays[f"grad.{name}.kernel"]
            assert relative_l2(layer.kernel.grad.numpy(), expected) < limit, name


def run(case: Case, dtype: torch.dtype) -> Run:
    layers = build(case).to(dtype)
    points = torch.from_numpy(case.arrays["points"])
    xyz, batch = points[:, :3], points[:, 3].long()
    shape = (points.shape[0], layers["stem"].in_channels)
    features = torch.from_numpy(case.fill.direction("point_features", shape)).to(dtype)
    features.requires_grad_()
    sites = torch.unique(torch.cat([batch[:, None], xyz.floor().long()], 1), dim=0)
    # Points in float64 keep the weights in float64.
    exact = xyz.double()
    start = point_to_voxel(Level(sites, (1, 1, 1)), exact, batch)
    voxels = SparseTensor.of(sites, blend(features, start))
    fine = layers["stem"](voxels)
    coarse = fine
    for name, layer in layers.items():
        coarse = coarse if name == "stem" else layer(coarse)
    levels = voxels.maps.levels
    weights = voxel_to_point(levels[coarse.level], exact, batch)
    point_coarse = blend(coarse.features, weights)
    return Run(
        layers,
        features,
        voxels,
        coarse,
        weights,
        blend(fine.features, voxel_to_point(levels[0], exact, batch)),
        point_coarse,
        blend(point_coarse, point_to_voxel(levels[coarse.level], exact, batch)),
    )


def build(case: Case) -> nn.ModuleDict:
    layers = nn.ModuleDict()
    for key, (_, narrow, wide), _ in case.manifest["state_dict"]:
        name = key.split(".")[0]
        size, stride = (3, 1) if name == "stem" else (2, 2)
        layers[name] = SparseConv3d(narrow, wide, size, stride, convention="torchsparse")
    layers.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights().items()})
    return layers


def compare_voxels(case: Case, done: Run, limit: float) -> None:
    arrays = case.arrays
    stride = done.coarse.stride[0]
    pairs = [("voxel", done.voxels), (f"s{stride}", done.coarse)]
    for name, tensor in pairs:
        expected = torch.from_numpy(arrays[f"{name}_coords"]).long().roll(1, dims=1)
        assert torch.equal(tensor.coordinates, expected)
        assert relative_l2(tensor.features.detach().numpy(), arrays[f"{name}_feats"]) < limit
    assert relative_l2(done.back.detach().numpy(), arrays["back_feats"]) < limit


def compare_points(case: Case, done: Run, limit: float) -> None:
    arrays, rows = case.arrays, case.arrays["point_rows"]
    stride = done.coarse.stride[0]
    assert done.features.grad is not None
    values = {
        "point_s1": done.point_fine.detach(),
        f"point_s{stride}": done.point_coarse.detach(),
        "grad_feats": done.features.grad,
    }
    for name, value in values.items():
        assert relative_l2(value.numpy()[rows], arrays[name]) < limit, name
        assert relative_l2(value.double().sum(0).numpy(), arrays[f"{name}_sum"]) < limit, name


def compare_weights(case: Case, done: Run) -> None:
    """Weight of each of the eight corners, and which of them are absent."""
    stride = done.coarse.stride[0]
    missing = torch.from_numpy(case.arrays[f"missing_s{stride}"])
    expected = torch.from_numpy(case.arrays[f"weights_s{stride}"])
    rows = torch.from_numpy(case.arrays["point_rows"]).long()
    matrix = done.weights.rows
    counts = matrix.start.diff()[rows]
    assert torch.equal(counts, (~missing).sum(1))
    owner = torch.repeat_interleave(torch.arange(matrix.start.shape[0] - 1), matrix.start.diff())
    actual = matrix.weight[torch.isin(owner, rows)]
    assert relative_l2(actual.numpy(), expected[~missing].numpy()) < 1e-6
