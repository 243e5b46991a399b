"""Tokens of vision transformers: DINO as SLidR uses it, DINOv2 as ScaLR does."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from lidarssl.images.vit import ViT, ViTArchitecture, resample_positions
from parity.case import Case

_FAMILIES = {
    "dino/vision_transformer.py": ("dino", {"tokens"}),
    "models/dinov2_vision_transformer.py": ("dinov2", {"tokens_pre_norm", "tokens_norm"}),
}


def recognises(case: Case) -> bool:
    return any(
        source in case.reference and outputs <= set(case.arrays)
        for source, (_, outputs) in _FAMILIES.items()
    )


def check(case: Case) -> None:
    family = next(name for source, (name, _) in _FAMILIES.items() if source in case.reference)
    args = case.args
    shape = ViTArchitecture(
        "dino" if family == "dino" else "dinov2",
        image_size=args["img_size"],
        patch_size=args["patch_size"],
        width=args["embed_dim"],
        depth=args["depth"],
        heads=args["num_heads"],
    )
    assert {key: tuple(size) for key, size, _ in case.manifest["state_dict"]} == shape.shapes()
    if family == "dino":
        _check_dino(case, shape)
    else:
        _check_dinov2(case, shape)


def _encoder(case: Case, shape: ViTArchitecture, **options: Any) -> ViT:
    weights = {key: torch.from_numpy(value) for key, value in case.weights().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vit.safetensors"
        save_file(weights, path)
        return ViT(shape, path, **options)


def _check_dino(case: Case, shape: ViTArchitecture) -> None:
    image, patch = torch.from_numpy(case.arrays["image"]), shape.patch_size
    height, width = (side // patch * patch for side in image.shape[-2:])
    with torch.no_grad():
        # The reference ignores pixels beyond the last whole patch.
        tokens = _encoder(case, shape).tokens(image[..., :height, :width])
    atol = float(case.manifest["tolerance"]["out"].removeprefix("atol "))
    np.testing.assert_allclose(tokens.numpy(), case.arrays["tokens"], rtol=0, atol=atol)


def _check_dinov2(case: Case, shape: ViTArchitecture) -> None:
    image = torch.from_numpy(case.arrays["image"])
    rows, columns = (side // shape.patch_size for side in image.shape[-2:])
    positions = torch.from_numpy(case.weights()["pos_embed"])
    if "pos_embed_interpolated" in case.arrays:
        resampled = resample_positions(positions, rows, columns)
        _assert_close(case, resampled, "pos_embed_interpolated")
    for final_norm, name in ((False, "tokens_pre_norm"), (True, "tokens_norm")):
        encoder = _encoder(case, shape, final_norm=final_norm)
        with torch.no_grad():
            _assert_close(case, encoder.tokens((image - encoder.mean) / encoder.std), name)
    encoder = _encoder(case, shape, final_norm=case.args["feature"] != "x_pre_norm")
    enlarged = F.interpolate(
        encoder(image), scale_factor=shape.patch_size, mode="bilinear", align_corners=True
    )
    step = int(re.findall(r"every (\d+)", case.manifest["conventions"])[0])
    _assert_close(case, enlarged[..., ::step, ::step], "up_sample")


def _assert_close(case: Case, actual: torch.Tensor, name: str) -> None:
    """Within the manifest's tolerance, relative to the largest value of the reference."""
    rule = case.manifest["tolerance"]["out"].removeprefix("atol ")
    expected = case.arrays[name]
    atol = float(rule.split("*")[0]) * float(np.abs(expected).max())
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=atol, err_msg=name)
