"""Weights of published image encoders: read without unpickling code, checked key by key."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError

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
)
# What a transformers checkpoint may hold beside the encoder.
TRANSFORMERS_HEADS = ("classifier.", "pooler.", "lm_head.", "decoder.")
_WEIGHT_SUFFIXES = {".pt", ".pth", ".tar", ".bin", ".ckpt", ".pkl", ".safetensors"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, whichever entry of the checkpoint holds them.

    Args:
        path: a safetensors file, or a file of ``torch.save``.

    Raises:
        DataError: the file is missing, damaged, holds anything but plain data, or no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such weights file", path=path, remedy="check the path")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            content = content[container]
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise DataError(
            f"holds no tensors, only the entries {_some(map(str, content))}",
            path=path,
            remedy=f"the weights must be at the top or under one of {', '.join(CONTAINERS)}",
        )
    return state


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"not a readable safetensors file ({error})", path=path, remedy="download it again"
        ) from error


def _read_torch(path: Path) -> dict[str, Any]:
    _refuse_compressed_entries(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile bytes make the reader raise anything
        raise DataError(
            f"not a file of plain tensors ({_reason(error)})",
            path=path,
            remedy="nothing in it was run; if you trust its origin, save its state dict as "
            "safetensors elsewhere and use that file, otherwise download it again",
        ) from error
    if not isinstance(content, Mapping):
        raise DataError(
            f"holds a {type(content).__name__}, not a state dict",
            path=path,
            remedy="save module.state_dict(), not the module",
        )
    return dict(content)


def _refuse_compressed_entries(path: Path) -> None:
    """``torch.save`` never compresses; an archive that does could inflate without bound."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [e.filename for e in archive.infolist() if e.compress_type != 0]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(
            f"damaged archive ({error})", path=path, remedy="download it again"
        ) from error
    if packed:
        raise DataError(
            f"has compressed entries ({packed[0]}), which torch.save never writes",
            path=path,
            remedy="download it again from its authors",
        )


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
    *,
    source: str | Path,
    state: Mapping[str, Tensor] | None = None,
    **arguments: Any,
) -> Any:
    """Build a transformers model and fill all of its weights.

    Args:
        model_class: class of the model.
        config: its architecture; a checkpoint of another one is an error.
        source: folder or hub id to read when ``state`` is None; always the name in messages.
        state: weights in the layout of transformers' checkpoint files.
        arguments: further arguments of the model's constructor.

    Raises:
        DataError: a tensor is missing, unknown or of another shape.
        ConfigError: the folder or hub id cannot be read.
    """
    with _quiet_transformers():
        try:
            model, report = model_class.from_pretrained(
                None if state is not None else source,
                config=config,
                state_dict=None if state is None else dict(state),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **arguments,
            )
        except Exception as error:  # the hub client and the readers have no common base class
            raise ConfigError(
                f"'{source}' cannot be read as transformers weights: {_reason(error)}",
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
def _quiet_transformers() -> Iterator[None]:
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


def _reason(error: Exception) -> str:
    """What went wrong, in a line."""
    text = str(error).strip()
    if "Weights only load failed" in text:  # goes on to explain how to switch the safety off
        culprit = re.search(r"GLOBAL (\S+)|class (\S+)", text)
        found = (culprit[1] or culprit[2]) if culprit else "python objects"
        return f"it is damaged or needs {found}, which could run code"
    return text.splitlines()[0] if text else type(error).__name__


def _raise_mismatch(problems: Mapping[str, Sequence[str]], source: str | Path) -> None:
    found = [f"{len(keys)} {name}: {_some(keys)}" for name, keys in problems.items() if keys]
    if found:
        raise DataError(
            f"weights do not fit the network: {'; '.join(found)}",
            path=source,
            remedy="choose the architecture these weights belong to",
        )


def _some(names: Iterator[str] | Sequence[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")
