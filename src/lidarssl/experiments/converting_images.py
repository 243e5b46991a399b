"""`lidarssl convert` of image encoders."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lidarssl import checkpoints
from lidarssl.checkpoints.convert import IMAGE_FORMATS, Format
from lidarssl.checkpoints.image_networks import (
    CLASS_PATH,
    CONFIG_FILE,
    PROCESSOR_FILE,
    ImageNetwork,
    check_image_format,
    read_image_network,
    settings_of,
    unlike,
    write_timm,
    write_transformers,
)
from lidarssl.checkpoints.networks import read_network
from lidarssl.errors import ConfigError, DataError
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
from lidarssl.images.vit import ViT
from lidarssl.images.vit_architectures import ARCHITECTURES, TIMM_ARCHITECTURES, ViTArchitecture
from lidarssl.recipes import schema

_FAMILIES = {"dino": "ViT", "dinov2": "ViT of DINOv2", "dinov3": "ViT of DINOv3"}
_NORMALISED = {"imagenet": "by the statistics of ImageNet", "half": "to colours from -1 to 1"}
_CLASSES = {"dino": "ViTModel", "dinov2": "Dinov2Model", "dinov3": "DINOv3ViTModel"}


def read(
    source: Path, prefix: str | None, heads: int | None, target: Format | None
) -> ImageNetwork | None:
    """The image encoder of a file or run folder.

    Args:
        source: file or folder.
        prefix: of the names, where there are several networks.
        heads: of attention, where no file tells.
        target: format that is wanted; None = none.

    Returns:
        None where the file holds none, or holds a lidar network beside it that alone has this
        format.

    Raises:
        DataError: no readable file, or not all of the network is in it.
        ConfigError: several networks, or a number of heads that is missing or wrong.
    """
    path = weights_of(source, "SOURCE")
    try:
        network = read_image_network(path, prefix, heads)
    except ConfigError:
        if prefix is not None and _holds_lidar_network(path, prefix):
            return None
        raise
    if network is None:
        return None
    if heads is not None and heads != network.shape.heads:
        raise ConfigError(
            f"has {network.shape.heads} attention heads, as the file beside the weights says",
            path=network.path,
            field="--heads",
            remedy="leave it out",
        )
    lidar_only = target is not None and target not in (Format.LIDARSSL, *IMAGE_FORMATS)
    return None if lidar_only and _holds_lidar_network(path, prefix) else network


def description(network: ImageNetwork) -> str:
    """What a file holds, for people."""
    place = [f"entry '{network.entry}'"] if network.entry else []
    place += [f"prefix '{network.prefix}'"] if network.prefix else []
    counted = [value.numel() for key, value in network.state.items() if "bias_mask" not in key]
    left_out = [f"{name} ({what})" for name, what in network.left_out.items()]
    rows = {
        "from": network.source,
        "network": _in_words(network),
        "parameters": f"{sum(counted):,} in {len(counted)} tensors",
        "images": _NORMALISED.get(network.normalization, "normalised in a way it does not tell"),
        "place": ", ".join(place) or "top of the file, no prefix",
        "left out": ", ".join(left_out) or "nothing",
    }
    if network.card is not None:
        rows |= rows_of_card(network.card)
    return "\n".join([str(network.path), *(f"  {name:<13}{text}" for name, text in rows.items())])


def convert(network: ImageNetwork, wanted: Wanted) -> str:
    """Write the image encoder in another format.

    Returns:
        What was written, for people.

    Raises:
        ConfigError: the output exists, the format has no such network, or something that the
            weights do not tell is missing.
    """
    check_image_format(network, wanted.target)
    refuse_options(wanted)
    path, files = _outputs(wanted)
    keep_existing(files, wanted)
    lines: list[str] = []
    if wanted.target is Format.LIDARSSL:
        lines = _write_own(network, wanted, path)
    else:
        with writing(path):
            if wanted.target is Format.TIMM:
                write_timm(network, path)
            else:
                lines = [f"  files        {', '.join(write_transformers(network, path))}"]
    return "\n".join([str(path), *lines, f"  use          {_use(network, wanted.target, path)}"])


def _in_words(network: ImageNetwork) -> str:
    shape = network.shape
    words = [
        _FAMILIES[shape.family],
        f"width {shape.width}, depth {shape.depth}, {shape.heads} head{'s' * (shape.heads != 1)}",
        f"patches of {shape.patch_size} pixels",
    ]
    words += [] if shape.family == "dinov3" else [f"images of {shape.image_size}"]
    words += [f"{shape.registers} registers"] if shape.registers else []
    words += ["gated layers"] if shape.swiglu else []
    words += [] if network.final_norm else ["without final norm"]
    return ", ".join(words)


def _holds_lidar_network(path: Path, prefix: str | None) -> bool:
    try:
        read_network(path, prefix)
    except ConfigError:
        return True  # several, or one that has to be told more of
    except DataError:
        return False
    return True


def _outputs(wanted: Wanted) -> tuple[Path, tuple[Path, ...]]:
    """Where to write, and the files that will be there.

    Raises:
        ConfigError: a name that does not suit the format.
    """
    path, target = wanted.output, wanted.target
    suffixes: tuple[str, ...] = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
    if target is Format.TRANSFORMERS:
        if path.suffix in suffixes or path.is_file():
            raise _unsuitable(wanted, "a folder", "give the name of a folder")
        return path, (path / CONFIG_FILE, path / PROCESSOR_FILE, path / checkpoints.WEIGHTS_FILE)
    if target is Format.TIMM:
        if path.suffix not in suffixes or path.is_dir():
            ends = ", ".join(suffixes)
            raise _unsuitable(wanted, "a file", f"give a name that ends in one of {ends}")
        return path, (path,)
    if path.suffix in suffixes[1:]:
        raise _unsuitable(
            wanted, "safetensors", "give a name that ends in .safetensors, or a folder"
        )
    path = path if path.suffix == ".safetensors" else path / checkpoints.WEIGHTS_FILE
    return path, (path, path.with_suffix(".json"))


def _unsuitable(wanted: Wanted, what: str, remedy: str) -> ConfigError:
    return ConfigError(
        f"'{wanted.target}' is written as {what}", path=wanted.output, field="--output",
        remedy=remedy,
    )  # fmt: skip


def _write_own(network: ImageNetwork, wanted: Wanted, path: Path) -> list[str]:
    """Safetensors with a card, from which tasks know that the weights fit."""
    arguments = encoder_arguments(network, wanted)
    settings = settings_of(arguments)
    encoder = ViT(settings.shape, None, settings.final_norm, normalization=settings.normalization)  # type: ignore[arg-type]
    encoder.load_original(network.state, network.path)
    built = checkpoints.Architecture(CLASS_PATH, arguments)
    with writing(path):
        checkpoints.save(path, encoder, card_of(built, network.card, wanted))
    named = arguments["architecture"]
    rows = {"architecture": named if isinstance(named, str) else "of its own"}
    rows["images"] = _NORMALISED[settings.normalization]
    return [f"  {name:<13}{text}" for name, text in rows.items()]


def encoder_arguments(network: ImageNetwork, wanted: Wanted) -> dict[str, Any]:
    """All constructor arguments of the ``ViT`` that the weights are for.

    They come from a recipe, from the card of the source, or from what weights and options tell.

    Raises:
        ConfigError: the normalisation is not known, an option is wrong, or the weights are of
            another architecture.
    """
    if wanted.like is not None:
        content = _encoder_of(wanted.like)
    elif network.card is not None:
        content = copy.deepcopy(dict(network.card.architecture.init_args))
    else:
        content = {"architecture": _name_of(network) or asdict(network.shape)}
        if network.normalization:
            content["normalization"] = network.normalization
    content["weights"] = None
    arguments = complete_arguments(ViT, content, wanted.options, "docs/checkpoints.md has examples")
    if arguments["normalization"] is None and wanted.like is None and network.card is None:
        raise ConfigError(
            "the weights do not tell how images were normalised",
            path=network.path,
            field="--normalization",
            remedy="add --normalization half for weights of timm's own training, imagenet for "
            "those of DINO, CLCP, LIP-Loc and mmsegmentation",
        )
    _check_shape(network, arguments)
    return arguments


def _name_of(network: ImageNetwork) -> str | None:
    """The first architecture with a name that has this shape."""
    return next((name for name, shape in ARCHITECTURES.items() if shape == network.shape), None)


def _check_shape(network: ImageNetwork, arguments: Mapping[str, Any]) -> None:
    settings = settings_of(arguments)
    different = unlike(network.shape, settings.shape)
    if settings.final_norm != network.final_norm:
        different.append(f"final_norm {network.final_norm}, not {settings.final_norm}")
    if different:
        raise ConfigError(
            f"the weights have {'; '.join(different)}",
            path=network.path,
            field="--architecture",
            remedy="leave --architecture and --like out, or choose those of the network described",
        )


def _encoder_of(recipe: str) -> dict[str, Any]:
    """Arguments of the image encoder of a recipe."""
    node: Any = yaml.safe_load(schema.parse(recipe).resolved)
    for keys in (("method", "image_encoder"), ("task", "encoder")):
        found = node.get(keys[0], {})
        found = found.get("init_args", found).get(keys[1])
        if isinstance(found, Mapping) and str(found.get("class_path", "")).endswith("ViT"):
            return dict(found.get("init_args", {}))
    raise ConfigError(
        f"'{recipe}' has no vision transformer",
        field="--like",
        remedy="choose a recipe of CLCP, or of an image segmentation with a ViT",
    )


def _use(network: ImageNetwork, target: Format, path: Path) -> str:
    """Who takes the file."""
    if target is Format.LIDARSSL:
        return f"lidarssl finetune or probe RECIPE --checkpoint {path}"
    if target is Format.TRANSFORMERS:
        name = _CLASSES[network.shape.family]
        name = "Dinov2WithRegistersModel" if network.shape.registers and "2" in name else name
        rest = ", add_pooling_layer=False" if name == "ViTModel" else ""
        return f"transformers.{name}.from_pretrained({str(path)!r}{rest})"
    return f"{_in_timm(network.shape)}; its load_state_dict takes the file"


def _in_timm(shape: ViTArchitecture) -> str:
    """The network of timm, as one builds it there."""
    names = [name for name, one in ARCHITECTURES.items() if one == shape]
    sizes = {"s": "small", "b": "base", "l": "large", "g": "giant"}
    for name in names:
        if name in TIMM_ARCHITECTURES:
            return f"timm.create_model('{name}', num_classes=0)"
        if shape.family == "dinov2":
            size = sizes[name.removeprefix("dinov2_vit")[0]]
            registers = "_reg4" if shape.registers else ""
            return f"timm.create_model('vit_{size}_patch14{registers}_dinov2', num_classes=0)"
    return (
        f"timm's VisionTransformer(img_size={shape.image_size}, patch_size={shape.patch_size}, "
        f"embed_dim={shape.width}, depth={shape.depth}, num_heads={shape.heads}, num_classes=0"
        + (", ...)" if shape.family == "dinov2" else ")")
    )
