"""Single sparse convolutions of MinkowskiEngine 0.5 and torchsparse 1.4, and short sequences."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest
import torch

from lidarssl.sparse.kernel import triple
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.tensor import SparseTensor
from parity.case import Case, relative_l2

SEQUENCES = ({"conv"}, {"down", "conv"}, {"down", "up"})


def recognises(case: Case) -> bool:
    cls = case.manifest.get("cls", "")
    return (
        (cls.startswith("MinkowskiConvolution") or cls == "torchsparse.nn.Conv3d")
        and {"in_channels", "kernel_size", "stride"} <= case.args.keys()
        and layer_names(case) in SEQUENCES
    )


def check(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        compare(case, *run(case, dtype), dtype)


def layer_names(case: Case) -> set[str]:
    return {key.split(".")[0] for key, _, _ in case.manifest["state_dict"]}


def convention(case: Case) -> str:
    return "torchsparse" if "torchsparse" in case.manifest["cls"] else "minkowski"


def layers(case: Case) -> dict[str, SparseConv3d]:
    """The layers of the case; in a sequence the first is the strided one.

    torchsparse 1.4 ignores dilation, so its cases are run without.
    """
    args, library = case.args, convention(case)
    shapes = {key: shape for key, shape, _ in case.manifest["state_dict"]}
    narrow, wide, size = args["in_channels"], args["out_channels"], args["kernel_size"]
    strided = {
        "stride": args["stride"],
        "dilation": args.get("dilation", 1) if library == "minkowski" else 1,
    }

    def layer(name: str, before: int, after: int, size: int, **options: Any) -> SparseConv3d:
        bias = f"{name}.bias" in shapes
        return SparseConv3d(before, after, size, bias=bias, convention=library, **options)

    if layer_names(case) == {"conv"}:
        return {"conv": layer("conv", narrow, wide, size, **strided)}
    middle = args["mid_channels"]
    down = layer("down", narrow, middle, size, **strided)
    if layer_names(case) == {"down", "up"}:
        return {"down": down, "up": layer("up", middle, wide, size, transposed=True, **strided)}
    kernel = shapes["conv.kernel"]
    cube = round(kernel[0] ** (1 / 3)) if len(kernel) == 3 else 1
    return {"down": down, "conv": layer("conv", middle, wide, cube)}


def run(
    case: Case, dtype: torch.dtype
) -> tuple[dict[str, SparseConv3d], SparseTensor, SparseTensor, torch.Tensor]:
    """Layers after a backward pass, input and output tensors, loss."""
    model = torch.nn.ModuleDict(layers(case))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in case.weights().items()})
    model.to(dtype)
    coordinates = torch.from_numpy(case.arrays["coords"]).long()
    if convention(case) == "torchsparse":
        coordinates = coordinates.roll(1, dims=1)
    features = torch.from_numpy(case.arrays["feats"]).to(dtype).requires_grad_()
    x = SparseTensor.of(coordinates, features)
    y = x
    for layer in model.values():
        y = layer(y)
    loss = y.features.square().sum()
    loss.backward()
    return dict(model.items()), x, y, loss.detach()


def compare(
    case: Case,
    model: dict[str, SparseConv3d],
    x: SparseTensor,
    y: SparseTensor,
    loss: torch.Tensor,
    dtype: torch.dtype,
) -> None:
    arrays, tolerance = case.arrays, case.manifest["tolerance"]
    assert y.stride == tuple(case.manifest["out_stride"])
    order = np.lexsort(y.coordinates.numpy().T[::-1])
    expected_sites = arrays["out_coords"].astype(np.int64)
    if convention(case) == "torchsparse":
        expected_sites = np.roll(expected_sites, 1, axis=1)
    expected_order = np.lexsort(expected_sites.T[::-1])
    np.testing.assert_array_equal(y.coordinates.numpy()[order], expected_sites[expected_order])
    check_pairs(case, x)
    out = y.features.detach().numpy()[order]
    expected_out = arrays["out"][expected_order]
    grad = x.features.grad.numpy()
    if dtype == torch.float64:
        limit = tolerance["float64"]["rel_l2"]
        assert relative_l2(out, expected_out) < limit
        assert relative_l2(out.sum(0), arrays["out_sum"]) < limit
        assert relative_l2(grad, arrays["grad_feats"]) < limit
        assert loss.item() == pytest.approx(case.manifest["loss_value"], rel=limit)
        weight_limit = limit
    else:
        bounds = tolerance["float32"]
        np.testing.assert_allclose(out, expected_out, rtol=0, atol=bounds["out_atol"])
        np.testing.assert_allclose(
            grad, arrays["grad_feats"], rtol=0, atol=bounds["grad_feats_atol"]
        )
        weight_limit = bounds["grad_weight_rel_l2"]
    for name, layer in model.items():
        for key, parameter in layer.named_parameters():
            expected = arrays[f"grad.{name}.{key}"]
            assert relative_l2(parameter.grad.numpy(), expected) < weight_limit, (name, key)


def check_pairs(case: Case, x: SparseTensor) -> None:
    """Pairs of every kernel offset, where the manifest lists them."""
    for key, expected in case.manifest.get("pairs_per_offset", {}).items():
        fine_stride, size, stride, dilation = (
            triple(item, "stride") for item in ast.literal_eval(key)
        )
        found = [
            kernel_map
            for (fine, coarse, map_size, *_), kernel_map in x.maps.maps.items()
            if map_size == size
            and x.maps.levels[fine].stride == fine_stride
            and x.maps.levels[coarse].stride
            == tuple(a * b for a, b in zip(fine_stride, stride, strict=True))
        ]
        assert len(found) == 1, f"kernel map {key} of dilation {dilation} was not made"
        assert found[0].pairs_per_weight() == expected
