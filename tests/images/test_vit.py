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
    "dinov3": ViTArchitecture("dinov3", 28, 7, width=24, depth=2, heads=2, registers=4),
    "dinov3_gated": ViTArchitecture(
        "dinov3", 32, 8, width=24, depth=2, heads=3, registers=1, swiglu=True, norm_eps=1e-5
    ),
}
NO_NORM = {"norm.weight": torch.ones(24), "norm.bias": torch.zeros(24)}
WITH_POSITIONS = [name for name, shape in SHAPES.items() if shape.family != "dinov3"]


def random_state(shape: ViTArchitecture) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(size, generator=generator) * (0.1 if len(size) > 1 else 0.5)
        for key, size in shape.shapes().items()
    }


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> ViTArchitecture:
    return SHAPES[request.param]


def rotated(tokens: Tensor, shape: ViTArchitecture, rows: int, columns: int) -> Tensor:
    """Rotary positions of DINOv3 on the patches, the last tokens of (I, heads, T, D).

    Channel d and channel d + D / 2 are one complex number. The first half of these numbers turns
    with the row and the second with the column, which both count from -1 to 1 over the image;
    number k of a half turns once in 100 ** (4 k / D).
    """
    half = tokens.shape[-1] // 2
    y = (2 * torch.arange(rows, dtype=torch.float64) + 1) / rows - 1
    x = (2 * torch.arange(columns, dtype=torch.float64) + 1) / columns - 1
    period = 100.0 ** (torch.arange(half // 2, dtype=torch.float64) / (half // 2))
    turns = torch.empty((rows, columns, half), dtype=torch.float64)
    turns[..., : half // 2] = y[:, None, None] / period
    turns[..., half // 2 :] = x[None, :, None] / period
    first = 1 + shape.registers
    numbers = torch.complex(tokens[..., first:, :half], tokens[..., first:, half:])
    numbers = numbers * torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).flatten(0, 1)
    patches = torch.cat([numbers.real, numbers.imag], dim=-1)
    return torch.cat([tokens[..., :first, :], patches], dim=-2)


def reference(state: dict[str, Tensor], images: Tensor, shape: ViTArchitecture) -> Tensor:
    """The transformer on the original keys in float64; all tokens.

    Without rotary positions, for images of the size that ``pos_embed`` is for.
    """
    state, images = {key: value.double() for key, value in state.items()}, images.double()
    eps, newest = shape.norm_eps, shape.family == "dinov3"

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def scaled(name: str, x: Tensor) -> Tensor:
        return x * state.get(f"{name}.gamma", torch.ones(()))

    patches = images.unfold(2, shape.patch_size, shape.patch_size)
    patches = patches.unfold(3, shape.patch_size, shape.patch_size)
    x = torch.einsum("ichwpq,ocpq->ihwo", patches, state["patch_embed.proj.weight"])
    rows, columns = x.shape[1:3]
    x = (x + state["patch_embed.proj.bias"]).flatten(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1)
    x = x if newest else x + state["pos_embed"]
    if shape.registers:
        extra = state["storage_tokens" if newest else "register_tokens"].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], extra, x[:, 1:]], 1)
    for index in range(shape.depth):
        at = f"blocks.{index}."
        joint = linear(at + "attn.qkv", norm(at + "norm1", x))
        if newest:
            unbiased = torch.zeros_like(state[at + "attn.qkv.bias"])
            unbiased[shape.width : 2 * shape.width] = 1
            joint = joint - unbiased * state[at + "attn.qkv.bias"]
        q, k, v = joint.unflatten(2, (3, shape.heads, -1)).permute(2, 0, 3, 1, 4)
        if newest:
            q, k = (rotated(tokens, shape, rows, columns) for tokens in (q, k))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        x = x + scaled(at + "ls1", linear(at + "attn.proj", mixed))
        y = norm(at + "norm2", x)
        if shape.swiglu and newest:
            gate, value = linear(at + "mlp.w1", y), linear(at + "mlp.w2", y)
            y = linear(at + "mlp.w3", F.silu(gate) * value)
        elif shape.swiglu:
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
    expected = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
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


