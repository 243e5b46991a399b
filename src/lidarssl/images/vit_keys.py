"""Checkpoint keys of vision transformers: the original authors' layout and transformers' files.

Written is what ``save_pretrained`` writes, which is stable; the names of the modules inside
transformers change between releases, so those that occur in state dicts are read as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.images.vit_architectures import Family


@dataclass(frozen=True)
class _Names:
    """How transformers names what the original authors call otherwise.

    Attributes:
        outside: of tensors outside the blocks.
        block: prefix of a block, before its number.
        queries: of the queries, keys and values that the original projects together.
        inside: of modules inside a block.
    """

    outside: Mapping[str, str]
    block: str
    queries: tuple[str, str, str]
    inside: Mapping[str, str]


_PATCHES = "embeddings.patch_embeddings"
_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": f"{_PATCHES}.projection.weight",
    "patch_embed.proj.bias": f"{_PATCHES}.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_QUERIES = (
    "attention.attention.query", "attention.attention.key", "attention.attention.value",
)  # fmt: skip
_SCALES_AND_NORMS = {
    "norm1": "norm1",
    "ls1": "layer_scale1",
    "norm2": "norm2",
    "ls2": "layer_scale2",
}
_NAMES: dict[Family, _Names] = {
    "dino": _Names(
        _EMBEDDINGS,
        "encoder.layer.",
        _QUERIES,
        {
            "norm1": "layernorm_before",
            "attn.proj": "attention.output.dense",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
    "dinov2": _Names(
        _EMBEDDINGS,
        "encoder.layer.",
        _QUERIES,
        _SCALES_AND_NORMS
        | {
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "mlp.w12": "mlp.weights_in",
            "mlp.w3": "mlp.weights_out",
        },
    ),
    "dinov3": _Names(
        {
            "cls_token": "embeddings.cls_token",
            "mask_token": "embeddings.mask_token",
            "storage_tokens": "embeddings.register_tokens",
            "patch_embed.proj.weight": f"{_PATCHES}.weight",
            "patch_embed.proj.bias": f"{_PATCHES}.bias",
            "norm.weight": "norm.weight",
            "norm.bias": "norm.bias",
        },
        "layer.",
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        _SCALES_AND_NORMS
        | {
            "attn.proj": "attention.o_proj",
            "mlp.fc1": "mlp.up_proj",
            "mlp.fc2": "mlp.down_proj",
            "mlp.w1": "mlp.gate_proj",
            "mlp.w2": "mlp.up_proj",
            "mlp.w3": "mlp.down_proj",
        },
    ),
}


def to_transformers(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Rename the tensors of one vision transformer and split its joint q, k, v projections.

    Args:
        state: exactly the tensors of ``ViTArchitecture.shapes``.
        family: which naming transformers uses.

    Returns:
        The state dict of a transformers checkpoint file.
    """
    names = _NAMES[family]
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", key)
        if block is None:
            renamed[names.outside[key]] = value
            continue
        layer, name, parameter = f"{names.block}{block[1]}.", block[2], block[3]
        if name == "attn.qkv":
            renamed |= {
                f"{layer}{part}.{parameter}": tensor.contiguous()
                for part, tensor in zip(names.queries, value.chunk(3), strict=True)
            }
        else:
            parameter = "lambda1" if parameter == "gamma" else parameter
            renamed[f"{layer}{names.inside[name]}.{parameter}"] = value
    return _without_key_bias(renamed) if family == "dinov3" else renamed


