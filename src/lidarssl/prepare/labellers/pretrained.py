"""Networks of transformers, and what their image processors would do to an image.

The processors themselves need torchvision; resizing and normalising is a few lines of torch. Unlike
them it does not round the resized image to 8 bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import ConfigError, DataError, require
from lidarssl.images.frozen import IMAGENET_MEAN, IMAGENET_STD
from lidarssl.images.weights import is_pretrained_source, quiet_transformers
from lidarssl.weights import reason

# Beside the weights: of training, or made anew by the constructor.
_NO_WEIGHTS = ("num_batches_tracked", "position_ids", "relative_position_index", "empty_weight")
_MODES = {2: "bilinear", 3: "bicubic"}


def read_model_type(source: str | Path, field: str) -> str:
    """What kind of network a folder of ``save_pretrained`` or a hub id holds.

    Raises:
        DataError: it is neither a path that exists nor the form of a hub id.
        ConfigError: transformers is not installed, or there is no readable configuration.
    """
    config_class = require("transformers", "images").PretrainedConfig
    if not is_pretrained_source(source):
        raise ConfigError(
            f"'{source}' is a file",
            field=field,
            remedy="give the folder that save_pretrained wrote",
        )
    try:
        config, _ = config_class.get_config_dict(str(source))
        return str(config["model_type"])
    except Exception as error:  # the hub client and the readers have no common base class
        raise _unreadable(source, field, error) from error


def load_model(class_name: str, source: str | Path, field: str) -> Any:
    """A network with all of its weights, in float32.

    Args:
        class_name: of transformers.
        source: folder of ``save_pretrained`` or hub id; only safetensors are read.
        field: the argument that named it, for errors.

    Raises:
        ConfigError: it cannot be read, or holds another kind of network.
        DataError: weights are missing or have another shape.
    """
    model_class = getattr(require("transformers", "images"), class_name)
    with quiet_transformers():
        try:
            model, report = model_class.from_pretrained(
                str(source),
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:  # as above
            raise _unreadable(source, field, error) from error
    missing = [key for key in sorted(report["missing_keys"]) if not key.endswith(_NO_WEIGHTS)]
    wrong = missing + sorted(map(str, report["mismatched_keys"]))
    if wrong:
        raise DataError(
            f"{len(wrong)} weights of {class_name} are missing or have another shape: "
            + ", ".join(wrong[:5]),
            path=source,
            field=field,
            remedy="copy or download it again",
        )
    return model


def load_tokenizer(source: str | Path, field: str) -> Any:
    """The tokenizer beside a network.

    Raises:
        ConfigError: there is none, or it does not tell where in the text a token comes from.
    """
    auto = require("transformers", "images").AutoTokenizer
    with quiet_transformers():
        try:
            tokenizer = auto.from_pretrained(str(source), trust_remote_code=False)
        except Exception as error:  # as above
            raise _unreadable(source, field, error) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer of '{source}' gives no offsets",
            field=field,
            remedy="save it as tokenizer.json",
        )
    return tokenizer


def source_name(source: str | Path) -> str:
    """A hub id as it is, the last part of a path: what stays true on another machine."""
    return Path(source).resolve().name if Path(source).exists() else str(source)


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its images.

    Attributes:
        mean, std: RGB statistics in [0, 1] units.
        size: rule of ``input_size``; None = images keep their size.
        mode: of interpolation.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: Mapping[str, int] | None = None
    mode: str = "bilinear"

    def __call__(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """(I, 3, H, W) RGB in [0, 1] -> (I, 3, *size), smoothed before reduced, normalised."""
        resized = images
        if tuple(images.shape[-2:]) != size:
            resized = F.interpolate(images, size, mode=self.mode, antialias=True)
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (resized.clamp(0, 1) - mean) / std


def read_preprocessing(source: str | Path, field: str) -> Preprocessing:
    """Of the preprocessor_config.json beside a network; what it leaves out as published.

    Raises:
        ConfigError: the file is damaged.
    """
    mixin = require("transformers", "images").ImageProcessingMixin
    try:
        with quiet_transformers():
            found, _ = mixin.get_image_processor_dict(str(source))
    except OSError as error:
        if (Path(source) / "preprocessor_config.json").is_file():
            raise _unreadable(source, field, error) from error
        return Preprocessing()
    normalised = found.get("do_normalize", True)
    return Preprocessing(
        mean=tuple(found.get("image_mean") or IMAGENET_MEAN) if normalised else (0.0, 0.0, 0.0),
        std=tuple(found.get("image_std") or IMAGENET_STD) if normalised else (1.0, 1.0, 1.0),
        size=_size_rule(found),
        mode=_MODES.get(found.get("resample", 2), "bilinear"),
    )


def input_size(height: int, width: int, rule: Mapping[str, int]) -> tuple[int, int]:
    """Rows and columns that an image is resized to.

    Args:
        height, width: of the image, px.
        rule: ``height`` and ``width``: exactly these, whatever the aspect. ``shortest_edge``: the
            short side, unless the long one came to more than ``longest_edge``, if that is given.
            ``longest_edge`` alone: the long side.
    """
    if "height" in rule:
        return rule["height"], rule["width"]
    short, long = min(height, width), max(height, width)
    edge, most = rule.get("shortest_edge"), rule.get("longest_edge")
    if edge is not None and (most is None or long * edge <= most * short):
        sides = edge, long * edge // short
    else:
        most = rule["longest_edge"]
        sides = max(1, int(short * most / long + 0.5)), most
    return sides if height <= width else sides[::-1]


def _size_rule(found: Mapping[str, Any]) -> dict[str, int] | None:
    size = found.get("size")
    if not found.get("do_resize", True) or not size:
        return None
    rule: dict[str, Any] = {"shortest_edge": size, "longest_edge": found.get("max_size")}
    if not isinstance(size, int):
        rule = dict(size)
    known = ("height", "width", "shortest_edge", "longest_edge")
    return {name: int(rule[name]) for name in known if rule.get(name)} or None


def _unreadable(source: str | Path, field: str, error: Exception) -> ConfigError:
    why = "no config.json of a network" if isinstance(error, KeyError) else reason(error)
    return ConfigError(
        f"'{source}' cannot be read with transformers: {why}",
        field=field,
        remedy="give a folder written by save_pretrained, with safetensors, or a hub id that this "
        "machine can reach or has in its cache",
    )
