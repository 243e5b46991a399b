"""Weights of published image encoders: where files keep the network, checked key by key."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.weights import read_state, reason

# Where trainers put the network in their checkpoints: top-level entry, then key prefix.
CONTAINERS = ("state_dict", "model", "network", "teacher", "model_images")
PREFIXES = (
    "",
    "module.encoder_q.",  # MoCo v1, v2
    "module.encoder.",  # PixPro
    "module.backbone.",  # DINO, full checkpoint
    "backbone.",
    "module.",  # SwAV, DeepCluster v2
    "encoder.",  # SLidR, PPKT, OLIVINE
    "image_encoder.model.",  # CLCP
    "backbone.timm_model.",  # mmsegmentation, as CLCP finetunes
    "model.",  # LIP-Loc, lidarssl
)
# What a transformers checkpoint may hold beside the encoder.
TRANSFORMERS_HEADS = ("classifier.", "pooler.", "lm_head.", "decoder.")
_WEIGHT_SUFFIXES = {".pt", ".pth", ".tar", ".bin", ".ckpt", ".pkl", ".safetensors"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class OriginalLayout:
    """How the files of a network's own authors hold it.

    Attributes:
        find: the tensors of the network inside a checkpoint, without prefix and heads; None where
            there is none.
        shapes: returns the shape of every tensor, by key.
        to_transformers: the tensors under the keys of transformers' checkpoint files.
    """

    find: Callable[[Mapping[str, Tensor]], dict[str, Tensor] | None]
    shapes: Callable[[], Mapping[str, tuple[int, ...]]]
    to_transformers: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def build_encoder(
    model_class: Any,
    config: Any,
    weights: str | Path | None,
    layout: OriginalLayout,
    **arguments: Any,
) -> Any:
    """A transformers model with the weights of a file, folder or hub id.

    Args:
        model_class: class of the model.
        config: its architecture; a checkpoint of another one is an error.
        weights: a file in this layout or that of transformers; a folder written by
            ``save_pretrained``; a hub id; None for random weights.
        layout: of files that are not in the layout of transformers.
        arguments: further arguments of the model's constructor.

    Raises:
        DataError: the file is unsafe or damaged; a tensor is missing, unknown or of another shape.
        ConfigError: the folder or hub id cannot be read.
    """
    if weights is None:
        return model_class(config, **arguments)
    state = None
    if not is_pretrained_source(weights):
        state = read_state(weights, CONTAINERS)
        original = layout.find(state)
        if original is not None:
            check_shapes(original, layout.shapes(), weights)
            state = layout.to_transformers(original)
    return load_transformers(model_class, config, weights, state, arguments)


def find_network(
    state: Mapping[str, Tensor], anchor: str, heads: Sequence[str]
) -> dict[str, Tensor] | None:
    """The tensors of one network inside a checkpoint, without prefix and heads.

    Args:
        state: tensors of the whole checkpoint.
        anchor: a key that the network is known by.
        heads: key prefixes of the network's heads, which are left out.

    Returns:
        Its tensors, or None when no prefix of ``PREFIXES`` leads to the anchor.
    """
    for prefix in PREFIXES:
        if prefix + anchor in state:
            inside = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
            return {k: v for k, v in inside.items() if not k.startswith(tuple(heads))}
    return None


def check_shapes(
    state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str | Path
) -> None:
    """Every expected tensor is there with its shape, and nothing else.

    ``num_batches_tracked`` may be missing: files older than torch 0.4 lack it.

    Raises:
        DataError: names the tensors that are missing, unknown or of another shape.
    """
    problems = {
        "missing": [k for k in expected if k not in state and not _is_counter(k)],
        "unknown": [k for k in state if k not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(shape)}"
            for key, shape in expected.items()
            if key in state and tuple(state[key].shape) != tuple(shape)
        ],
    }
    _raise_mismatch(problems, source)


def load_transformers(
    model_class: Any,
    config: Any,
    source: str | Path,
    state: dict[str, Tensor] | None,
    arguments: Mapping[str, Any],
) -> Any:
    """A transformers model with all of its weights.

    Args:
        model_class, config, arguments: of the model, as for :func:`build_encoder`.
        source: where the weights are from; they are read from it where ``state`` is None.
        state: the weights under the keys of transformers' checkpoint files.

    Raises:
        DataError: a tensor is missing, unknown or of another shape.
        ConfigError: ``source`` cannot be read.
    """
    with quiet_transformers():
        try:
            model, report = model_class.from_pretrained(
                None if state is not None else source,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **arguments,
            )
        except Exception as error:  # the hub client and the readers have no common base class
            raise ConfigError(
                f"'{source}' cannot be read as transformers weights: {reason(error)}",
                remedy="give a weights file, a folder written by save_pretrained, or a hub id "
                "that this machine can reach or has in its cache",
            ) from error
    problems = {
        "missing": [k for k in sorted(report["missing_keys"]) if not _is_counter(k)],
        "unknown": [
            k for k in sorted(report["unexpected_keys"]) if not k.startswith(TRANSFORMERS_HEADS)
        ],
        "of another shape": sorted(map(str, report["mismatched_keys"])),
    }
    _raise_mismatch(problems, source)
    return model


def is_pretrained_source(weights: str | Path) -> bool:
    """Whether ``weights`` is a folder or hub id for transformers (True) or a file (False).

    Raises:
        DataError: it is neither a path that exists nor the form of a hub id.
    """
    path = Path(weights)
    if path.exists():
        return path.is_dir()
    if _HUB_ID.fullmatch(str(weights)) and path.suffix not in _WEIGHT_SUFFIXES:
        return True
    raise DataError(
        "no such weights file or folder",
        path=path,
        remedy="check the path, or give a hub id of the form owner/name",
    )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar and no loading report: what matters of it is raised as an error."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _raise_mismatch(problems: Mapping[str, Sequence[str]], source: str | Path) -> None:
    found = [f"{len(keys)} {name}: {_some(keys)}" for name, keys in problems.items() if keys]
    if found:
        raise DataError(
            f"weights do not fit the network: {'; '.join(found)}",
            path=source,
            remedy="choose the architecture these weights belong to",
        )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")
