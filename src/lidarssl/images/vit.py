"""Vision transformers trained with DINO, DINOv2 and DINOv3, as feature maps."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.errors import ConfigError, require, unknown_name
from lidarssl.images.frozen import FreezableEncoder
from lidarssl.images.vit_architectures import ARCHITECTURES, ViTArchitecture
from lidarssl.images.vit_keys import ANCHOR, HEADS, to_transformers
from lidarssl.images.weights import OriginalLayout, build_encoder

Positions = Literal["offset", "antialiased"]


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
        positions: how position embeddings are brought to another size, see
            ``resample_positions``: ``offset`` (0.1 cells, not antialiased: DINO, DINOv2, ScaLR),
            ``antialiased`` (without offset: DINOv2 with registers, timm, ScaLR+); None for what
            the authors of the architecture do.

    Raises:
        ConfigError: the architecture does not exist or has no position embeddings to resample,
            or ``weights`` cannot be read.
        DataError: the weights file is unsafe, damaged or of another network.
    """

    def __init__(
        self,
        architecture: str | ViTArchitecture = "dino_vits16",
        weights: str | Path | None = None,
        final_norm: bool = True,
        frozen: bool = True,
        positions: Positions | None = None,
    ) -> None:
        shape = _named(architecture) if isinstance(architecture, str) else architecture
        super().__init__(out_channels=shape.width, stride=shape.patch_size)
        self.architecture = shape
        self.model = _build(shape, weights, positions)
        if not final_norm:
            setattr(self.model, _FINAL_NORM[shape.family], nn.Identity())
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


_FINAL_NORM = {"dino": "layernorm", "dinov2": "layernorm", "dinov3": "norm"}


def _build(shape: ViTArchitecture, weights: str | Path | None, positions: Positions | None) -> Any:
    if shape.family == "dinov3" and positions is not None:
        raise ConfigError(
            "DINOv3 has no position embeddings to resample",
            field="positions",
            remedy="leave positions out",
        )
    model_class, config, arguments = _transformers_model(shape)
    layout = OriginalLayout(
        ANCHOR, HEADS, shape.shapes, partial(to_transformers, family=shape.family)
    )
    model = build_encoder(model_class, config, weights, layout, **arguments)
    # Nothing is masked here, and a parameter that never gets a gradient stops DDP.
    model.embeddings.mask_token = None
    if shape.family != "dinov3":
        published: Positions = "antialiased" if shape.registers else "offset"
        model.embeddings.interpolate_pos_encoding = partial(
            _resample_for_model, model.embeddings, shape.patch_size, positions or published
        )
    return model


def _resample_for_model(
    embeddings: Any, patch: int, how: Positions, _tokens: Tensor, height: int, width: int
) -> Tensor:
    antialias = how == "antialiased"
    return resample_positions(
        embeddings.position_embeddings, height // patch, width // patch,
        offset=0.0 if antialias else 0.1, antialias=antialias,
    )  # fmt: skip


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
    if shape.family == "dinov3":
        config = transformers.DINOv3ViTConfig(
            intermediate_size=4 * shape.width,
            use_gated_mlp=shape.swiglu,
            hidden_act="silu" if shape.swiglu else "gelu",
            num_register_tokens=shape.registers,
            # Nothing may be random: by default training rescales the positions of every batch.
            pos_embed_rescale=None,
            **common,
        )
        return transformers.DINOv3ViTModel, config, {}
    common["use_swiglu_ffn"] = shape.swiglu
    if shape.registers:
        config = transformers.Dinov2WithRegistersConfig(
            num_register_tokens=shape.registers, **common
        )
        return transformers.Dinov2WithRegistersModel, config, {}
    return transformers.Dinov2Model, transformers.Dinov2Config(**common), {}
