"""Vision transformers trained with DINO and DINOv2, as feature maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.errors import ConfigError, require, unknown_name
from lidarssl.images.frozen import FreezableEncoder
from lidarssl.images.vit_keys import ANCHOR, HEADS, to_transformers
from lidarssl.images.weights import OriginalLayout, build_encoder


@dataclass(frozen=True)
class ViTArchitecture:
    """Shape of a vision transformer with square patches and a square grid of positions.

    Args:
        family: ``dino`` (Caron et al. 2021), or ``dinov2`` (Oquab et al. 2023: layer scale).
        image_size: pixels per side that the position embeddings were trained on.
        patch_size: pixels per side of a patch.
        width: channels of a token.
        depth: blocks.
        heads: attention heads.
        registers: register tokens (Darcet et al. 2024), ``dinov2`` only.
        swiglu: gated feed-forward layers, ``dinov2`` only.
        norm_eps: epsilon of every layer norm.
    """

    family: Literal["dino", "dinov2"]
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    registers: int = 0
    swiglu: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.family == "dino" and (self.registers or self.swiglu):
            raise ConfigError("registers and swiglu exist in family dinov2 only", field="family")
        if self.image_size % self.patch_size or self.width % self.heads:
            raise ConfigError("patch_size must divide image_size, and heads must divide width")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors of a checkpoint in the layout of the original authors, and their shapes."""
        width, patches = self.width, (self.image_size // self.patch_size) ** 2
        shapes: dict[str, tuple[int, ...]] = {
            "cls_token": (1, 1, width),
            "pos_embed": (1, patches + 1, width),
            "patch_embed.proj.weight": (width, 3, self.patch_size, self.patch_size),
            "patch_embed.proj.bias": (width,),
            "norm.weight": (width,),
            "norm.bias": (width,),
        }
        if self.family == "dinov2":
            shapes["mask_token"] = (1, width)
        if self.registers:
            shapes["register_tokens"] = (1, self.registers, width)
        for index in range(self.depth):
            shapes |= {f"blocks.{index}.{key}": s for key, s in self._block_shapes().items()}
        return shapes

    def _block_shapes(self) -> dict[str, tuple[int, ...]]:
        width = self.width
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        if self.swiglu:
            hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
            linear |= {"mlp.w12": (2 * hidden, width), "mlp.w3": (width, hidden)}
        else:
            linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        if self.family == "dinov2":
            shapes |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        return shapes


def _dinov2(width: int, depth: int, heads: int, **options: Any) -> ViTArchitecture:
    return ViTArchitecture("dinov2", 518, 14, width, depth, heads, **options)


ARCHITECTURES = {
    "dino_vits16": ViTArchitecture("dino", 224, 16, 384, 12, 6),
    "dino_vits8": ViTArchitecture("dino", 224, 8, 384, 12, 6),
    "dino_vitb16": ViTArchitecture("dino", 224, 16, 768, 12, 12),
    "dino_vitb8": ViTArchitecture("dino", 224, 8, 768, 12, 12),
    "dinov2_vits14": _dinov2(384, 12, 6),
    "dinov2_vitb14": _dinov2(768, 12, 12),
    "dinov2_vitl14": _dinov2(1024, 24, 16),
    "dinov2_vitg14": _dinov2(1536, 40, 24, swiglu=True),
    "dinov2_vits14_reg": _dinov2(384, 12, 6, registers=4),
    "dinov2_vitb14_reg": _dinov2(768, 12, 12, registers=4),
    "dinov2_vitl14_reg": _dinov2(1024, 24, 16, registers=4),
    "dinov2_vitg14_reg": _dinov2(1536, 40, 24, registers=4, swiglu=True),
}


class ViT(FreezableEncoder):
    """Patch tokens of a vision transformer as a feature map of stride ``patch_size``.

    Images whose sides are no multiple of the patch are extended to the right and below by
    their mean colour, so the map covers all of the image.

    Args:
        architecture: a name of ``ARCHITECTURES``, or a shape of your own.
        weights: a file in the layout of the original authors or of transformers; a folder
            written by ``save_pretrained``; a hub id; None for random weights.
        final_norm: tokens after the final layer norm (SLidR); False for the output of the last
            block (ScaLR).
        frozen: no parameter trains.

    Raises:
        ConfigError: the architecture does not exist, or ``weights`` cannot be read.
        DataError: the weights file is unsafe, damaged or of another network.
    """

    def __init__(
        self,
        architecture: str | ViTArchitecture = "dino_vits16",
        weights: str | Path | None = None,
        final_norm: bool = True,
        frozen: bool = True,
    ) -> None:
        shape = _named(architecture) if isinstance(architecture, str) else architecture
        super().__init__(out_channels=shape.width, stride=shape.patch_size)
        self.architecture = shape
        self.model = _build(shape, weights)
        if not final_norm:
            self.model.layernorm = nn.Identity()
        if frozen:
            self.freeze()

    def features(self, images: Tensor) -> Tensor:
        patch = self.architecture.patch_size
        rows, columns = (-(-side // patch) for side in images.shape[-2:])
        tokens = self.tokens(images)[:, 1 + self.architecture.registers :]
        return tokens.transpose(1, 2).reshape(len(images), self.out_channels, rows, columns)

    def tokens(self, images: Tensor) -> Tensor:
        """All tokens of normalised images: class token, registers, patches row by row.

        Args:
            images: (I, 3, H, W), already normalised.

        Returns:
            (I, 1 + registers + patches, width).
        """
        patch = self.architecture.patch_size
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % patch, 0, -height % patch))
        # Only the first family has to be told that images may differ from the trained size.
        options = {"interpolate_pos_encoding": True} if self.architecture.family == "dino" else {}
        return self.model(pixel_values=padded, **options).last_hidden_state


def resample_positions(
    positions: Tensor, rows: int, columns: int, *, offset: float = 0.1, antialias: bool = False
) -> Tensor:
    """Position embeddings of another grid, exactly as the original implementations.

    DINO and DINOv2 add 0.1 cells to the wanted size before dividing by the trained one, which
    shifts every sampling position a little; DINOv2 with registers adds nothing and antialiases.

    Args:
        positions: (1, 1 + s * s, C), the first row is of the class token and stays.
        rows, columns: wanted grid.
        offset: cells added to both sides of the wanted grid.
        antialias: low-pass before reducing.

    Returns:
        (1, 1 + rows * columns, C).
    """
    side = math.isqrt(positions.shape[1] - 1)
    if (rows, columns) == (side, side):
        return positions
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    if offset:
        scale = ((rows + offset) / side, (columns + offset) / side)
        resampled = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        resampled = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=antialias)
    patches = resampled.flatten(2).transpose(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], patches], dim=1)


