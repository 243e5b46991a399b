"""MinkowskiEngine U-Nets: Res16UNet34C of SLidR and OLIVINE, and those of NCLR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.backbones.minkunet import MinkUNet, res16unet34c
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.checkpoints.minkunet_names import from_ours, recognise, to_ours
from lidarssl.sparse.layers import BatchNorm, SparseConv3d
from lidarssl.sparse.tensor import SparseTensor
from parity.case import Case, relative_l2

SEGCONTRAST = "SegContrastMinkUNet18"
NCLR_BLOCKS = {
    "MinkUNet18": (2, 3, 4, 6, 2, 2, 2, 2),  # the reference swapped the two
    "MinkUNet34": (2,) * 8,
    SEGCONTRAST: (2,) * 8,
}


def recognises(case: Case) -> bool:
    manifest = case.manifest
    cls = manifest.get("cls")
    known = cls == "Res16UNet34C" or (
        cls in NCLR_BLOCKS and "MinkowskiEngine" in manifest.get("library", "")
    )
    return known and manifest.get("mode") in ("eval", "train")


def check(case: Case) -> None:
    training = case.manifest["mode"] == "train"
    for dtype in (torch.float64, torch.float32):
        model, heads = build(case)
        model.to(dtype).train(training)
        heads.to(dtype)
        check_momenta(case, model)
        coordinates = torch.from_numpy(case.arrays["coords"]).long()
        features = torch.from_numpy(case.arrays["feats"]).to(dtype).requires_grad_(training)
        with torch.set_grad_enabled(training):
            outputs = run(model, heads, SparseTensor.of(coordinates, features))
        bounds = case.manifest["tolerance"][str(dtype).removeprefix("torch.")]
        for output, suffix in zip(outputs, ("", "2"), strict=False):
            compare_output(case, output.detach(), suffix, bounds)
        if training:
            compare_training(case, outputs, features, bounds)
            compare_gradients(case, (model, heads), bounds["grad_rel"])
            compare_statistics(case, (model, heads), bounds["out_rel_l2"])


def run(model: MinkUNet, heads: nn.ModuleDict, x: SparseTensor) -> list[Tensor]:
    """Output of the network, and of OLIVINE's second head on the same input as ``final``."""
    inputs: list[SparseTensor] = []
    assert model.final is not None
    hook = model.final.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    outputs = [model.forward_sparse(x).features]
    hook.remove()
    for head in heads.values():
        output = head(inputs[0]).features
        outputs.append(F.normalize(output, dim=1) if model.normalize else output)
    return outputs


def build(case: Case) -> tuple[MinkUNet, nn.ModuleDict]:
    """The network with the reference's weights, and a further head of the same input."""
    args, config = case.args, case.args.get("config", {})
    weights = reference_weights(case)
    if case.manifest["cls"] == "Res16UNet34C":
        model = res16unet34c(
            args["out_channels"],
            args["in_channels"],
            kernel_size=config["kernel_size"],
            bn_momentum=config["bn_momentum"],
            normalize=config["normalize_features"],
        )
    else:
        two = case.manifest["cls"] == SEGCONTRAST
        model = MinkUNet(
            inputs=PointInputs(columns=("one",) * args["in_channels"]),
            blocks=NCLR_BLOCKS[case.manifest["cls"]],
            stem_convolutions=2 if two else 1,
            bn_momentum=0.1 if two else 0.05,
            head_channels=args["out_channels"],
        )
    heads = nn.ModuleDict()
    if config.get("is_pretraining"):
        heads["final_class_level"] = SparseConv3d(96, args["out_channels"], 1, bias=True)
    load(model, heads, weights)
    return model, heads


def reference_weights(case: Case) -> dict[str, Tensor]:
    """The reference's weights under our names and in our layout."""
    return to_ours({key: torch.from_numpy(value) for key, value in case.weights().items()})


