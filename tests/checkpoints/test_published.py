"""Networks of other libraries are known by shape; anything else is none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.spvcnn import Spvcnn
from lidarssl.checkpoints.minkunet_names import Naming
from lidarssl.checkpoints.networks import Network, find_network
from lidarssl.checkpoints.published import published_name, published_names

EVEN: dict[str, Any] = {"blocks": (2,) * 8}
# Name, class, arguments, parameters of the published network, inputs and outputs of its head.
TORCHSPARSE: list[tuple[str, type[MinkUNet], dict[str, Any], int, int, int]] = [
    ("MinkUNet34", MinkUNet, {}, 37_844_625, 1, 17),
    ("MinkUNet34", MinkUNet, {}, 37_847_217, 4, 17),
    ("MinkUNet18", MinkUNet, EVEN, 21_692_817, 1, 17),
    ("MinkUNet18SC", MinkUNet, EVEN | {"stem_convolutions": 2}, 21_723_412, 4, 20),
    ("SPVCNN", Spvcnn, {}, 21_775_217, 1, 17),
    ("SPVCNN", Spvcnn, {}, 21_778_100, 4, 20),
    ("SPVCNN0p5", Spvcnn, {"width": 0.5}, 5_447_873, 1, 17),
]


def network(cls: type[MinkUNet], inputs: int = 1, **arguments: Any) -> Network:
    with torch.device("meta"):
        state = cls(**arguments).state_dict()
        state["conv0p1s1.kernel"] = state["conv0p1s1.kernel"][:, :1].repeat(1, inputs, 1)
    return find_network(state, Path("source.pt"))


@pytest.mark.parametrize(("name", "cls", "arguments", "count", "inputs", "classes"), TORCHSPARSE)
def test_networks_of_torchsparse_have_their_published_size(
    name: str, cls: type[MinkUNet], arguments: dict[str, Any], count: int, inputs: int, classes: int
) -> None:
    source = network(cls, inputs, **arguments)
    assert published_name(source, Naming.TORCHSPARSE) == name
    assert name in published_names(Naming.TORCHSPARSE)
    own = sum(
        value.numel()
        for key, value in source.state.items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    features = source.state["block8.1.conv2.kernel"].shape[-1]
    assert own + (features + 1) * classes == count


def test_networks_of_minkowski_engine() -> None:
    two: dict[str, Any] = {"stem_convolutions": 2}
    assert published_name(network(MinkUNet), Naming.MINKOWSKI) == "Res16UNet34C"
    assert published_name(network(MinkUNet, **EVEN), Naming.MINKOWSKI) is None
    found = published_name(network(MinkUNet, 4, **EVEN, **two), Naming.SEGCONTRAST)
    assert found == "SegContrastMinkUNet18"
    assert published_name(network(MinkUNet, **two), Naming.SEGCONTRAST) is None


@pytest.mark.parametrize(
    "change",
    [
        {"stem_channels": 16},
        {"encoder_channels": (32, 64, 128, 128)},
        {"decoder_channels": (256, 128, 96, 64)},
        {"blocks": (2, 3, 4, 6, 2, 2, 2, 3)},
        {"kernel_size": 5},
        {"stem_convolutions": 3},
        {"encoder_channels": (32, 64), "decoder_channels": (96, 96), "blocks": (2,) * 4},
    ],
)
def test_one_difference_makes_it_another_network(change: dict[str, Any]) -> None:
    source = network(MinkUNet, **change)
    for naming in (Naming.TORCHSPARSE, Naming.MINKOWSKI, Naming.SEGCONTRAST):
        assert published_name(source, naming) is None


def test_a_point_branch_makes_it_another_network() -> None:
    """MinkUNet34 with the branch of SPVCNN is neither of the two."""
    source = network(Spvcnn, blocks=(2, 3, 4, 6, 2, 2, 2, 2), stem_convolutions=1)
    assert published_name(source, Naming.TORCHSPARSE) is None
