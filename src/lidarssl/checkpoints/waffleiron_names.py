"""WaffleIron in the published layout: the same names, 1x1 convolutions with their empty axes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

ANCHOR = "embed.conv1.weight"
HEAD = "classif."
_ONE_AXIS = re.compile(r"(embed\.(conv1|final)|.*\.mlp\.\d+|classif(\.\d+)?)\.weight")
_TWO_AXES = re.compile(r"(embed\.conv2\.\d+|.*\.scale)\.weight")
_COUNTER = "num_batches_tracked"


def from_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors under our shapes.

    Args:
        state: of a published file, without prefix.

    Returns:
        The backbone; and what is left, the head ``classif.*``.
    """
    shaped = {key: _squeezed(key, value) for key, value in state.items()}
    backbone = {key: value for key, value in shaped.items() if not key.startswith(HEAD)}
    return backbone, {key: value for key, value in shaped.items() if key.startswith(HEAD)}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of :func:`from_published`, of backbone and head together."""
    return {key: _unsqueezed(key, value) for key, value in state.items()}


def _squeezed(key: str, value: Tensor) -> Tensor:
    if key.endswith(".scale.weight"):
        return value.flatten()
    linear = _ONE_AXIS.fullmatch(key) or _TWO_AXES.fullmatch(key)
    return value.flatten(1) if linear and value.dim() > 2 else value


def _unsqueezed(key: str, value: Tensor) -> Tensor:
    if key.endswith(".scale.weight"):
        return value[:, None, None]
    if value.dim() != 2:
        return value
    if _TWO_AXES.fullmatch(key):
        return value[:, :, None, None]
    return value[:, :, None] if _ONE_AXIS.fullmatch(key) else value


def counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The counters of batch norms that a file leaves out, as zeros."""
    norms = [key.removesuffix("running_mean") for key in state if key.endswith("running_mean")]
    return {f"{norm}{_COUNTER}": torch.zeros((), dtype=torch.int64) for norm in norms}