def load(model: MinkUNet, heads: nn.ModuleDict, weights: dict[str, Tensor]) -> None:
    """Every weight goes to the network or to a head of its own."""
    own = heads.state_dict().keys()
    heads.load_state_dict({key: value for key, value in weights.items() if key in own})
    model.load_state_dict({key: value for key, value in weights.items() if key not in own})


def check_momenta(case: Case, model: MinkUNet) -> None:
    """Every batch norm has the momentum that the manifest lists."""
    expected = {
        key: float(momentum)
        for momentum, keys in case.manifest.get("bn_momenta", {}).items()
        for key in (keys if isinstance(keys, list) else [])
    }
    norms = {
        f"{name}.bn": module.bn.momentum
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm)
    }
    if expected:
        assert norms == pytest.approx(expected)
    else:
        assert set(norms.values()) == {0.1}


def compare_output(case: Case, output: Tensor, suffix: str, bounds: dict[str, float]) -> None:
    arrays = case.arrays
    rows = output.numpy()[arrays["out_rows"]]
    expected = arrays[f"out{suffix}"]
    assert relative_l2(rows, expected) < bounds["out_rel_l2"]
    if "out_atol" in bounds:
        np.testing.assert_allclose(rows, expected, rtol=0, atol=bounds["out_atol"])
        return
    wide = output.double().numpy()
    assert relative_l2(wide.sum(0), arrays[f"out_sum{suffix}"]) < bounds["out_rel_l2"]
    assert relative_l2((wide**2).sum(0), arrays[f"out_sqsum{suffix}"]) < bounds["out_rel_l2"]


def compare_training(
    case: Case, outputs: list[Tensor], features: Tensor, bounds: dict[str, float]
) -> None:
    """Loss and gradient of the input; fills the gradients of the parameters."""
    probe = torch.from_numpy(case.fill.direction("probe", (outputs[0].shape[1],)))
    loss = torch.stack([(out @ probe.to(out.dtype)).square().mean() for out in outputs]).sum()
    loss.backward()
    loss_bound = bounds.get("loss_rel", bounds["out_rel_l2"])
    assert loss.item() == pytest.approx(case.manifest["loss_value"], rel=loss_bound)
    assert features.grad is not None
    error = relative_l2(features.grad.numpy(), case.arrays["grad_feats"])
    assert error < bounds["grad_feats_rel_l2"]


def compare_gradients(case: Case, parts: Sequence[nn.Module], relative: float) -> None:
    """Norm and projection of each gradient, by the rule written in the manifest."""
    grads = in_reference(
        case, {name: p.grad for part in parts for name, p in part.named_parameters()}
    )
    expected = case.manifest["grads"]
    largest = max(norm for norm, _, _ in expected.values())
    assert grads.keys() == expected.keys()
    for key, (norm, _, projection) in expected.items():
        grad = grads[key].double()
        direction = torch.from_numpy(case.fill.direction(key, tuple(grad.shape)))
        limit = relative * max(norm, 1e-3 * largest)
        assert abs(grad.norm().item() - norm) <= limit, key
        assert abs((grad * direction).sum().item() - projection) <= limit, key


def compare_statistics(case: Case, parts: Sequence[nn.Module], relative: float) -> None:
    """Sum and norm of each running buffer after the step."""
    state = in_reference(
        case, {name: value for part in parts for name, value in part.state_dict().items()}
    )
    for key, (total, norm) in case.manifest["stats"].items():
        value = state[key].double()
        limit = relative * max(norm, 1.0)
        assert abs(value.norm().item() - norm) <= limit, key
        # The sum of n values that are off by a total of `limit` is off by sqrt(n) times that.
        assert abs(value.sum().item() - total) <= limit * value.numel() ** 0.5, key


def in_reference(case: Case, values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Values of parameters under the names and in the layouts of the reference."""
    there = {name: value for name, value in values.items() if value is not None}
    reference = {key: torch.empty(shape) for key, shape, _ in case.manifest["state_dict"]}
    return from_ours(there, recognise(reference))
