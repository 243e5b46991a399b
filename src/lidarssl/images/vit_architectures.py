"""Shapes of the vision transformers of timm, DINO, DINOv2 and DINOv3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lidarssl.errors import ConfigError

Family = Literal["dino", "dinov2", "dinov3"]


@dataclass(frozen=True)
class ViTArchitecture:
    """Shape of a vision transformer with square patches.

    Args:
        family: ``dino`` (Caron et al. 2021, and the plain ones of timm), ``dinov2`` (Oquab et
            al. 2023: layer scale) or ``dinov3`` (Siméoni et al. 2025: rotary positions, no bias
            of the keys).
        image_size: pixels per side that the position embeddings were trained on; ``dinov3`` has
            none, its rotary positions fit every size.
        patch_size: pixels per side of a patch.
        width: channels of a token.
        depth: blocks.
        heads: attention heads.
        registers: register tokens (Darcet et al. 2024), not in ``dino``.
        swiglu: gated feed-forward layers, not in ``dino``.
        norm_eps: epsilon of every layer norm.
    """

    family: Family
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
            raise ConfigError("registers and swiglu do not exist in family dino", field="family")
        if self.image_size % self.patch_size or self.width % self.heads:
            raise ConfigError("patch_size must divide image_size, and heads must divide width")
        if self.family == "dinov3" and self.width // self.heads % 4:
            raise ConfigError(
                "rotary positions need heads of a multiple of 4 channels", field="heads"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors of a checkpoint in the layout of the original authors, and their shapes."""
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {
            "cls_token": (1, 1, width),
            "patch_embed.proj.weight": (width, 3, self.patch_size, self.patch_size),
            "patch_embed.proj.bias": (width,),
            "norm.weight": (width,),
            "norm.bias": (width,),
        }
        if self.family != "dinov3":
            shapes["pos_embed"] = (1, (self.image_size // self.patch_size) ** 2 + 1, width)
        if self.family != "dino":
            shapes["mask_token"] = (1, width)
        if self.registers:
            name = "storage_tokens" if self.family == "dinov3" else "register_tokens"
            shapes[name] = (1, self.registers, width)
        for index in range(self.depth):
            shapes |= {f"blocks.{index}.{key}": s for key, s in self._block_shapes().items()}
        return shapes

    def _block_shapes(self) -> dict[str, tuple[int, ...]]:
        width = self.width
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linear |= self._feed_forward_shapes()
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in linear.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        if self.family != "dino":
            shapes |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        if self.family == "dinov3":
            shapes["attn.qkv.bias_mask"] = (3 * width,)
        return shapes

    def _feed_forward_shapes(self) -> dict[str, tuple[int, int]]:
        width, hidden = self.width, 4 * self.width
        if not self.swiglu:
            return {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        if self.family == "dinov3":
            return {
                "mlp.w1": (hidden, width), "mlp.w2": (hidden, width), "mlp.w3": (width, hidden),
            }  # fmt: skip
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        return {"mlp.w12": (2 * hidden, width), "mlp.w3": (width, hidden)}


def _dinov2(width: int, depth: int, heads: int, **options: Any) -> ViTArchitecture:
    return ViTArchitecture("dinov2", 518, 14, width, depth, heads, **options)


def _dinov3(width: int, depth: int, heads: int, swiglu: bool = False) -> ViTArchitecture:
    return ViTArchitecture("dinov3", 224, 16, width, depth, heads, 4, swiglu, norm_eps=1e-5)


def _timm(patch_size: int, width: int, depth: int = 12) -> ViTArchitecture:
    return ViTArchitecture("dino", 224, patch_size, width, depth, width // 64)


# The weights of these names were trained on colours from -1 to 1 (Steiner et al. 2021, AugReg).
TIMM_ARCHITECTURES = {
    "vit_tiny_patch16_224": _timm(16, 192),
    "vit_small_patch32_224": _timm(32, 384),
    "vit_small_patch16_224": _timm(16, 384),
    "vit_base_patch32_224": _timm(32, 768),
    "vit_base_patch16_224": _timm(16, 768),
    "vit_base_patch8_224": _timm(8, 768),
    "vit_large_patch16_224": _timm(16, 1024, 24),
}
ARCHITECTURES = TIMM_ARCHITECTURES | {
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
    "dinov3_vits16": _dinov3(384, 12, 6),
    "dinov3_vits16plus": _dinov3(384, 12, 6, swiglu=True),
    "dinov3_vitb16": _dinov3(768, 12, 12),
    "dinov3_vitl16": _dinov3(1024, 24, 16),
    "dinov3_vith16plus": _dinov3(1280, 32, 20, swiglu=True),
}
