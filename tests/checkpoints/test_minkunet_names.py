from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.backbones.minkunet import MinkUNet, ResidualBlock
from lidarssl.backbones.spvcnn import Spvcnn
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.checkpoints.minkunet_names import (
    OURS,
    Naming,
    architecture,
    convert,
    from_ours,
    recognise,
    to_ours,
)
from lidarssl.errors import ConfigError, DataError
from lidarssl.sparse.kernel import Convention
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.tensor import SparseTensor
from sparse.reference import random_sites

OTHERS = [naming for naming in Naming if naming is not OURS]
SMALL: dict[str, Any] = {
    "stem_channels": 3,
    "encoder_channels": (3, 5),
    "decoder_channels": (5, 4),
    "blocks": (1, 2, 2, 1),
}


@st.composite
def networks(draw: st.DrawFn) -> dict[str, Any]:
    depth = draw(st.integers(1, 5))
    widths = st.lists(st.integers(1, 3), min_size=depth, max_size=depth).map(tuple)
    blocks = st.lists(st.integers(1, 12), min_size=2 * depth, max_size=2 * depth).map(tuple)
    return {
        "stem_channels": draw(st.integers(1, 3)),
        "encoder_channels": draw(widths),
        "decoder_channels": draw(widths),
        "blocks": draw(blocks),
        "kernel_size": draw(st.sampled_from([1, 2, 3, 5])),
        "stem_convolutions": draw(st.integers(1, 4)),
        "head_channels": draw(st.sampled_from([None, 1, 7])),
    }


