"""Checkpoint keys of vision transformers: original authors' layout -> transformers' files.

The target is what ``save_pretrained`` writes, which is stable; the names of the modules inside
transformers change between releases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lidarssl.images.vit_architectures import Family

ANCHOR = "patch_embed.proj.weight"
# DINOv3's periods follow from its shape; its second norm is of crops that only training sees.
HEADS = ("head.", "rope_embed.", "local_cls_norm.")


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