def _without_key_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3 keeps a bias of its keys and multiplies it by zero; transformers keeps none."""
    kept = {
        key: value
        for key, value in state.items()
        if not key.endswith(("k_proj.bias", "_proj.bias_mask"))
    }
    kept["embeddings.mask_token"] = kept["embeddings.mask_token"][None]
    return kept


# A block in a file, and as transformers calls it inside.
_BLOCK = re.compile(r"(?:model\.)?(?:encoder\.)?layers?\.(\d+)\.(.+)\.(\w+)")
_PARTS = ("q", "k", "v")
# Names of modules inside transformers that its files call otherwise, of every release.
_INSIDE: dict[Family, dict[str, str]] = {
    "dino": {"attention.o_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
    "dinov2": {"attention.o_proj": "attn.proj"},
    "dinov3": {},
}


def to_original(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Rename the tensors of transformers' file, or of its module, as the original authors do.

    The inverse of :func:`to_transformers`, but for what transformers does not keep: the bias of
    DINOv3's keys, which is multiplied by zero, becomes zero. So does a mask token that is absent,
    which only pretraining reads. Keys that are of no known tensor stay as they are.

    Args:
        state: tensors of one encoder, without prefix.
        family: of the encoder.

    Returns:
        The tensors of ``ViTArchitecture.shapes``.
    """
    outside = {theirs: ours for ours, theirs in _NAMES[family].outside.items()}
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        block = _BLOCK.fullmatch(key)
        if block is None:
            renamed[outside.get(key, key)] = value
        else:
            gated = f"{key[: block.start(2)]}mlp.gate_proj.weight" in state
            name = _names_inside(family, gated).get(block[2])
            parameter = "gamma" if block[3] == "lambda1" else block[3]
            renamed[f"blocks.{block[1]}.{name}.{parameter}" if name else key] = value
    if family == "dinov3":
        renamed = _with_key_bias(renamed)
    joined = _join(_join(renamed, "attn.qkv", _PARTS), "mlp.w12", ("gate", "value"))
    return joined if family == "dino" else _with_mask_token(joined)


def _names_inside(family: Family, gated: bool) -> dict[str, str]:
    """Module inside a block of transformers -> its name, or that of its part, in the original."""
    names = _NAMES[family]
    # DINOv3 calls the layers of both kinds of feed-forward alike.
    ours = ("w1", "w2", "w3") if gated else ("fc1", "fc2")
    inside = {
        theirs: our
        for our, theirs in names.inside.items()
        if not (family == "dinov3" and our.startswith("mlp.")) or our.endswith(ours)
    }
    if gated and family == "dinov2":
        inside |= {
            "mlp.gate_proj": "mlp.w12.gate", "mlp.up_proj": "mlp.w12.value",
            "mlp.down_proj": "mlp.w3",
        }  # fmt: skip
    for queries in {names.queries, _NAMES["dinov3"].queries}:
        inside |= {query: f"attn.qkv.{part}" for query, part in zip(queries, _PARTS, strict=True)}
    return inside | _INSIDE[family]


def _join(state: Mapping[str, Tensor], name: str, parts: Sequence[str]) -> dict[str, Tensor]:
    """Put the parts of each layer ``name`` behind one another, where all are there and fit."""
    joined: dict[str, Tensor] = {}
    for key, value in state.items():
        found = re.fullmatch(rf"(.+\.{re.escape(name)})\.({'|'.join(parts)})\.(\w+)", key)
        keys = [f"{found[1]}.{part}.{found[3]}" for part in parts] if found else []
        sizes = {state[one].shape[1:] if one in state and state[one].ndim else None for one in keys}
        if found is None or len(sizes) != 1 or None in sizes:
            joined[key] = value
        elif found[2] == parts[0]:
            joined[f"{found[1]}.{found[3]}"] = torch.cat([state[one] for one in keys])
    return joined


def _with_key_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The bias of DINOv3's keys and the factors that remove it."""
    full = dict(state)
    for key, value in state.items():
        if key.endswith("attn.qkv.q.bias"):
            layer, one = key.removesuffix("q.bias"), value.new_ones(value.numel())
            full[f"{layer}k.bias"] = torch.zeros_like(value)
            full[f"{layer}bias_mask"] = torch.cat([one, 0 * one, one])
    return full


def _with_mask_token(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One of shape (1, width), of zeros where transformers has dropped it."""
    token = state.get("mask_token")
    if token is None:
        token = torch.zeros_like(state["cls_token"]) if "cls_token" in state else None
    return dict(state) if token is None else {**state, "mask_token": token.reshape(1, -1)}