def unlike(network: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """A state in which no two numbers are equal."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator, dtype=torch.float64)
        for name, value in network.state_dict().items()
    }


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name
        assert actual[name].is_contiguous(), name


@settings(max_examples=25, deadline=None)
@given(arguments=networks(), naming=st.sampled_from(OTHERS))
def test_there_and_back_is_bit_equal(arguments, naming):
    ours = unlike(MinkUNet(**arguments))
    there = from_ours(ours, naming)
    assert recognise(there) is naming
    assert len(there) == len(ours)
    assert all(value.is_contiguous() for value in there.values())
    assert_equal(to_ours(there), ours)
    assert architecture(ours) == arguments


@settings(max_examples=15, deadline=None)
@given(
    arguments=networks().filter(lambda a: len(a["encoder_channels"]) > 1),
)
def test_the_point_branch_comes_along(arguments):
    ours = unlike(Spvcnn(**arguments))
    there = convert(ours, Naming.TORCHSPARSE)
    assert "point_transforms.2.1.running_var" in there
    assert_equal(to_ours(there), ours)


def torchsparse_network(state: dict[str, Tensor]) -> MinkUNet:
    """The network with torchsparse's rules, from weights in torchsparse's order."""
    model = MinkUNet(**SMALL).double()
    for layer in model.modules():
        if isinstance(layer, SparseConv3d):
            layer.convention = Convention.TORCHSPARSE
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


def test_round_trip_of_a_network_and_the_same_function_all_the_way() -> None:
    """Ours -> torchsparse -> MinkowskiEngine -> ours."""
    model = MinkUNet(**SMALL).double().eval()
    model.load_state_dict(unlike(model))
    ours = model.state_dict()
    torchsparse = convert(ours, Naming.TORCHSPARSE)
    minkowski = convert(torchsparse, Naming.SEGCONTRAST)
    back = convert(minkowski, OURS)
    assert_equal(back, dict(ours))

    sites = random_sites(torch.Generator().manual_seed(0), 200, 8)
    features = torch.randn(sites.shape[0], 1, dtype=torch.float64)

    def run(network: MinkUNet) -> Tensor:
        with torch.no_grad():
            return network.forward_sparse(SparseTensor.of(sites, features)).features

    expected = run(model)
    again = MinkUNet(**SMALL).double().eval()
    again.load_state_dict(back)
    assert torch.equal(run(again), expected)
    assert torch.allclose(run(torchsparse_network(torchsparse)), expected, rtol=1e-12)
    # The order of even kernels matters: theirs, read as ours, is another function.
    again.load_state_dict(dict(zip(ours, torchsparse.values(), strict=True)))
    assert not torch.allclose(run(again), expected, rtol=1e-3)


def test_names_of_torchsparse() -> None:
    arguments = SMALL | {"encoder_channels": (3,), "decoder_channels": (4,), "blocks": (1, 1)}
    model = MinkUNet(**arguments, stem_convolutions=2, head_channels=2)
    there = from_ours(model.state_dict(), Naming.TORCHSPARSE)
    shapes = {
        name: tuple(value.shape)
        for name, value in there.items()
        if name.endswith(("kernel", "running_mean")) or "classifier" in name
    }
    assert shapes == {
        "stem.0.kernel": (27, 1, 3),
        "stem.1.running_mean": (3,),
        "stem.3.kernel": (27, 3, 3),
        "stem.4.running_mean": (3,),
        "stage1.0.net.0.kernel": (8, 3, 3),
        "stage1.0.net.1.running_mean": (3,),
        "stage1.1.net.0.kernel": (27, 3, 3),
        "stage1.1.net.1.running_mean": (3,),
        "stage1.1.net.3.kernel": (27, 3, 3),
        "stage1.1.net.4.running_mean": (3,),
        "up1.0.net.0.kernel": (8, 3, 4),
        "up1.0.net.1.running_mean": (4,),
        "up1.1.0.net.0.kernel": (27, 7, 4),
        "up1.1.0.net.1.running_mean": (4,),
        "up1.1.0.net.3.kernel": (27, 4, 4),
        "up1.1.0.net.4.running_mean": (4,),
        "up1.1.0.downsample.0.kernel": (7, 4),
        "up1.1.0.downsample.1.running_mean": (4,),
        "classifier.0.weight": (2, 4),
        "classifier.0.bias": (2,),
    }


@pytest.mark.parametrize(
    ("naming", "names"),
    [
        (
            Naming.MMDET3D_TORCHSPARSE,
            [
                "conv_input.1.net.0.kernel",
                "encoder.0.0.net.1.running_var",
                "encoder.1.2.net.4.bias",
                "encoder.1.1.downsample.0.kernel",
                "decoder.0.0.net.0.kernel",
                "decoder.1.1.0.net.3.kernel",
            ],
        ),
        (
            Naming.MMDET3D_MINKOWSKI,
            [
                "conv_input.1.net.0.kernel",
                "encoder.0.0.net.1.bn.running_var",
                "encoder.1.2.norm2.bn.bias",
                "encoder.1.1.downsample.net.0.kernel",
                "decoder.0.0.net.0.kernel",
                "decoder.1.1.0.conv2.kernel",
            ],
        ),
        (
            Naming.MMDET3D_SPCONV,
            [
                "conv_input.1.0.weight",
                "encoder.0.0.1.running_var",
                "encoder.1.2.bn2.bias",
                "encoder.1.1.downsample.0.weight",
                "decoder.0.0.0.weight",
                "decoder.1.1.0.conv2.weight",
            ],
        ),
    ],
)
def test_names_of_mmdetection3d(naming: Naming, names: list[str]) -> None:
    model = MinkUNet(**SMALL, stem_convolutions=2, head_channels=19)
    there = from_ours(model.state_dict(), naming)
    assert {f"backbone.{name}" for name in names} < there.keys()
    assert there["decode_head.cls_seg.weight"].shape == (19, 4)
    older = {name.replace("cls_seg", "conv_seg"): value for name, value in there.items()}
    assert_equal(to_ours(older), model.state_dict())


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (2, 2)])
def test_spconv_kernels_are_dense_kernels(size: int, stride: int) -> None:
    """Its (C_out, k, k, k, C_in) is a dense kernel, sites being read as (x, y, z)."""
    model = MinkUNet(**SMALL).double()
    there = from_ours(model.state_dict(), Naming.MMDET3D_SPCONV)
    name = "encoder.1.1.conv1" if size == 3 else "encoder.1.0.0"
    weight = there[f"backbone.{name}.weight"].permute(0, 4, 1, 2, 3)
    layer = model.block2[0].conv1 if size == 3 else model.conv2p2s2
    cube = torch.cartesian_prod(*[torch.arange(6)] * 3)
    features = torch.randn(216, weight.shape[1], dtype=torch.float64)
    actual = layer(SparseTensor.of(F.pad(cube, (1, 0)), features)).features
    volume = features.view(6, 6, 6, -1).permute(3, 0, 1, 2)[None]
    dense = F.conv3d(volume, weight, stride=stride, padding=1 if size == 3 else 0)
    assert torch.allclose(actual, dense[0].flatten(1).t(), rtol=0, atol=1e-12)


def test_spconv_reads_pointwise_kernels_as_they_lie() -> None:
    model = MinkUNet(**SMALL)
    there = from_ours(model.state_dict(), Naming.MMDET3D_SPCONV)
    weight = there["backbone.encoder.1.1.downsample.0.weight"]
    assert weight.shape == (5, 1, 1, 1, 3)
    rows = torch.randn(4, 3)
    block = model.block2[0]
    assert isinstance(block, ResidualBlock)
    assert block.downsample is not None
    expected = rows @ block.downsample[0].kernel
    assert torch.equal(rows @ weight.reshape(-1).view(3, 5), expected)


def test_linear_heads_become_convolutions() -> None:
    model = MinkUNet(**SMALL, head_channels=6)
    there = from_ours(model.state_dict(), Naming.SEGCONTRAST)
    rows = torch.randn(5, 4)
    linear = F.linear(rows, there["final.0.weight"], there["final.0.bias"])
    assert model.final is not None
    sites = F.pad(torch.arange(5)[:, None], (1, 2))
    assert torch.allclose(model.final(SparseTensor.of(sites, rows)).features, linear, atol=1e-6)


def test_norm_before_the_linear_head() -> None:
    there = from_ours(MinkUNet(**SMALL, head_channels=6).state_dict(), Naming.TORCHSPARSE)
    there["classifier.1.weight"] = there.pop("classifier.0.weight")
    there["classifier.1.bias"] = there.pop("classifier.0.bias")
    for name in ("running_mean", "running_var"):
        there[f"classifier.0.{name}"] = torch.rand(4)
    ours = to_ours(there)
    assert torch.equal(ours["final_norm.bn.running_var"], there["classifier.0.running_var"])
    assert torch.equal(ours["final.kernel"], there["classifier.1.weight"].t())
    assert_equal(from_ours(ours, Naming.TORCHSPARSE), there)
    with pytest.raises(ConfigError, match="no place for the head 'final_norm'"):
        from_ours(ours, Naming.SEGCONTRAST)


def test_second_head_of_olivine() -> None:
    ours = dict(MinkUNet(**SMALL, head_channels=6).state_dict())
    ours["final_class_level.kernel"] = torch.rand(4, 6)
    ours["final_class_level.bias"] = torch.rand(1, 6)
    assert_equal(to_ours(ours), ours)
    with pytest.raises(ConfigError, match="no place for the head 'final_class_level'"):
        from_ours(ours, Naming.TORCHSPARSE)


def test_architecture_without_inputs() -> None:
    inputs = PointInputs(("x", "y", "z", "one"))
    model = MinkUNet(inputs, **SMALL, stem_convolutions=2, kernel_size=5, head_channels=3)
    found = architecture(model.state_dict())
    again = MinkUNet(inputs, **found)
    again.load_state_dict(model.state_dict())
    broken = dict(model.state_dict())
    del broken["block3.0.conv1.kernel"]
    with pytest.raises(DataError, match=r"block3\.0\.conv1\.kernel"):
        architecture(broken)


@pytest.mark.parametrize(
    "extra",
    [
        "epoch",
        "stage1.9.net.0.kernel",
        "stage1.0.net.0.bias",
        "stage3.0.net.1.weight",
        "point_transforms.1.0.weight",
        "classifier.0.gamma",
        "model.stem.0.kernel",
    ],
)
def test_unknown_keys_are_named(extra: str) -> None:
    there = from_ours(MinkUNet(**SMALL).state_dict(), Naming.TORCHSPARSE)
    with pytest.raises(DataError, match=extra) as caught:
        to_ours(there | {extra: torch.zeros(1)})
    assert caught.value.field == extra


def test_other_networks_are_refused() -> None:
    for state in (
        {},
        {"conv_input.0.weight": torch.zeros(16, 3, 3, 3, 4), "conv_input.1.weight": torch.zeros(1)},
        {"stem.0.weight": torch.zeros(1), "stem.1.weight": torch.zeros(1)},
    ):
        with pytest.raises(DataError, match="known naming"):
            to_ours(state)


def test_point_branch_has_no_place_elsewhere() -> None:
    with pytest.raises(ConfigError, match="point branch"):
        from_ours(Spvcnn(**SMALL).state_dict(), Naming.SEGCONTRAST)


@pytest.mark.parametrize(
    ("naming", "key", "shape"),
    [
        (Naming.TORCHSPARSE, "stage1.0.net.0.kernel", (9, 3, 3)),
        (Naming.TORCHSPARSE, "stage1.0.net.0.kernel", (8, 3, 3, 1)),
        (Naming.TORCHSPARSE, "stage1.0.net.0.kernel", ()),
        (Naming.TORCHSPARSE, "classifier.0.weight", (2, 3, 1)),
        (Naming.MMDET3D_SPCONV, "backbone.encoder.0.0.0.weight", (2, 2, 2, 3, 3)),
        (Naming.MMDET3D_SPCONV, "backbone.encoder.0.0.0.weight", (8, 3, 3)),
    ],
)
def test_kernels_of_a_wrong_shape_are_named(naming: Naming, key: str, shape: Any) -> None:
    there = from_ours(MinkUNet(**SMALL, head_channels=2).state_dict(), naming)
    assert key in there
    with pytest.raises(DataError, match="shape") as caught:
        to_ours(there | {key: torch.zeros(shape)})
    assert caught.value.field == key