@pytest.mark.parametrize("positions", [None, "offset", "antialiased"])
@pytest.mark.parametrize("name", WITH_POSITIONS)
def test_other_sizes_use_the_resampling_of_their_family_or_the_one_asked_for(
    name: str, positions: Any, tmp_path: Path
) -> None:
    shape = SHAPES[name]
    state = random_state(shape)
    encoder = ViT(shape, saved(state, tmp_path), positions=positions)
    antialiased = shape.registers > 0 if positions is None else positions == "antialiased"
    trained, side = state["pos_embed"], shape.image_size // shape.patch_size
    grid = trained[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if antialiased:
        resampled = F.interpolate(grid, size=(2, 7), mode="bicubic", antialias=True)
    else:
        rows, columns = interpolation_matrix(side, 2), interpolation_matrix(side, 7)
        resampled = torch.einsum(
            "rh,cw,ikhw->ikrc", torch.tensor(rows), torch.tensor(columns), grid.double()
        ).float()
    patches = resampled.flatten(2).transpose(1, 2)
    state["pos_embed"] = torch.cat([trained[:, :1], patches], dim=1)
    images = torch.rand((1, 3, 2 * shape.patch_size, 7 * shape.patch_size))
    tokens = reference(state, (images - encoder.mean) / encoder.std, shape)
    expected = tokens[:, 1 + shape.registers :].unflatten(1, (2, 7)).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(2, 7), (9, 1)])
@pytest.mark.parametrize("name", ["dinov3", "dinov3_gated"])
def test_rotary_positions_fit_every_size(
    name: str, rows: int, columns: int, tmp_path: Path
) -> None:
    shape = SHAPES[name]
    state = random_state(shape)
    encoder = ViT(shape, saved(state, tmp_path), final_norm=False)
    images = torch.rand((2, 3, rows * shape.patch_size, columns * shape.patch_size))
    tokens = reference(state | NO_NORM, (images - encoder.mean) / encoder.std, shape)
    normed = F.layer_norm(encoder(images).permute(0, 2, 3, 1), (24,), eps=shape.norm_eps)
    expected = tokens[:, 1 + shape.registers :].unflatten(1, (rows, columns)).float()
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="no position embeddings"):
        ViT(shape, positions="offset")


def test_a_trained_dinov3_draws_nothing() -> None:
    """As published, training rescales the rotary positions of every batch by chance."""
    encoder = ViT(SHAPES["dinov3"], frozen=False).train()
    images = torch.rand((1, 3, 28, 28))
    assert torch.equal(encoder(images), encoder(images))


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
    normed = F.layer_norm(
        raw, raw.shape[-1:], state["norm.weight"], state["norm.bias"], shape.norm_eps
    )
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
    if shape.family != "dino":
        size = (1, 1, shape.width) if shape.family == "dinov3" else (1, shape.width)
        mask = torch.nn.Parameter(torch.zeros(size))
        model_with_mask_token.embeddings.mask_token = mask
    model_with_mask_token.save_pretrained(folder)
    for weights in (folder, folder / "model.safetensors"):
        assert torch.equal(ViT(shape, weights)(images), original(images))


def test_what_dinov3_files_hold_beside_the_network_is_left_out(tmp_path: Path) -> None:
    shape = SHAPES["dinov3"]
    state = random_state(shape)
    expected = ViT(shape, saved(state, tmp_path))
    beside = {"rope_embed.periods": torch.ones(3), "local_cls_norm.weight": torch.ones(24)}
    images = torch.rand((1, 3, 28, 28))
    assert torch.equal(ViT(shape, saved(state | beside, tmp_path))(images), expected(images))


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
        "dinov3_vits16": 21.6,
        "dinov3_vits16plus": 28.7,
        "dinov3_vitb16": 85.7,
        "dinov3_vitl16": 303.1,
        "dinov3_vith16plus": 840.6,
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
        {"family": "dinov3", "heads": 4},
    ],
)
def test_impossible_architectures_are_refused(arguments: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 3}
    with pytest.raises(ConfigError):
        ViTArchitecture(**{**usual, **arguments})


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="dinov2_vitl14"):
        ViT("dino_vitl14")
