"""What a network's weights tell of its constructor, and whether they are all there."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lidarssl.backbones.voxelize import PointInputs
from lidarssl.checkpoints import minkunet_names, waffleiron_names
from lidarssl.checkpoints.matching import misfits
from lidarssl.checkpoints.minkunet_names import Naming
from lidarssl.checkpoints.networks import OPENPCDET, VOXELNET, Network
from lidarssl.checkpoints.openpcdet import PLANE, TRUNK
from lidarssl.errors import ConfigError, DataError

CLASS_PATHS = {
    "MinkUNet": "lidarssl.backbones.minkunet.MinkUNet",
    "Spvcnn": "lidarssl.backbones.spvcnn.Spvcnn",
    "VoxelNet": "lidarssl.backbones.voxelnet.VoxelNet",
    "Second": "lidarssl.backbones.second.Second",
    "WaffleIron": "lidarssl.backbones.waffleiron.WaffleIron",
}
# Inputs of SLidR's and OLIVINE's networks, by their number.
_SLIDR_INPUTS = {1: ["intensity"], 4: ["x", "y", "z", "intensity"]}
_UNTOLD = {
    "MinkUNet": ("rule", "voxel_size", "inputs"),
    "Spvcnn": ("rule", "voxel_size", "inputs"),
    "VoxelNet": ("point_range", "voxel_size", "added_height", "inputs"),
    "Second": ("point_range", "voxel_size", "inputs"),
    "WaffleIron": ("activation", "fov", "grids", "voxel_size", "inputs"),
}
_MOST_HEIGHTS = 64


def class_of(network: Network) -> type[nn.Module]:
    """The class of this library that has these weights."""
    module, _, name = CLASS_PATHS[network.kind].rpartition(".")
    found: type[nn.Module] = getattr(import_module(module), name)
    return found


def told_arguments(network: Network) -> dict[str, Any]:
    """Constructor arguments that the weights and the settings beside them tell.

    Widths and depths always; how points become voxels, and which of their values these take,
    only where SLidR's or OLIVINE's settings are in the file.

    Raises:
        DataError: a weight of the network is missing, or of a shape that makes no sense.
    """
    try:
        arguments = _widths(network)
    except DataError as error:
        raise _broken(network, f"{error.problem} ({error.field})") from error
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise _broken(network, f"a weight is missing or has a wrong shape ({error})") from error
    if network.kind == "VoxelNet" and network.naming == OPENPCDET:
        arguments["added_height"] = 1
    return arguments | _told_by_settings(network)


def missing_arguments(network: Network) -> tuple[str, ...]:
    """Arguments that decide what the weights mean, and that nothing in the file tells."""
    told = told_arguments(network)
    return tuple(name for name in _UNTOLD[network.kind] if name not in told)


def inputs_of(network: Network) -> int:
    """Input features of a voxel."""
    first = {
        "VoxelNet": "conv_input.0.weight",
        "Second": f"{TRUNK}conv_input.0.weight",
        "WaffleIron": waffleiron_names.ANCHOR,
    }
    if network.kind in first:
        return network.state[first[network.kind]].shape[-1]
    return network.state["conv0p1s1.kernel"].shape[-2]


def check_whole(network: Network) -> None:
    """Raise unless the weights are exactly those of the architecture that they tell.

    Raises:
        DataError: names what is missing, unknown or of another shape.
    """
    arguments = told_arguments(network)
    arguments |= {"inputs": PointInputs(columns=("one",) * inputs_of(network))}
    if network.kind == "Second":
        arguments |= _grid_of_heights(_heights(network))
    try:
        with torch.device("meta"):
            module = class_of(network)(**arguments)
    except (ConfigError, ValueError) as error:
        problems = [str(error)]
    else:
        problems = misfits(module, network.state)
    if problems:
        raise _broken(network, "; ".join(problems))


def describe(network: Network) -> str:
    """The architecture in a line."""
    told = told_arguments(network)
    skipped = ("inputs", "rule", "voxel_size", "added_height", "residual")
    parts = [f"{network.kind}, inputs {inputs_of(network)}"]
    parts += ["residual"] if told.get("residual") else []
    parts += [
        f"{name.replace('_', ' ')} {_words(value)}"
        for name, value in told.items()
        if name not in skipped
    ]
    return ", ".join(parts)


def _widths(network: Network) -> dict[str, Any]:
    if network.kind in ("MinkUNet", "Spvcnn"):
        if network.state["conv0p1s1.kernel"].dim() < 2:
            raise IndexError("conv0p1s1.kernel")
        told = minkunet_names.architecture(network.state)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in told.items()
            if value is not None
        }
    if network.kind == "WaffleIron":
        return waffleiron_names.architecture(network.state)
    if network.kind == "VoxelNet":
        return _trunk_widths(network.state, "")
    return _trunk_widths(network.state, TRUNK) | _plane_widths(network.state)


def _trunk_widths(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    convolutions = ["conv_input.0", "conv2.0.0", "conv3.0.0", "conv4.0.0", "conv_out.0"]
    *channels, trunk = (state[f"{prefix}{name}.weight"].shape[0] for name in convolutions)
    return {
        "channels": channels,
        "trunk_channels": trunk,
        "residual": f"{prefix}conv1.0.conv1.weight" in state,
    }


def _plane_widths(state: Mapping[str, Tensor]) -> dict[str, Any]:
    def count(name: str, first: int, step: int) -> int:
        numbers = itertools.count(first, step)
        return sum(1 for _ in itertools.takewhile(lambda i: name.format(i) in state, numbers))

    blocks = range(count(PLANE + "blocks.{}.1.weight", 0, 1))
    scales = [1, *(state[f"{PLANE}deblocks.{block}.0.weight"].shape[2] for block in blocks)]
    return {
        "layers": [count(f"{PLANE}blocks.{block}.{{}}.weight", 4, 3) for block in blocks],
        "strides": [after // before for before, after in itertools.pairwise(scales)],
        "plane_channels": [state[f"{PLANE}blocks.{b}.1.weight"].shape[0] for b in blocks],
        "up_channels": [state[f"{PLANE}deblocks.{b}.0.weight"].shape[1] for b in blocks],
    }


def _heights(network: Network) -> int:
    """Cells above one another at the end of the trunk of a ``Second``."""
    plane = network.state[f"{PLANE}blocks.0.1.weight"].shape
    trunk = network.state[f"{TRUNK}conv_out.0.weight"].shape[0]
    return max(1, min(plane[1] // trunk, _MOST_HEIGHTS)) if len(plane) > 1 else 1


def _grid_of_heights(heights: int) -> dict[str, Any]:
    """A small grid whose trunk ends with so many heights: four times (or so) halved."""
    cells = 16 * heights + 9
    return {
        "point_range": (0.0, 0.0, 0.0, 3.2, 3.2, cells / 10),
        "voxel_size": (0.1, 0.1, 0.1),
        "added_height": 0,
    }


def _told_by_settings(network: Network) -> dict[str, Any]:
    """What SLidR's and OLIVINE's settings say of the voxels."""
    told: dict[str, Any] = {}
    unet = network.naming == Naming.MINKOWSKI
    size = network.config.get("voxel_size")
    columns = _SLIDR_INPUTS.get(inputs_of(network))
    if size is None or columns is None or not (unet or network.naming == VOXELNET):
        return told
    told["inputs"] = {"columns": columns, "reduce": "first" if unet else "mean"}
    if unet and isinstance(size, int | float):
        told["voxel_size"] = float(size)
    if not unet and isinstance(size, list | tuple) and len(size) == 3:
        told["voxel_size"] = list(size)
    cylindrical = network.config.get("cylindrical_coordinates")
    if unet and isinstance(cylindrical, bool):
        told["rule"] = "slidr_cylindrical" if cylindrical else "slidr_cartesian"
    return told


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _broken(network: Network, problem: str) -> DataError:
    return DataError(
        f"the {network.kind} in it is not whole: {problem}",
        path=network.path,
        remedy="download it again, or check how it was saved",
    )
