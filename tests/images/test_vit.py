from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.vit import ARCHITECTURES, ViT, ViTArchitecture, resample_positions

SHAPES = {
    "dino": ViTArchitecture("dino", 32, 8, width=24, depth=2, heads=3),
    "dinov2": ViTArchitecture("dinov2", 28, 7, width=24, depth=2, heads=2),
    "registers": ViTArchitecture("dinov2", 28, 7, width=24, depth=1, heads=2, registers=4),
    "swiglu": ViTArchitecture("dinov2", 28, 7, width=24, depth=2, heads=4, swiglu=True),
}


def random_state(shape: ViTArchitecture) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(size, generator=generator) * (0.1 if len(size) > 1 else 0.5)
        for key, size in shape.shapes().items()
    }


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> ViTArchitecture:
    return SHAPES[request.param]


def reference(state: dict[str, Tensor], images: Tensor, shape: ViTArchitecture) -> Tensor:
    """The transformer on the original keys, for images of the trained size; all tokens."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def scaled(name: str, x: Tensor) -> Tensor:
        return x * state.get(f"{name}.gamma", torch.ones(()))

    patches = images.unfold(2, shape.patch_size, shape.patch_size)
    patches = patches.unfold(3, shape.patch_size, shape.patch_size)
    x = torch.einsum("ichwpq,ocpq->ihwo", patches, state["patch_embed.proj.weight"])
    x = (x + state["patch_embed.proj.bias"]).flatten(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    if shape.registers:
        extra = state["register_tokens"].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], extra, x[:, 1:]], 1)
    for index in range(shape.depth):
        at = f"blocks.{index}."
        qkv = linear(at + "attn.qkv", norm(at + "norm1", x)).unflatten(2, (3, shape.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        x = x + scaled(at + "ls1", linear(at + "attn.proj", mixed))
        y = norm(at + "norm2", x)
        if shape.swiglu:
            gate, value = linear(at + "mlp.w12", y).chunk(2, -1)
            y = linear(at + "mlp.w3", F.silu(gate) * value)
        else:
            y = linear(at + "mlp.fc2", F.gelu(linear(at + "mlp.fc1", y)))
        x = x + scaled(at + "ls2", y)
    return norm("norm", x)


def saved(state: dict[str, Any], folder: Path) -> Path:
    torch.save(state, folder / "vit.pth")
    return folder / "vit.pth"


def test_equals_the_original_network(shape: ViTArchitecture, tmp_path: Path) -> None:
    state = random_state(shape)
    encoder = ViT(shape, saved(state, tmp_path))
    images = torch.rand((2, 3, shape.image_size, shape.image_size))
    tokens = reference(state, (images - encoder.mean) / encoder.std, shape)
    patches = tokens[:, 1 + shape.registers :]
    side = shape.image_size // shape.patch_size
    expected = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)


def cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.75."""
    d, a = np.abs(distance), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def interpolation_matrix(cells: int, wanted: int) -> np.ndarray:
    """Bicubic weights, (wanted, cells), with the 0.1 that moves the sampling positions."""
    matrix = np.zeros((wanted, cells))
    for row in range(wanted):
        position = (row + 0.5) * cells / (wanted + 0.1) - 0.5
        for tap in range(int(np.floor(position)) - 1, int(np.floor(position)) + 3):
            matrix[row, np.clip(tap, 0, cells - 1)] += cubic(np.array(position - tap))
    return matrix


@pytest.mark.parametrize(("rows", "columns"), [(6, 10), (3, 9), (8, 4), (1, 1)])
def test_positions_are_sampled_with_the_shift_of_the_original(rows: int, columns: int) -> None:
    positions = torch.randn((1, 37, 5), dtype=torch.float32)
    grid = positions[0, 1:].double().numpy().reshape(6, 6, 5)
    expected = np.einsum(
        "rh,cw,hwk->rck", interpolation_matrix(6, rows), interpolation_matrix(6, columns), grid
    )
    actual = resample_positions(positions, rows, columns)
    assert torch.equal(actual[:, 0], positions[:, 0])
    np.testing.assert_allclose(
        actual[0, 1:].numpy(), expected.reshape(rows * columns, 5), atol=1e-5
    )


def test_positions_of_the_trained_grid_are_left_alone() -> None:
    positions = torch.randn(1, 17, 3)
    assert torch.equal(resample_positions(positions, 4, 4), positions)
    assert not torch.equal(resample_positions(positions, 2, 8), positions)