def _named(name: str) -> ViTArchitecture:
    if name not in ARCHITECTURES:
        raise unknown_name("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]


def _build(shape: ViTArchitecture, weights: str | Path | None) -> Any:
    model_class, config, arguments = _transformers_model(shape)
    layout = OriginalLayout(
        ANCHOR, HEADS, shape.shapes, partial(to_transformers, family=shape.family)
    )
    model = build_encoder(model_class, config, weights, layout, **arguments)
    # Nothing is masked here, and a parameter that never gets a gradient stops DDP.
    model.embeddings.mask_token = None
    model.embeddings.interpolate_pos_encoding = partial(
        _resample_for_model, model.embeddings, shape
    )
    return model


def _resample_for_model(
    embeddings: Any, shape: ViTArchitecture, _tokens: Tensor, height: int, width: int
) -> Tensor:
    rows, columns = height // shape.patch_size, width // shape.patch_size
    antialias = shape.registers > 0
    offset = 0.0 if antialias else 0.1
    positions = embeddings.position_embeddings
    return resample_positions(positions, rows, columns, offset=offset, antialias=antialias)


def _transformers_model(shape: ViTArchitecture) -> tuple[Any, Any, dict[str, Any]]:
    """Class, configuration and further constructor arguments."""
    transformers = require("transformers", "images")
    common: dict[str, Any] = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "layer_norm_eps": shape.norm_eps,
    }
    if shape.family == "dino":
        config = transformers.ViTConfig(intermediate_size=4 * shape.width, **common)
        return transformers.ViTModel, config, {"add_pooling_layer": False}
    common["use_swiglu_ffn"] = shape.swiglu
    if shape.registers:
        config = transformers.Dinov2WithRegistersConfig(
            num_register_tokens=shape.registers, **common
        )
        return transformers.Dinov2WithRegistersModel, config, {}
    return transformers.Dinov2Model, transformers.Dinov2Config(**common), {}
