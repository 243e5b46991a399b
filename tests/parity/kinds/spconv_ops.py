"""Single convolutions of spconv 2.x."""

from __future__ import annotations

import numpy as np
import torch

from lidarssl.sparse.spconv import SpconvConv3d
from lidarssl.sparse.tensor import SparseTensor
from parity.case import Case
from parity.spconv import compare_sums, read_sites, rows_by_site

CLASSES = ("SubMConv3d", "SparseConv3d")


def recognises(case: Case) -> bool:
    return (
        case.args.get("cls") in CLASSES
        and {"kernel", "stride", "padding", "spatial_shape"} <= case.args.keys()
        and {"coords", "feats", "out_coords", "out_feats"} <= case.array_names
    )


def check(case: Case) -> None:
    for dtype in (torch.float64, torch.float32):
        layer = build(case).to(dtype)
        features = torch.from_numpy(case.arrays["feats"]).to(dtype).requires_grad_()
        x = SparseTensor.of(
            read_sites(case.arrays["coords"]), features, shape=case.args["spatial_shape"][::-1]
        )
        y = layer(x)
        assert case.manifest.get("grad_loss", "sum(out^2)") == "sum(out^2)"
        y.features.square().sum().backward()
        compare_output(case, y)
        gradients = {"grad_feats": features.grad} | {
            f"gradp:{name}": parameter.grad for name, parameter in layer.named_parameters()
        }
        for name, gradient in gradients.items():
            assert gradient is not None
            expected = case.arrays[name]
            limit = 1e-6 * np.abs(expected).max()
            np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=limit)


def build(case: Case) -> SpconvConv3d:
    """The layer with the reference's weights; its arguments are z, y, x there."""
    args = case.args
    layer = SpconvConv3d(
        args["cin"],
        args["cout"],
        args["kernel"][::-1],
        args["stride"][::-1],
        args["padding"][::-1],
        args.get("dilation", [1, 1, 1])[::-1],
        submanifold=args["cls"] == "SubMConv3d",
        bias=args["bias"],
    )
    layer.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights().items()})
    return layer


def compare_output(case: Case, y: SparseTensor) -> None:
    arrays = case.arrays
    assert y.shape is not None
    assert list(y.shape[::-1]) == arrays["out_spatial_shape"].tolist()
    assert len(y.features) == int(arrays["out_n"][0])
    rows = rows_by_site(y, arrays["out_coords"])
    np.testing.assert_allclose(
        y.features.detach().numpy()[rows], arrays["out_feats"], rtol=0, atol=1e-4
    )
    compare_sums(arrays, "out", y.features)
