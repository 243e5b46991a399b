"""Find a vision transformer in a checkpoint of any origin, and tell its shape from its tensors.

Files differ in the prefix that trainers put before names and in the names themselves: those of
the original authors, which timm shares, or those of transformers. A network is known by its
patch embedding, whose key tells prefix and naming at once. What comes out has the names of
``ViTArchitecture.shapes``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.vit_architectures import Family, ViTArchitecture
from lidarssl.images.vit_keys import to_original
from lidarssl.images.weights import PREFIXES, TRANSFORMERS_HEADS

Naming = Literal["original", "transformers"]

ANCHOR = "patch_embed.proj.weight"
# Classifiers (timm, LIP-Loc, mmpretrain), DINOv3's periods, which follow from its shape, and its
# norm of crops that only training sees.
HEADS = ("head.", "fc.", "pre_logits.", "rope_embed.", "local_cls_norm.", *TRANSFORMERS_HEADS)
_ANCHORS: dict[str, Naming] = {
    ANCHOR: "original",
    "embeddings.patch_embeddings.projection.weight": "transformers",
    "embeddings.patch_embeddings.weight": "transformers",
}


@dataclass(frozen=True)
class FoundViT:
    """A vision transformer inside a checkpoint.

    Attributes:
        state: its tensors under the names of ``ViTArchitecture.shapes``, and unknown ones.
        prefix: what stood before every name.
        naming: whose names the file has.
        heads: keys below the prefix that were left out.
    """

    state: dict[str, Tensor]
    prefix: str
    naming: Naming
    heads: tuple[str, ...] = ()


def find_vit(state: Mapping[str, Tensor], prefix: str | None = None) -> FoundViT | None:
    """The vision transformer of a checkpoint, without prefix and heads.

    Args:
        state: tensors of the whole checkpoint.
        prefix: of its names, where there are several; None = the only one, or the first of those
            that trainers are known to write.

    Returns:
        What was found; None where there is none.

    Raises:
        ConfigError: several networks, or none below ``prefix``.
    """
    prefixes = vit_prefixes(state)
    if not prefixes:
        return None
    prefix = _choose(prefixes, prefix)
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    kept = {key: value for key, value in inside.items() if not key.startswith(HEADS)}
    heads = tuple(key for key in inside if key not in kept)
    naming = prefixes[prefix]
    family = _family(kept, naming)
    kept = to_original(kept, family) if naming == "transformers" else _from_timm(kept, family)
    return FoundViT(kept, prefix, naming, heads)


def vit_prefixes(state: Mapping[str, Tensor]) -> dict[str, Naming]:
    """Prefix of every vision transformer in a checkpoint -> whose names it has."""
    found: dict[str, Naming] = {}
    for key in state:
        for anchor, naming in _ANCHORS.items():
            prefix = key.removesuffix(anchor)
            if prefix != key and (not prefix or prefix.endswith(".")):
                found[prefix] = naming
    return found


def shape_of(
    state: Mapping[str, Tensor], heads: int | None = None, norm_eps: float | None = None
) -> ViTArchitecture:
    """The architecture that tensors tell; whether each has the shape that follows is not checked.

    Args:
        state: of :class:`FoundViT`.
        heads: of attention, which no tensor tells; None = heads of 64 channels, as published.
        norm_eps: likewise; None = as published.

    Raises:
        DataError: the tensors are of no vision transformer with square patches and images.
        ConfigError: no such number of heads, or none is known and none follows.
    """
    family = _family(state, "original")
    embedding = state.get(ANCHOR)
    if embedding is None or embedding.ndim != 4 or embedding.shape[2] != embedding.shape[3]:
        raise DataError("the patches of this vision transformer are not square", field=ANCHOR)
    if embedding.numel() == 0:  # it may claim any width
        raise DataError(f"has the shape {tuple(embedding.shape)}, which is empty", field=ANCHOR)
    width, patch = embedding.shape[0], embedding.shape[2]
    blocks = {found[1] for key in state if (found := re.match(r"blocks\.(\d+)\.", key))}
    registers = _size(state, "storage_tokens" if family == "dinov3" else "register_tokens")
    return ViTArchitecture(
        family,
        image_size=_image_size(state, patch),
        patch_size=patch,
        width=width,
        depth=len(blocks),
        heads=_heads(width, heads),
        registers=registers[1] if len(registers) == 3 else 0,
        swiglu="blocks.0.mlp.w3.weight" in state,
        norm_eps=norm_eps or (1e-5 if family == "dinov3" else 1e-6),
    )


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of timm's ``VisionTransformer`` without head.

    timm has no mask token, packs gated layers under other names, and adds the position of the
    class token of networks with registers to the token itself.

    Args:
        state: exactly the tensors of ``ViTArchitecture.shapes``, not of ``dinov3``.
    """
    renamed = {
        key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): value
        for key, value in state.items()
        if key not in ("mask_token", "register_tokens")
    }
    if "register_tokens" in state:
        renamed["reg_token"] = state["register_tokens"]
        renamed["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        renamed["pos_embed"] = state["pos_embed"][:, 1:]
    return renamed


def _from_timm(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The inverse of :func:`to_timm` up to the sum in the class token; others stay as they are."""
    if family != "dinov2" or "mask_token" in state:
        return dict(state)
    first, second = (_size(state, f"blocks.0.mlp.{part}.weight") for part in ("fc1", "fc2"))
    packed = len(first) == len(second) == 2 and first[0] == 2 * second[1]
    renamed = {
        key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.") if packed else key: v
        for key, v in state.items()
    }
    if "cls_token" in state:
        renamed["mask_token"] = torch.zeros_like(state["cls_token"]).reshape(1, -1)
    if "reg_token" in renamed and len(_size(state, "pos_embed")) == 3:
        renamed["register_tokens"] = renamed.pop("reg_token")
        no_position = torch.zeros_like(state["pos_embed"][:, :1])
        renamed["pos_embed"] = torch.cat([no_position, state["pos_embed"]], dim=1)
    return renamed


def _size(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """Shape of a tensor; empty where there is none."""
    return tuple(state[key].shape) if key in state else ()


def _choose(prefixes: Mapping[str, Naming], asked: str | None) -> str:
    if asked is None:
        known = [prefix for prefix in PREFIXES if prefix in prefixes]
        if len(prefixes) == 1 or known:
            return [*known, *prefixes][0]
    elif asked in prefixes:
        return asked
    names = ", ".join(f"'{name[:80]}'" for name in sorted(prefixes)[:8])
    problem = (
        f"holds {len(prefixes)} vision transformers"
        if asked is None
        else (f"no vision transformer stands below '{asked}'")
    )
    raise ConfigError(problem, field="--prefix", remedy=f"choose one with --prefix: {names}")


def _family(state: Mapping[str, Tensor], naming: Naming) -> Family:
    """Layer scale came with DINOv2, and position embeddings went with DINOv3."""
    scale = ".ls1.gamma" if naming == "original" else ".layer_scale1.lambda1"
    positions = "pos_embed" if naming == "original" else "embeddings.position_embeddings"
    if not any(key.endswith(scale) for key in state):
        return "dino"
    return "dinov2" if positions in state else "dinov3"


def _image_size(state: Mapping[str, Tensor], patch: int) -> int:
    positions = state.get("pos_embed")
    if positions is None:
        return max(1, 224 // patch) * patch  # rotary positions fit every size
    cells = positions.shape[1] - 1 if positions.ndim == 3 else -1
    side = math.isqrt(max(cells, 0))
    if side * side != cells or not side:
        raise DataError(
            f"position embeddings of shape {tuple(positions.shape)} are of no square image",
            field="pos_embed",
        )
    return side * patch


def _heads(width: int, asked: int | None) -> int:
    if asked is None and width % 64 == 0:
        return width // 64
    if asked is None or asked < 1 or width % asked:
        raise ConfigError(
            f"no tensor tells the number of attention heads of width {width}"
            if asked is None
            else f"{asked} heads do not divide a width of {width}",
            field="--heads",
            remedy="give the number that the network was trained with: it changes no shape",
        )
    return asked
