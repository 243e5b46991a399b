"""torchsparse U-Nets of ALSO and NCLR: MinkUNet of every depth, and SPVCNN."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.spvcnn import Spvcnn
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.checkpoints.minkunet_names import architecture
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.tensor import SparseTensor
from parity.case import Case
from parity.kinds.res16unet import (
    check_momenta,
    compare_gradients,
    compare_output,
    compare_statistics,
    compare_training,
    load,
    reference_weights,
)

SPVCNN = re.compile(r"SPVCNN(?P<width>\d+p\d+)?")


def recognises(case: Case) -> bool:
    manifest = case.manifest
    cls = manifest.get("cls") or ""
    known = cls.startswith("MinkUNet") or SPVCNN.fullmatch(cls) is not None
    return (
        known
        and "torchsparse" in manifest.get("library", "")
        and manifest.get("mode") in ("eval", "train")
    )


def check(case: Case) -> None:
    training = case.manifest["mode"] == "train"
    for dtype in (torch.float64, torch.float32):
        model, heads = build(case)
        model.to(dtype).train(training)
        heads.to(dtype).train(training)
        check_momenta(case, model)
        features = torch.from_numpy(case.arrays["feats"]).to(dtype).requires_grad_(training)
        with torch.set_grad_enabled(training):
            x = model.forward_sparse(SparseTensor.of(sites(case), features))
            for head in heads.values():
                x = head(x)
        bounds = case.manifest["tolerance"][str(dtype).removeprefix("torch.")]
        compare_output(case, x.features.detach(), "", bounds)
        if training:
            compare_training(case, [x.features], features, bounds)
            compare_gradients(case, (model, heads), bounds["grad_rel"])
            compare_statistics(case, (model, heads), bounds["out_rel_l2"])


def sites(case: Case) -> Tensor:
    """(N, 4) [batch, x, y, z]; the batch is the last column of this library."""
    assert "[x, y, z, batch]" in case.manifest["coordinates"]
    return torch.from_numpy(case.arrays["coords"]).long().roll(1, dims=1)


class PlainNorm(nn.Module):
    """The norm of the head ``bn_linear``: it has no parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(channels, affine=False)

    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.with_features(self.bn(x.features))


def build(case: Case) -> tuple[MinkUNet, nn.ModuleDict]:
    """The network with the reference's weights, and its head."""
    weights = reference_weights(case)
    plan = architecture(weights)
    plan["head_channels"] = None
    inputs = PointInputs(columns=("one",) * case.args["in_channels"])
    model: MinkUNet
    if kind := SPVCNN.fullmatch(case.manifest["cls"]):
        model = Spvcnn(
            inputs,
            width=float((kind["width"] or "1p0").replace("p", ".")),
            blocks=plan["blocks"],
            dropout=0.0 if "set to 0" in case.manifest.get("dropout", "") else 0.3,
        )
    else:
        model = MinkUNet(inputs, rule="also", **plan)
    heads = nn.ModuleDict()
    if case.args.get("head") == "bn_linear":
        heads["final_norm"] = PlainNorm(model.out_channels)
    heads["final"] = SparseConv3d(model.out_channels, case.args["out_channels"], 1, bias=True)
    load(model, heads, weights)
    return model, heads
