"""WaffleIron in the published layout: the same names, 1x1 convolutions with their empty axes.

Sources: the files of WaffleIron (``net``), of ScaLR and of its successor (``model_point`` or
``model_points`` when pretrained, ``net`` with the head of a dataset).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

ANCHOR = "embed.conv1.weight"
PARTS = ("embed.", "waffleiron.")
HEAD = "classif."
_ONE_AXIS = re.compile(r"(embed\.(conv1|final)|.*\.mlp\.\d+|classif(\.\d+)?)\.weight")
_TWO_AXES = re.compile(r"(embed\.conv2\.\d+|.*\.scale)\.weight")
_MIX = "waffleiron.channel_mix."


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


def published_content(state: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a published file holds, under the entry that its readers look for.

    Layer norms are ScaLR's, whose downstream code starts from a pretrained ``model_point``; all
    else is a ``net``.

    Args:
        state: backbone, in our shapes.
        head: ``classif.*``, in our shapes; may be empty.
    """
    pretrained = architecture(state)["norm"] == "layer" and f"{HEAD}1.weight" not in head
    return {"model_point" if pretrained else "net": to_published({**state, **head})}


def architecture(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor arguments that the weights tell.

    Raises:
        KeyError, IndexError: a weight is missing, or has too few axes.
    """
    depth = 0
    while f"{_MIX}{depth}.scale.weight" in state:
        depth += 1
    batch = f"{_MIX}0.norm.running_mean" in state
    channels = state[ANCHOR].shape[0]
    return {"channels": channels, "depth": depth, "norm": "batch" if batch else "layer"}


def origin(state: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> str:
    """Whose file this is, as far as norm and head tell."""
    if f"{_MIX}0.norm.running_mean" in state:
        return "WaffleIron"
    if f"{HEAD}2.weight" in head:
        return "ScaLR+ (activation gelu)"
    return "ScaLR, or ScaLR+ (activation gelu)"


def head_in_words(head: Mapping[str, Tensor]) -> str:
    """What a head is; empty when it is none of the published ones."""
    weights = {name.removeprefix(HEAD): value.shape for name, value in head.items()}
    axes = {name: len(shape) for name, shape in weights.items() if name.endswith("weight")}
    if axes == {"weight": 2}:
        return f"linear, {weights['weight'][0]} values"
    if axes == {"0.weight": 1, "1.weight": 2}:
        return f"batch norm and linear, {weights['1.weight'][0]} values"
    if axes == {"0.weight": 2, "2.weight": 2}:
        return f"perceptron of {weights['0.weight'][0]}, {weights['2.weight'][0]} values"
    return ""


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