def test_other_sizes_use_the_resampling_of_their_family(
    shape: ViTArchitecture, tmp_path: Path
) -> None:
    state = random_state(shape)
    encoder = ViT(shape, saved(state, tmp_path))
    positions, side = state["pos_embed"], shape.image_size // shape.patch_size
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if shape.registers:
        resampled = F.interpolate(grid, size=(2, 7), mode="bicubic", antialias=True)
    else:
        rows, columns = interpolation_matrix(side, 2), interpolation_matrix(side, 7)
        resampled = torch.einsum(
            "rh,cw,ikhw->ikrc", torch.tensor(rows), torch.tensor(columns), grid.double()
        ).float()
    patches = resampled.flatten(2).transpose(1, 2)
    state["pos_embed"] = torch.cat([positions[:, :1], patches], dim=1)
    images = torch.rand((1, 3, 2 * shape.patch_size, 7 * shape.patch_size))
    tokens = reference(state, (images - encoder.mean) / encoder.std, shape)
    expected = tokens[:, 1 + shape.registers :].unflatten(1, (2, 7)).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)


def test_ragged_images_are_extended_by_their_mean_colour(shape: ViTArchitecture) -> None:
    encoder = ViT(shape)
    patch = shape.patch_size
    images = torch.rand((1, 3, 3 * patch - 2, 2 * patch + 1))
    extended = encoder.mean.expand(1, 3, 3 * patch, 3 * patch).clone()
    extended[..., : 3 * patch - 2, : 2 * patch + 1] = images
    torch.testing.assert_close(encoder(images), encoder(extended), rtol=1e-5, atol=1e-5)


def test_before_the_final_norm(shape: ViTArchitecture, tmp_path: Path) -> None:
    state = random_state(shape)
    path = saved(state, tmp_path)
    before, after = ViT(shape, path, final_norm=False), ViT(shape, path)
    images = torch.rand((1, 3, 28, 28))
    raw = before(images).permute(0, 2, 3, 1)
    normed = F.layer_norm(raw, raw.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-6)
    torch.testing.assert_close(normed.permute(0, 3, 1, 2), after(images), rtol=1e-4, atol=1e-4)


def test_weights_load_from_every_layout(shape: ViTArchitecture, tmp_path: Path) -> None:
    state = random_state(shape)
    images = torch.rand((1, 3, 30, 40))
    original = ViT(shape, saved(state, tmp_path))
    head = {"head.mlp.0.weight": torch.zeros(2, 2)}
    prefixed = {f"module.backbone.{key}": value for key, value in state.items()} | head
    full = ViT(shape, saved({"teacher": prefixed, "student": {}, "epoch": 99}, tmp_path))
    assert torch.equal(full(images), original(images))

    folder = tmp_path / "folder"
    model_with_mask_token = ViT(shape, saved(state, tmp_path)).model
    if shape.family == "dinov2":
        mask = torch.nn.Parameter(torch.zeros(1, shape.width))
        model_with_mask_token.embeddings.mask_token = mask
    model_with_mask_token.save_pretrained(folder)
    for weights in (folder, folder / "model.safetensors"):
        assert torch.equal(ViT(shape, weights)(images), original(images))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_name_their_tensors(change: str, tmp_path: Path) -> None:
    shape = SHAPES["dinov2"]
    state = random_state(shape)
    if change == "missing":
        name = "blocks.1.ls2.gamma"
        del state[name]
    elif change == "unknown":
        name = "register_tokens"
        state[name] = torch.zeros(1, 4, 24)
    else:
        name = "pos_embed"
        state[name] = torch.zeros(1, 26, 24)
    with pytest.raises(DataError, match=name) as caught:
        ViT(shape, saved(state, tmp_path))
    assert "vit.pth" in str(caught.value)


def test_weights_in_half_precision_become_float32(tmp_path: Path) -> None:
    shape = SHAPES["dino"]
    state = {key: value.half() for key, value in random_state(shape).items()}
    encoder = ViT(shape, saved(state, tmp_path))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_published_architectures_have_the_published_numbers_of_parameters() -> None:
    millions = {
        name: sum(np.prod(size) for size in shape.shapes().values()) / 1e6
        for name, shape in ARCHITECTURES.items()
    }
    published = {
        "dino_vits16": 21.7,
        "dino_vitb8": 85.8,
        "dinov2_vits14": 22.1,
        "dinov2_vitb14": 86.6,
        "dinov2_vitl14": 304.4,
        "dinov2_vitg14": 1136.5,
    }
    for name, count in published.items():
        assert millions[name] == pytest.approx(count, rel=0.003), name


def test_small_published_networks_are_built(tmp_path: Path) -> None:
    for name, width in (("dino_vits16", 384), ("dinov2_vits14_reg", 384)):
        encoder = ViT(name)
        assert encoder(torch.rand(1, 3, 32, 48)).shape[1] == encoder.out_channels == width


@pytest.mark.parametrize(
    "arguments",
    [
        {"family": "dino", "registers": 4},
        {"family": "dino", "swiglu": True},
        {"family": "dino", "image_size": 33},
        {"family": "dino", "heads": 5},
    ],
)
def test_impossible_architectures_are_refused(arguments: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 3}
    with pytest.raises(ConfigError):
        ViTArchitecture(**{**usual, **arguments})


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="dinov2_vitl14"):
        ViT("dino_vitl14")
