"""Checkpoint keys of vision transformers: original authors' layout -> transformers' files.

The target is what ``save_pretrained`` writes, which is stable; the names of the modules inside
transformers change between releases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

ANCHOR = "patch_embed.proj.weight"
HEADS = ("head.",)

_OUTSIDE_BLOCKS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_INSIDE_BLOCK = {
    "dino": {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    "dinov2": {
        "norm1": "norm1",
        "attn.proj": "attention.output.dense",
        "ls1": "layer_scale1",
        "norm2": "norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "mlp.w12": "mlp.weights_in",
        "mlp.w3": "mlp.weights_out",
        "ls2": "layer_scale2",
    },
}


def to_transformers(
    state: Mapping[str, Tensor], family: Literal["dino", "dinov2"]
) -> dict[str, Tensor]:
    """Rename the tensors of one vision transformer and split its joint q, k, v projections.

    Args:
        state: exactly the tensors of ``ViTArchitecture.shapes``.
        family: which naming transformers uses.

    Returns:
        The state dict of a transformers checkpoint file.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(\w+)", key)
        if block is None:
            renamed[_OUTSIDE_BLOCKS[key]] = value
            continue
        layer, name, parameter = f"encoder.layer.{block[1]}.", block[2], block[3]
        if name == "attn.qkv":
            for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{layer}attention.attention.{part}.{parameter}"] = tensor.contiguous()
        else:
            parameter = "lambda1" if parameter == "gamma" else parameter
            renamed[f"{layer}{_INSIDE_BLOCK[family][name]}.{parameter}"] = value
    return renamed
