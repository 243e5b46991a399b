"""Vision transformers of timm, DINO, DINOv2 and DINOv3, as feature maps and as one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.errors import ConfigError, require, unknown_name
from lidarssl.images.frozen import HALF, IMAGENET_MEAN, IMAGENET_STD, FreezableEncoder
from lidarssl.images.vit_architectures import ARCHITECTURES, TIMM_ARCHITECTURES, ViTArchitecture
from lidarssl.images.vit_files import find_vit
from lidarssl.images.vit_keys import to_transformers
from lidarssl.images.weights import OriginalLayout, build_encoder, check_shapes, load_transformers

Positions = Literal["offset", "antialiased", "plain"]
Normalization = Literal["imagenet", "half"]


class ViT(FreezableEncoder):
    """Patch tokens of a vision transformer as a feature map of stride ``patch_size``.

    Its vector of an image is the class token, where the map ends: after the final norm, or
    without it after the last block. Images whose sides are no multiple of the patch are extended
    to the right and below by their mean colour, so the map covers all of the image.

    Args:
        architecture: a name of ``ARCHITECTURES``, or a shape of your own.
        weights: a file in the layout of timm, of the original authors or of transformers, also
            inside the checkpoint of a trainer (DINO, CLCP, LIP-Loc, mmsegmentation, lidarssl); a
            folder written by ``save_pretrained``; a hub id; None for random weights.
        final_norm: tokens after the final layer norm (SLidR); False for the output of the last
            block (ScaLR).
        frozen: no parameter trains.
        positions: how position embeddings are brought to another size, see
            ``resample_positions``: ``offset`` (0.1 cells, not antialiased: DINO, DINOv2, ScaLR),
            ``antialiased`` (without offset: DINOv2 with registers, timm, ScaLR+), ``plain``
            (neither: transformers' ViT); None for what the authors of the architecture do.
        normalization: RGB statistics: ``imagenet``, or ``half`` (mean and deviation 0.5), which
            the weights of timm's architectures were trained with; None for what the authors of
            the architecture do. Later training with the other is a choice to repeat downstream
            (CLCP and its segmentation take ``imagenet`` for weights trained with ``half``).
        checkpointing: recompute each block in the backward pass instead of keeping it in memory.

    Raises:
        ConfigError: architecture or normalisation do not exist, there are no position embeddings
            to resample, or ``weights`` cannot be read.
        DataError: the weights file is unsafe, damaged or of another network.
    """

    def __init__(
        self,
        architecture: str | ViTArchitecture = "dino_vits16",
        weights: str | Path | None = None,
        final_norm: bool = True,
        frozen: bool = True,
        positions: Positions | None = None,
        normalization: Normalization | None = None,
        checkpointing: bool = False,
    ) -> None:
        shape = _named(architecture) if isinstance(architecture, str) else architecture
        from_timm = isinstance(architecture, str) and architecture in TIMM_ARCHITECTURES
        normalization = normalization or ("half" if from_timm else "imagenet")
        if normalization not in STATISTICS:
            raise unknown_name("normalization", normalization, STATISTICS)
        super().__init__(shape.width, shape.patch_size, *STATISTICS[normalization])
        self.architecture, self.final_norm, self.normalization = shape, final_norm, normalization
        if positions is None and shape.family != "dinov3":
            positions = "antialiased" if from_timm or shape.registers else "offset"
        self.positions = positions
        self.model = _build(shape, weights, positions)
        if checkpointing:
            # The other way would find no input that needs a gradient: images need none.
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if not final_norm:
            setattr(self.model, _FINAL_NORM[shape.family], nn.Identity())
        if frozen:
            self.freeze()

    def features(self, images: Tensor) -> Tensor:
        patch = self.architecture.patch_size
        rows, columns = (-(-side // patch) for side in images.shape[-2:])
        tokens = self.tokens(images)[:, 1 + self.architecture.registers :]
        return tokens.transpose(1, 2).reshape(len(images), self.out_channels, rows, columns)

    def pooled(self, images: Tensor) -> Tensor:
        with self.recording():
            return self.tokens(self.normalised(images))[:, 0]

    def load_original(self, state: Mapping[str, Tensor], source: str | Path) -> None:
        """Take over the weights of a checkpoint.

        Args:
            state: exactly the tensors of ``ViTArchitecture.shapes``; those of the final norm are
                not needed without it.
            source: where they are from, for messages.

        Raises:
            DataError: a tensor is missing, unknown or of another shape.
        """
        if not self.final_norm:
            width = self.out_channels
            unread = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
            state = {**unread, **state}
        filled = filled_model(self.architecture, state, source).state_dict()
        self.model.load_state_dict({key: filled[key] for key in self.model.state_dict()})

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
    shifts every sampling position a little; timm and DINOv2 with registers add nothing and
    antialias, which also takes another kernel (a = -0.5 instead of -0.75).

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
STATISTICS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": (HALF, HALF)}


def _build(shape: ViTArchitecture, weights: str | Path | None, positions: Positions | None) -> Any:
    if shape.family == "dinov3" and positions is not None:
        raise ConfigError(
            "DINOv3 has no position embeddings to resample",
            field="positions",
            remedy="leave positions out",
        )
    model_class, config, arguments = _transformers_model(shape)
    layout = OriginalLayout(
        lambda state: found.state if (found := find_vit(state)) else None,
        shape.shapes,
        partial(to_transformers, family=shape.family),
    )
    model = build_encoder(model_class, config, weights, layout, **arguments)
    # Nothing is masked here, and a parameter that never gets a gradient stops DDP.
    model.embeddings.mask_token = None
    if positions is not None:
        model.embeddings.interpolate_pos_encoding = partial(
            _resample_for_model, model.embeddings, shape.patch_size, positions
        )
    return model


def _resample_for_model(
    embeddings: Any, patch: int, how: Positions, _tokens: Tensor, height: int, width: int
) -> Tensor:
    return resample_positions(
        embeddings.position_embeddings, height // patch, width // patch,
        offset=0.1 if how == "offset" else 0.0, antialias=how == "antialiased",
    )  # fmt: skip


def filled_model(shape: ViTArchitecture, state: Mapping[str, Tensor], source: str | Path) -> Any:
    """The model of transformers, as it is there, with the weights of a checkpoint.

    Args:
        shape: its architecture.
        state: exactly the tensors of ``shape.shapes()``.
        source: where they are from, for messages.

    Raises:
        DataError: a tensor is missing, unknown or of another shape.
    """
    check_shapes(state, shape.shapes(), source)
    model_class, config, arguments = _transformers_model(shape)
    renamed = to_transformers(state, shape.family)
    return load_transformers(model_class, config, source, renamed, arguments)


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
