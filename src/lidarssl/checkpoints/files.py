"""Write and read weights; whatever a file holds, nothing in it is ever run."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lidarssl.checkpoints.card import MAX_CARD_BYTES, Card
from lidarssl.errors import ConfigError, DataError

WEIGHTS_FILE = "model.safetensors"
# Where trainers put the state dict in their checkpoints, most specific name first.
CONTAINERS = ("model_points", "model_point", "state_dict", "net", "model_state", "model")
_CARD_KEY = "lidarssl_card"
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what they are.

    Attributes:
        state: name -> tensor, on the CPU.
        card: see :class:`Card`.
        path: the weights file.
    """

    state: Mapping[str, Tensor]
    card: Card
    path: Path


def save(path: str | Path, weights: nn.Module | Mapping[str, Tensor], card: Card) -> Path:
    """Write weights and card; a reader sees the old file or the new one, never half of one.

    The card is stored inside the weights, which cannot be separated from it, and a second time
    as JSON beside them for people to read.

    Args:
        path: a ``.safetensors`` file, or else a folder that receives ``model.safetensors``.
        weights: a module, or its state dict.

    Returns:
        The weights file.

    Raises:
        ConfigError: an entry is not a tensor, or the card has no JSON form.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / WEIGHTS_FILE
    text = card.to_json()
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {name: _storable(name, value) for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    from safetensors.torch import save_file

    with _Replacement(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt", _CARD_KEY: text})
    with _Replacement(path.with_suffix(".json")) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def load(path: str | Path) -> Checkpoint:
    """Read what :func:`save` wrote.

    Args:
        path: the weights file, or its folder.

    Raises:
        DataError: missing, truncated, not safetensors, or the card is missing or wrong.
    """
    path = weights_file(path)
    tensors, metadata = _read_safetensors(path)
    card = path.with_suffix(".json")
    if _CARD_KEY in metadata:
        return Checkpoint(tensors, Card.from_json(metadata[_CARD_KEY], path), path)
    if not card.is_file():
        raise DataError(
            "these weights have no card, so they were not written by lidarssl",
            path=path,
            remedy=f"read them with lidarssl.checkpoints.read_state, or put a card at {card.name}",
        )
    with card.open("rb") as file:
        return Checkpoint(tensors, Card.from_json(file.read(MAX_CARD_BYTES + 1), card), path)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of any weights file, under the names they have there.

    Args:
        path: a safetensors file, a file of ``torch.save``, or a folder of :func:`save`.

    Raises:
        DataError: missing, damaged, or anything but plain tensors in plain containers.
    """
    path = weights_file(path)
    return state_of(read_content(path), path)


def read_content(path: Path) -> Mapping[str, Any]:
    """Everything plain that a weights file holds: tensors, and in torch files settings too.

    Raises:
        DataError: as :func:`read_state`.
    """
    return _read_safetensors(path)[0] if _is_safetensors(path) else _read_torch(path)


def state_of(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict inside the content of a checkpoint, at the top or in a known entry.

    Raises:
        DataError: there is none, or one of its tensors is not plain.
    """
    state = content
    for name in CONTAINERS:
        if isinstance(content.get(name), Mapping):
            state = content[name]
            break
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise DataError(
            f"holds no tensors, only {', '.join(str(name)[:40] for name in list(content)[:8])}",
            path=path,
            remedy=f"weights must be at the top or under one of {', '.join(CONTAINERS)}",
        )
    for name, tensor in tensors.items():
        _check_plain(name, tensor, path)
    return tensors


def weights_file(path: str | Path) -> Path:
    """``path`` itself, or the weights inside when it is a folder."""
    path = Path(path)
    return path / WEIGHTS_FILE if path.is_dir() else path


class _Replacement:
    """A file written beside ``path`` and moved over it once complete and on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")

    def __enter__(self) -> Path:
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is not None:
            self.partial.unlink(missing_ok=True)
            return
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.path)


def _storable(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ConfigError(
            f"'{name}' is a {type(value).__name__}, not a tensor",
            field=name,
            remedy="keep only tensors in the state of a module",
        )
    # Tied weights share memory, which the format refuses: each name gets its own copy.
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _is_safetensors(path: Path) -> bool:
    """By content: 8 bytes of header length, then a JSON object."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise DataError(
            f"cannot read the weights ({error.strerror})", path=path, remedy="check the path"
        ) from error
    if path.suffix == ".safetensors":
        return True
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= length <= _MAX_HEADER_BYTES


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"not a readable safetensors file ({_first_line(error)})",
            path=path,
            remedy="the file is missing, truncated or damaged: copy or download it again",
        ) from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    _refuse_inflation(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile bytes make the reader raise anything
        raise DataError(
            f"not a file of plain tensors ({_first_line(error)})",
            path=path,
            remedy="nothing in it was run; if you trust its origin, save its state dict as "
            "safetensors where it was made, otherwise download it again",
        ) from error
    if not isinstance(content, Mapping):
        raise DataError(
            f"holds a {type(content).__name__}, not a state dict",
            path=path,
            remedy="save module.state_dict(), not the module",
        )
    return content


def _refuse_inflation(path: Path) -> None:
    """``torch.save`` stores without compression; an archive that inflates is hostile."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    except Exception as error:  # as below, for the directory of the archive
        raise DataError(
            f"damaged archive ({_first_line(error)})", path=path, remedy="download it again"
        ) from error
    if not stored or inflated > path.stat().st_size:
        raise DataError(
            f"an archive of {path.stat().st_size} bytes that unpacks to {inflated}, "
            "which torch.save never writes",
            path=path,
            remedy="download it again from its authors",
        )


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse tensors that are not what they take on disk: sparse, quantised, meta, expanded."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if plain and not tensor.is_quantized:
        bytes_claimed = tensor.numel() * tensor.element_size()
        plain = bytes_claimed <= tensor.untyped_storage().nbytes()
    if not plain:
        raise DataError(
            f"'{name[:80]}' is not a plain dense tensor",
            path=path,
            field=name[:80],
            remedy="save tensor.contiguous() of dense CPU tensors",
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
