"""`lidarssl convert`: weights of any origin become a file of this or of another library."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from lidarssl import checkpoints
from lidarssl.backbones.base import Backbone
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.checkpoints.architectures import (
    check_whole,
    class_of,
    describe,
    inputs_of,
    missing_arguments,
    told_arguments,
)
from lidarssl.checkpoints.convert import (
    Format,
    check_format,
    foreign_content,
    state_for,
    write_foreign,
)
from lidarssl.checkpoints.matching import compare
from lidarssl.checkpoints.minkunet_names import Naming
from lidarssl.checkpoints.networks import Network, read_network
from lidarssl.checkpoints.published import published_name, published_names
from lidarssl.checkpoints.spconv_layouts import SpconvLayout
from lidarssl.checkpoints.waffleiron_names import head_in_words
from lidarssl.errors import ConfigError
from lidarssl.experiments.conversion import (
    Wanted,
    card_of,
    complete_arguments,
    keep_existing,
    refuse_options,
    rows_of_card,
    writing,
)
from lidarssl.experiments.record import weights_of
from lidarssl.geometry.voxels import cell_coordinates
from lidarssl.recipes import schema
from lidarssl.wording import counted

_OWN_SUFFIX, _TORCH_SUFFIXES = ".safetensors", (".pt", ".pth", ".ckpt", ".bin")
# Whose code reads a file, and as which option.
_READERS = {
    Format.TORCHSPARSE: ("the downstream code of ALSO, NCLR and BEVContrast", "checkpoint"),
    Format.MINKOWSKI: ("the downstream code of SLidR and OLIVINE", "--pretraining_path"),
    Format.SEGCONTRAST: ("NCLR's semantic segmentation on MinkowskiEngine", "checkpoint"),
    Format.OPENPCDET: ("OpenPCDet's tools/train.py", "--pretrained_model"),
    Format.WAFFLEIRON: ("the code of WaffleIron and ScaLR", "ckpt_last.pth or --pretrained_ckpt"),
}
# Tensors whose shape tells the number of inputs, where there are more than one.
_INPUT_TENSORS = {"WaffleIron": 10}
# An option that widths depend on.
_WIDTHS = {"MinkUNet": "--encoder_channels", "WaffleIron": "--channels"}


def read(source: Path, prefix: str | None, layout: SpconvLayout | None) -> Network:
    """The network of a file or run folder, whole.

    Raises:
        DataError: no readable file, no network in it, or not all of it.
        ConfigError: several networks, or an spconv layout that the file does not tell.
    """
    network = read_network(weights_of(source, "SOURCE"), prefix, layout)
    check_whole(network)
    return network


def description(network: Network) -> str:
    """What a file holds, for people."""
    place = [f"entry '{network.entry}'"] if network.entry else []
    place += [f"prefix '{network.prefix}'"] if network.prefix else []
    parameters = sum(
        value.numel()
        for name, value in network.state.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    left_out = [f"{name} ({what})" for name, what in network.left_out.items()]
    rows = {
        "from": network.source,
        "network": describe(network),
        "parameters": f"{parameters:,} in {counted(len(network.state), 'tensor')}",
        "place": ", ".join(place) or "top of the file, no prefix",
        "left out": ", ".join(left_out) or "nothing",
    }
    if network.head:
        rows["head"] = f"{head_in_words(network.head)}; only --to waffleiron keeps it"
    if network.card is not None:
        rows |= rows_of_card(network.card)
    return "\n".join([str(network.path), *(f"  {name:<13}{text}" for name, text in rows.items())])


def convert(network: Network, wanted: Wanted) -> str:
    """Write the network in another format.

    Returns:
        What was written, for people.

    Raises:
        ConfigError: the output exists, the format has no such network, or the architecture is
            not fully known.
    """
    check_format(network, wanted.target)
    path = _output_file(wanted)
    refuse_options(wanted)
    if wanted.target is Format.LIDARSSL:
        lines = _write_own(network, wanted, path)
    else:
        content = foreign_content(network, wanted.target, wanted.layout)
        with writing(path):
            write_foreign(path, content)
        lines = _lacks(network, wanted.target)
    use = _use(network, wanted.target, path)
    return "\n".join([f"{path}", *lines, f"  use          {use}"])


def _lacks(network: Network, target: Format) -> list[str]:
    """What the readers of a file expect and the network has not."""
    if target is Format.OPENPCDET and network.kind == "VoxelNet":
        return ["  without      backbone_2d, which this network has not: it stays random there"]
    if target is Format.WAFFLEIRON and not network.head:
        return ["  without      a head classif, which this file has not: load it with strict=False"]
    return []


def _use(network: Network, target: Format, path: Path) -> str:
    """Who takes the file; other code builds networks of its own widths, whatever a file holds."""
    if target is Format.LIDARSSL:
        return f"lidarssl probe or finetune RECIPE --checkpoint {path}"
    code, option = _READERS[target]
    if target in (Format.OPENPCDET, Format.WAFFLEIRON):
        return f"{code} takes it as {option}"
    naming = Naming(target.value)
    name = published_name(network, naming)
    if name is None:
        return (
            f"no published network has this shape: {code} builds "
            f"{', '.join(published_names(naming))} and takes no other as {option}; "
            "a network that is built alike there takes it, and so does lidarssl"
        )
    return f"{code} takes it as {option}, of {name}"


def _output_file(wanted: Wanted) -> Path:
    path = wanted.output
    own = wanted.target is Format.LIDARSSL
    if (path.suffix in _TORCH_SUFFIXES) if own else (path.is_dir() or path.suffix == _OWN_SUFFIX):
        raise ConfigError(
            f"'{wanted.target}' files are {'safetensors' if own else 'those of torch.save'}",
            path=path,
            field="--output",
            remedy=f"give a name that ends in {_OWN_SUFFIX}, or a folder"
            if own
            else f"give a name that ends in {', '.join(_TORCH_SUFFIXES)}",
        )
    if own and path.suffix != _OWN_SUFFIX:
        path = path / checkpoints.WEIGHTS_FILE
    keep_existing((path, path.with_suffix(".json"))[: 2 if own else 1], wanted)
    return path


def _write_own(network: Network, wanted: Wanted, path: Path) -> list[str]:
    """Safetensors with a card, from which `probe` and `finetune` know that the weights fit."""
    built = backbone_arguments(network, wanted)
    node = {"class_path": built.class_path, "init_args": dict(built.init_args)}
    backbone = schema.build_backbone(node, seed=0)
    _check_voxels(backbone)
    _fill(backbone, network, built)
    with writing(path):
        checkpoints.save(path, backbone, card_of(built, network.card, wanted))
    shown = ("rule", "point_range", "fov", "grids", "voxel_size", "added_height", "inputs")
    return [f"  {name:<13}{built.init_args[name]}" for name in shown if name in built.init_args]


def _check_voxels(backbone: Backbone) -> None:
    """Refuse a rule or size that no point could be given a voxel with.

    Raises:
        ConfigError: names the argument.
    """
    if not isinstance(backbone, MinkUNet):
        return  # the others have made their grid by now
    try:
        cell_coordinates(torch.zeros(0, 3), backbone.grid.rule, backbone.grid.voxel_size)
    except ConfigError as error:
        raise ConfigError(error.problem, field=f"--{error.field}", remedy=error.remedy) from None


def _fill(backbone: Backbone, network: Network, built: checkpoints.Architecture) -> None:
    """Put the weights into the backbone.

    Raises:
        ConfigError: they do not fit.
    """
    state = state_for(network, backbone)
    columns, inputs = built.init_args["inputs"]["columns"], inputs_of(network)
    found = compare(backbone, state)
    alike = not (found.missing or found.unexpected)
    alike = alike and len(found.mismatched) == _INPUT_TENSORS.get(network.kind, 1)
    if alike and len(columns) != inputs:
        raise ConfigError(
            f"the weights take {inputs} value{'s' * (inputs != 1)} of a voxel, "
            f"the columns are {len(columns)}: {', '.join(columns)}",
            path=network.path,
            field="--inputs.columns",
            remedy=f"give {inputs} with --inputs.columns, or choose a --like recipe whose "
            f"backbone takes {inputs}",
        )
    try:
        checkpoints.load_into(backbone, state)
    except ConfigError as error:
        option = _WIDTHS.get(type(backbone).__name__, "--point_range")
        raise ConfigError(
            error.problem,
            path=error.path or network.path,
            remedy="choose a --like recipe whose backbone is the network described above, or "
            f"set its options, e.g. {option}",
        ) from error


def backbone_arguments(network: Network, wanted: Wanted) -> checkpoints.Architecture:
    """Class and all constructor arguments of the backbone that the weights are for.

    They come from a recipe, from the card of the source, or from what weights, settings and
    options tell.

    Raises:
        ConfigError: something is left to be told, or an option is wrong.
    """
    cls: type = class_of(network)
    if wanted.like is not None:
        node = _backbone_of(wanted.like)
        module, _, name = node["class_path"].rpartition(".")
        cls, content = getattr(import_module(module), name), node["init_args"]
        hint = f"`lidarssl recipes {wanted.like} --keys` lists them"
    elif network.card is not None:
        content = copy.deepcopy(dict(network.card.architecture.init_args))
        _check_class(network, network.card, cls)
        hint = "docs/backbones.md lists them"
    else:
        content = told_arguments(network)
        hint = "docs/backbones.md lists them"
    if "head_channels" in content:
        content["head_channels"] = None
    arguments = complete_arguments(cls, content, wanted.options, hint)
    if wanted.like is None and network.card is None:
        given = {word.removeprefix("--").partition("=")[0].split(".")[0] for word in wanted.options}
        _demand(network, given | content.keys())
    return checkpoints.Architecture(f"{cls.__module__}.{cls.__qualname__}", arguments)


def _check_class(network: Network, card: checkpoints.Card, cls: type) -> None:
    here, there = f"{cls.__module__}.{cls.__qualname__}", card.architecture.class_path
    if here != there:
        raise ConfigError(
            f"the card says {there}, the weights are those of a {here}",
            path=network.path,
            field="architecture.class_path",
            remedy="add --like RECIPE, to take class and arguments from a recipe",
        )


def _demand(network: Network, known: set[str]) -> None:
    """Refuse to guess how points become voxels: weights work on wrong voxels too, but badly."""
    missing = [name for name in missing_arguments(network) if name not in known]
    if missing:
        raise ConfigError(
            f"the weights do not tell how points became voxels: {', '.join(missing)}",
            path=network.path,
            field=", ".join(f"--{name}" for name in missing),
            remedy="add --like RECIPE to take them from a recipe's backbone, or give them, e.g. "
            "--inputs.columns [intensity]; docs/checkpoints.md lists those of published files",
        )


def _backbone_of(recipe: str) -> dict[str, Any]:
    """The backbone of a recipe: class and every argument."""
    parsed = schema.parse(recipe)
    node: Any = yaml.safe_load(parsed.resolved)
    for key in {"pretrain": ("method",), "segmentation": ("task",)}.get(parsed.kind, ()):
        node = node[key]
        node = node.get("init_args", node)
    found: dict[str, Any] = node["backbone"]
    return found
