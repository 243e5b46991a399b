"""Heads that turn a feature map into class scores: the mask transformer, and one linear layer.

Source: Strudel et al., "Segmenter: Transformer for Semantic Segmentation", ICCV 2021; layer by
layer as the mask head of mmsegmentation 1.2, whose checkpoints it reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.weights import check_shapes

_NORM_EPS = 1e-5
_INIT_STD = 0.02
_PREFIX = "decode_head."
_UNUSED = "conv_seg."  # inherited by the published head, never called


@dataclass(frozen=True)
class MaskTransformerShape:
    """Size of a mask transformer.

    Args:
        layers: transformer layers.
        heads: attention heads of each; they divide the width.
        width: of all tokens; None = that of the encoder's map.
        mlp_ratio: hidden width of the feed-forward part over the width.
        drop_path: probability that a sample skips a branch of the last layer; it grows linearly
            from 0 at the first. A single layer has 0.
    """

    layers: int = 2
    heads: int = 6
    width: int | None = None
    mlp_ratio: int = 4
    drop_path: float = 0.1


class MaskTransformer(nn.Module):
    """Patch tokens and one learned token per class attend to each other; a score is their cosine.

    The cosines of a patch with all classes are normalised to mean 0 and variance 1, then scaled
    and shifted per class. A token that is exactly 0 has cosine 0 with every other.

    Args:
        in_channels: of the encoder's map.
        num_classes: K classes with a score; the ignored class has none.
        shape: see there; None = the published one.

    Raises:
        ConfigError: the heads do not divide the width, or there are fewer than two classes.
    """

    def __init__(
        self, in_channels: int, num_classes: int, shape: MaskTransformerShape | None = None
    ) -> None:
        super().__init__()
        shape = shape or MaskTransformerShape()
        width = shape.width or in_channels
        _check(width, num_classes, shape)
        self.num_classes = num_classes
        self.cls_emb = nn.Parameter(torch.empty(1, num_classes, width))
        self.dec_proj = nn.Linear(in_channels, width)
        rates = torch.linspace(0, shape.drop_path, shape.layers).tolist()
        self.layers = nn.ModuleList(
            TransformerLayer(width, shape.heads, shape.mlp_ratio, rate) for rate in rates
        )
        self.decoder_norm = nn.LayerNorm(width, eps=_NORM_EPS)
        self.patch_proj = nn.Linear(width, width, bias=False)
        self.classes_proj = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(num_classes, eps=_NORM_EPS)
        self._initialise()

    def forward(self, features: Tensor) -> Tensor:
        """Class scores of every cell.

        Args:
            features: (I, in_channels, h, w).

        Returns:
            (I, K, h, w).
        """
        tokens = self.dec_proj(features.flatten(2).transpose(1, 2))
        tokens = torch.cat([tokens, self.cls_emb.expand(len(tokens), -1, -1)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.decoder_norm(tokens)
        patches = unit_rows(self.patch_proj(tokens[:, : -self.num_classes]))
        classes = unit_rows(self.classes_proj(tokens[:, -self.num_classes :]))
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).unflatten(2, features.shape[-2:])

    def _initialise(self) -> None:
        """All linear layers and the class tokens; queries, keys and values, which are no linear
        layer of their own, keep the Xavier values of the attention."""
        nn.init.trunc_normal_(self.cls_emb, std=_INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class TransformerLayer(nn.Module):
    """Attention and a feed-forward part, each behind a norm and beside a shortcut.

    Args:
        width: of the tokens.
        heads: of the attention.
        mlp_ratio: hidden width of the feed-forward part over ``width``.
        drop_path: probability that a sample skips a branch in training.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.ln1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.ffn = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.ln1(tokens)
        mixed, _ = self.attn(normed, normed, normed, need_weights=False)
        tokens = tokens + self._kept(mixed)
        return tokens + self._kept(self.ffn(self.ln2(tokens)))

    def _kept(self, branch: Tensor) -> Tensor:
        """A branch with whole samples left out, its mean kept; by torch's own generator."""
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand((len(branch), 1, 1), device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class LinearPixelHead(nn.Module):
    """One linear layer on every cell of a map: the cheap probe.

    Args:
        in_channels: of the encoder's map.
        num_classes: K classes with a score; the ignored class has none.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Class scores (I, K, h, w) of features (I, in_channels, h, w)."""
        scores: Tensor = self.linear(features.movedim(1, -1))
        return scores.movedim(-1, 1)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (..., C) over their Euclidean length; a row of zeros stays, with a finite gradient."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(length > 0, length, 1.0)


def load_mmseg(head: MaskTransformer, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Fill a head with the weights of mmsegmentation.

    Args:
        head: of the same shape.
        state: see ``from_mmseg``.
        source: where they are from, for errors.

    Raises:
        DataError: there is no such head, or a tensor is missing, unknown or of another shape.
    """
    found = from_mmseg(state, source)
    check_shapes(
        found, {key: tuple(value.shape) for key, value in head.state_dict().items()}, source
    )
    head.load_state_dict({key: value.float() for key, value in found.items()})


def from_mmseg(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """The tensors of a mask transformer under the names they have here.

    Args:
        state: of a whole mmsegmentation segmentor (``decode_head.*`` and others), or of its head
            alone. The head's unused classifier ``conv_seg`` is left out.
        source: where they are from, for errors.

    Raises:
        DataError: there is no mask transformer.
    """
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in state) else ""
    if f"{prefix}cls_emb" not in state:
        raise DataError(
            "no mask transformer of mmsegmentation is in there",
            path=source,
            field=f"{_PREFIX}cls_emb",
            remedy="give the checkpoint of a segmentor with a SegmenterMaskTransformerHead",
        )
    return {
        _own_name(key.removeprefix(prefix)): value
        for key, value in state.items()
        if key.startswith(prefix) and not key.startswith(prefix + _UNUSED)
    }


def _own_name(key: str) -> str:
    key = re.sub(r"^(layers\.\d+)\.attn\.attn\.", r"\1.attn.", key)
    key = re.sub(r"^(layers\.\d+)\.ffn\.layers\.0\.0\.", r"\1.ffn.0.", key)
    return re.sub(r"^(layers\.\d+)\.ffn\.layers\.1\.", r"\1.ffn.2.", key)


def _check(width: int, num_classes: int, shape: MaskTransformerShape) -> None:
    if width % shape.heads:
        fitting = [str(heads) for heads in range(1, 17) if width % heads == 0]
        raise ConfigError(
            f"{shape.heads} attention heads do not divide a width of {width}",
            field="mask_transformer.heads",
            remedy=f"give one of {', '.join(fitting)}, or set mask_transformer.width",
        )
    if num_classes < 2:
        raise ConfigError(
            f"a mask transformer tells classes apart, and there is {num_classes}",
            field="num_classes",
            remedy="use two or more classes beside the ignored one, or the linear head",
        )
