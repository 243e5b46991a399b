"""Write a lidar network for other libraries; :mod:`lidarssl.checkpoints.networks` reads theirs."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lidarssl.checkpoints import minkunet_names as names
from lidarssl.checkpoints import waffleiron_names
from lidarssl.checkpoints.minkunet_names import Naming
from lidarssl.checkpoints.networks import Network, kind_of
from lidarssl.checkpoints.openpcdet import TRUNK, detector_file
from lidarssl.checkpoints.spconv_layouts import SpconvLayout
from lidarssl.errors import ConfigError
from lidarssl.replacing import replacing

_UNETS = ("MinkUNet", "Spvcnn")


class Format(enum.StrEnum):
    """What can be written.

    ``lidarssl``: safetensors with a card.
    ``torchsparse``: a flat file that the downstream code of ALSO, NCLR and BEVContrast loads.
    ``minkowski``: what the downstream code of SLidR and OLIVINE loads.
    ``segcontrast``: a flat file for SegContrast's network on MinkowskiEngine.
    ``openpcdet``: what SECOND and PV-RCNN of OpenPCDet load.
    ``waffleiron``: what the code of WaffleIron and ScaLR loads, with the head if there is one.
    ``timm``: the state dict of a vision transformer of timm.
    ``transformers``: a folder that ``from_pretrained`` of a vision transformer reads.
    """

    LIDARSSL = "lidarssl"
    TORCHSPARSE = "torchsparse"
    MINKOWSKI = "minkowski"
    SEGCONTRAST = "segcontrast"
    OPENPCDET = "openpcdet"
    WAFFLEIRON = "waffleiron"
    TIMM = "timm"
    TRANSFORMERS = "transformers"


IMAGE_FORMATS = (Format.TIMM, Format.TRANSFORMERS)


def foreign_content(
    network: Network, target: Format, layout: SpconvLayout = SpconvLayout.KRSC
) -> dict[str, Any]:
    """What a file of another library holds: plain tensors and, for SLidR, two settings.

    Args:
        network: to write.
        target: any format but ``lidarssl``.
        layout: of spconv weights.

    Raises:
        ConfigError: the other library has no such network.
    """
    check_format(network, target)
    if target is Format.WAFFLEIRON:
        return waffleiron_names.published_content(network.state, network.head)
    if target is Format.OPENPCDET:
        prefix = "" if network.kind == "Second" else TRUNK
        return detector_file({prefix + name: v for name, v in network.state.items()}, layout)
    if target is Format.MINKOWSKI:
        return {"model_points": dict(network.state)} | _slidr_config(network)
    return dict(names.from_ours(network.state, Naming(target.value)))


def check_format(network: Network, target: Format) -> None:
    """Refuse a format whose library has no such network.

    Raises:
        ConfigError: names the formats that are left.
    """
    if target is Format.LIDARSSL:
        return
    stem = sum(name.startswith("conv0p1s1") for name in network.state)
    if network.kind == "WaffleIron":
        known = target is Format.WAFFLEIRON
    elif network.kind not in _UNETS:
        known = target is Format.OPENPCDET
    elif network.kind == "Spvcnn":
        known = target is Format.TORCHSPARSE
    else:
        counts = {Format.TORCHSPARSE: (1, 2), Format.MINKOWSKI: (1,), Format.SEGCONTRAST: (2,)}
        known = stem in counts.get(target, ())
    if not known:
        raise _no_such_network(network, target, stem)


def write_foreign(path: Path, content: Mapping[str, Any]) -> None:
    """``torch.save`` of plain tensors, whole or not at all.

    Every tensor gets memory of its own, so that the file holds what it needs and no more.
    """
    with replacing(path, durable=True) as partial:
        torch.save(_owned(content), partial)


def state_for(network: Network, backbone: nn.Module) -> dict[str, Tensor]:
    """The weights of a network under the names of a backbone.

    A ``Second`` gives its trunk to a ``VoxelNet``; any other pair must be of one kind.

    Raises:
        ConfigError: they are different networks.
    """
    wanted = kind_of(backbone.state_dict())
    if (network.kind, wanted) == ("Second", "VoxelNet"):
        return {
            name.removeprefix(TRUNK): value
            for name, value in network.state.items()
            if name.startswith(TRUNK)
        }
    if network.kind != wanted:
        raise ConfigError(
            f"holds a {network.kind}, where a {wanted or type(backbone).__name__} is wanted",
            path=network.path,
            remedy=f"choose a recipe whose backbone is a {network.kind}",
        )
    return dict(network.state)


def _slidr_config(network: Network) -> dict[str, Any]:
    """Two settings that loaders of SLidR and OLIVINE compare where they are given."""
    keys = ("voxel_size", "cylindrical_coordinates")
    config = {key: network.config[key] for key in keys if key in network.config}
    if network.card is not None:
        arguments = network.card.architecture.init_args
        rule = str(arguments.get("rule", ""))
        if rule.startswith("slidr_") and "voxel_size" in arguments:
            config = {
                "voxel_size": arguments["voxel_size"],
                "cylindrical_coordinates": rule == "slidr_cylindrical",
            }
    return {"config": config} if config else {}


def _no_such_network(network: Network, target: Format, stem: int) -> ConfigError:
    what, better = network.kind, "torchsparse"
    if what == "MinkUNet":
        if target is not Format.OPENPCDET:
            what = f"MinkUNet with {stem} convolution{'s' * (stem != 1)} in its stem"
        better = {1: "torchsparse or minkowski", 2: "torchsparse or segcontrast"}.get(stem, "")
    elif what != "Spvcnn":
        better = "waffleiron" if what == "WaffleIron" else "openpcdet"
    return ConfigError(
        f"the networks that '{target}' files are for have no {what}",
        path=network.path,
        field="--to",
        remedy=f"for this network: --to lidarssl{', ' * bool(better)}{better}",
    )


def _owned(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _owned(value) for name, value in content.items()}
    if isinstance(content, Tensor):
        return content.detach().cpu().clone(memory_format=torch.contiguous_format)
    return content
