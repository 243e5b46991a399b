"""The networks that other libraries build: weights of any other shape fit none of them."""

from __future__ import annotations

from typing import Any

from lidarssl.checkpoints.minkunet_names import Naming, architecture
from lidarssl.checkpoints.networks import Network

_FULL: dict[str, Any] = {
    "stem_channels": 32,
    "encoder_channels": (32, 64, 128, 256),
    "decoder_channels": (256, 128, 96, 96),
    "kernel_size": 3,
}
_HALF: dict[str, Any] = {
    "stem_channels": 16,
    "encoder_channels": (16, 32, 64, 128),
    "decoder_channels": (128, 64, 48, 48),
    "kernel_size": 3,
}
_DEEP = {"blocks": (2, 3, 4, 6, 2, 2, 2, 2)}
_EVEN = {"blocks": (2,) * 8}
_ONE, _TWO = {"stem_convolutions": 1}, {"stem_convolutions": 2}

_NETWORKS: dict[Naming, dict[str, tuple[str, dict[str, Any]]]] = {
    Naming.TORCHSPARSE: {
        "MinkUNet34": ("MinkUNet", _FULL | _DEEP | _ONE),
        "MinkUNet18": ("MinkUNet", _FULL | _EVEN | _ONE),
        "MinkUNet18SC": ("MinkUNet", _FULL | _EVEN | _TWO),
        "SPVCNN": ("Spvcnn", _FULL | _EVEN | _TWO),
        "SPVCNN0p5": ("Spvcnn", _HALF | _EVEN | _TWO),
    },
    Naming.MINKOWSKI: {"Res16UNet34C": ("MinkUNet", _FULL | _DEEP | _ONE)},
    Naming.SEGCONTRAST: {"SegContrastMinkUNet18": ("MinkUNet", _FULL | _EVEN | _TWO)},
}


def published_names(naming: Naming) -> tuple[str, ...]:
    """The MinkUNets and SPVCNNs that the code with these names builds."""
    return tuple(_NETWORKS[naming])


def published_name(network: Network, naming: Naming) -> str | None:
    """Which of them a network is, whatever its inputs.

    Args:
        network: a ``MinkUNet`` or ``Spvcnn``.
        naming: of the code.

    Returns:
        Its name there; None when it is of another shape than all of them.
    """
    shape = architecture(network.state)
    for name, (kind, wanted) in _NETWORKS[naming].items():
        if network.kind == kind and wanted.items() <= shape.items():
            return name
    return None
