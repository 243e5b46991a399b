"""OpenPCDet's sparse trunks: VoxelBackBone8x and VoxelResBackBone8x."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.voxelnet import VoxelNet
from lidarssl.sparse.norms import RowNorm
from lidarssl.sparse.tensor import SparseTensor
from parity.case import Case
from parity.spconv import StageOutputs, compare_sums, read_sites, rows_by_site

TRUNKS = ("VoxelBackBone8x", "VoxelResBackBone8x")
ROUNDING = 2e-6
"""Of inputs of ReLUs, which are of the order of 1, in float32."""

TAPS = ("x_conv1", "x_conv2", "x_conv3", "x_conv4")


def recognises(case: Case) -> bool:
    return (
        name(case) in TRUNKS
        and "spconv_backbone.py" in case.reference
        and {"input_channels", "sparse_shape", "voxel_size", "range"} <= case.args.keys()
        and {"coords", "feats", "out_coords", "out_feats"} <= case.array_names
    )


def check(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        check_eval(case, build(case).to(dtype), dtype)
    if "loss_train" in case.manifest:
        check_training(case)


def name(case: Case) -> str:
    return case.manifest.get("what", "").split(" ")[0]


def build(case: Case) -> VoxelNet:
    args = case.args
    residual = name(case) == TRUNKS[1]
    added = args["sparse_shape"][0] - args["grid_size"][2]
    model = VoxelNet(
        point_range=tuple(args["range"]),
        voxel_size=tuple(args["voxel_size"]),
        inputs=PointInputs(("one",) * args["input_channels"], reduce="mean"),
        added_height=added,
        residual=residual,
        channels=(16, 32, 64, 128 if residual else 64),
    )
    assert list(model.voxelization.shape[::-1]) == args["sparse_shape"]
    model.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights().items()})
    return model


def voxels(case: Case, dtype: torch.dtype) -> SparseTensor:
    features = torch.from_numpy(case.arrays["feats"]).to(dtype)
    shape = case.args["sparse_shape"][::-1]
    return SparseTensor.of(read_sites(case.arrays["coords"]), features, shape=shape)


def check_eval(case: Case, model: VoxelNet, dtype: torch.dtype) -> None:
    arrays = case.arrays
    with torch.no_grad(), StageOutputs(model, TAPS) as stages:
        y = model.eval().forward_sparse(voxels(case, dtype))
    for tap, x in {**stages.outputs, "out": y}.items():
        assert x.shape is not None
        assert list(x.shape[::-1]) == arrays[f"{tap}_spatial_shape"].tolist(), tap
        assert len(x.features) == int(arrays[f"{tap}_n"][0]), tap
        compare_sums(arrays, tap, x.features)
    rows = rows_by_site(y, arrays["out_coords"])
    limit = 1e-4 * np.abs(arrays["out_feats"]).max()
    np.testing.assert_allclose(y.features.numpy()[rows], arrays["out_feats"], rtol=0, atol=limit)


def check_training(case: Case) -> None:
    """Loss mean(out^2), gradients, and running statistics after that one step.

    A ReLU whose input is zero but for the rounding of float32 is on in one computation and off
    in another, and moves all gradients below it. How much they can move is seen in float64,
    with the inputs of every ReLU raised and lowered by that rounding.
    """
    exact = train(case, torch.float64)
    train(case, torch.float32)
    raised, lowered = (train(case, torch.float64, shift) for shift in (ROUNDING, -ROUNDING))
    expected = dict(case.manifest["grad_norms_params"])
    expected["feats"] = float(np.linalg.norm(case.arrays["grad_feats"].astype(np.float64)))
    assert exact.keys() == expected.keys()
    # The gradient of a bias before a batch norm is zero but for rounding.
    floor = 1e-5 * max(expected.values())
    for key, norm in expected.items():
        undecided = (raised[key] - lowered[key]).norm().item()
        assert undecided < 0.05 * norm + floor, key
        error = abs(exact[key].norm().item() - norm)
        assert error <= 2e-3 * norm + undecided + floor, key


def train(case: Case, dtype: torch.dtype, shift: float = 0.0) -> dict[str, Tensor]:
    """All gradients after a step, with ``shift`` added to the inputs of the ReLUs."""
    manifest, arrays = case.manifest, case.arrays
    model, x = build(case).to(dtype).train(), voxels(case, dtype)
    for module in model.modules():
        if isinstance(module, RowNorm):
            module.bias.data += shift
    features = x.features.requires_grad_()
    y = model.forward_sparse(x)
    loss = y.features.square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(manifest["loss_train"], rel=1e-4)
    wide = y.features.detach().double().numpy()
    error = np.abs(wide.sum(0) - arrays["train_out_chan_sum"])
    assert (error <= 1e-4 * np.abs(wide).sum(0)).all()
    buffers = dict(model.named_buffers())
    for key, (mean, norm) in manifest["bn_running_after"].items():
        value = buffers[key].double()
        assert value.mean().item() == pytest.approx(mean, rel=1e-4, abs=1e-5), key
        assert value.norm().item() == pytest.approx(norm, rel=1e-4), key
    assert features.grad is not None
    check_most_rows(features.grad.double().numpy(), arrays["grad_feats"])
    found = {key: one.grad for key, one in model.named_parameters()} | {"feats": features.grad}
    return {key: grad.double() for key, grad in found.items() if grad is not None}


def check_most_rows(gradient: np.ndarray, expected: np.ndarray) -> None:
    """Nine rows of ten are out of reach of the ReLUs that rounding decides."""
    error = np.abs(gradient - expected).max(1)
    assert np.quantile(error, 0.9) <= 1e-3 * np.abs(expected).max()
