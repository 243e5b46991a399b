"""Weights with a card that says what they are: written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lidarssl.checkpoints.card import MAX_CARD_BYTES, Card
from lidarssl.errors import ConfigError, DataError
from lidarssl.replacing import replacing
from lidarssl.weights import WEIGHTS_FILE, read_safetensors, weights_file

_CARD_KEY = "lidarssl_card"


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

    with replacing(path, durable=True) as partial:
        save_file(tensors, partial, metadata={"format": "pt", _CARD_KEY: text})
    with replacing(path.with_suffix(".json"), durable=True) as partial:
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
    tensors, texts = read_safetensors(path)
    card = card_of(texts, path)
    if card is None:
        raise DataError(
            "these weights have no card, so they were not written by lidarssl",
            path=path,
            remedy="`lidarssl convert` says what they are and gives them one; or put a card at "
            f"{path.with_suffix('.json').name}",
        )
    return Checkpoint(tensors, card, path)


def card_of(texts: Mapping[str, str], path: Path) -> Card | None:
    """The card in the header of a weights file, else the one beside it, else None.

    Args:
        texts: of the header.
        path: the weights file.

    Raises:
        DataError: the card is wrong.
    """
    if _CARD_KEY in texts:
        return Card.from_json(texts[_CARD_KEY], path)
    card = path.with_suffix(".json")
    if not card.is_file():
        return None
    with card.open("rb") as file:
        return Card.from_json(file.read(MAX_CARD_BYTES + 1), card)


def _storable(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise ConfigError(
            f"'{name}' is a {type(value).__name__}, not a tensor",
            field=name,
            remedy="keep only tensors in the state of a module",
        )
    # Tied weights share memory, which the format refuses: each name gets its own copy.
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)
