"""Small networks whose norms have seen data, and clouds for them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from lidarssl.backbones.base import Backbone
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.export.clouds import cloud_of
from lidarssl.frame import PointBatch

_Network = TypeVar("_Network", bound=Backbone)
UNET: dict[str, Any] = {
    "inputs": PointInputs(("intensity", "x", "y", "z"), reduce="mean"),
    "rule": "also",
    "voxel_size": 0.4,
    "stem_channels": 8,
    "encoder_channels": (8, 12),
    "decoder_channels": (12, 8),
    "blocks": (1, 2, 1, 1),
}
PLANES: dict[str, Any] = {
    "channels": 12,
    "depth": 4,
    "fov": ((-32.0, -32.0, -4.0), (32.0, 32.0, 4.0)),
    "grids": ((20, 24), (20, 6), (24, 6)),
    "neighbours": 5,
    "voxel_size": 0.2,
}


def unet(**arguments: Any) -> MinkUNet:
    return lived(MinkUNet(**UNET | arguments))


def planes(**arguments: Any) -> WaffleIron:
    return lived(WaffleIron(**PLANES | arguments))


def lived(network: _Network) -> _Network:
    """In eval mode, with weights and statistics of norms that are not those of the start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
            if isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
                module.weight.uniform_(0.5, 2, generator=generator)
                module.bias.normal_(generator=generator)
    return network.eval()


def clouds(sizes: list[int]) -> list[PointBatch]:
    rng = np.random.default_rng(5)
    return [cloud_of(rng, size) for size in sizes]
