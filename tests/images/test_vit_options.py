"""The vector of an image, timm's architectures, and the options of a vision transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from images.test_vit import NO_NORM, SHAPES, random_state, reference, saved
from lidarssl.images.vit import ARCHITECTURES, ViT, ViTArchitecture, resample_positions
from lidarssl.images.vit_architectures import TIMM_ARCHITECTURES

TIMM = ViTArchitecture("dino", 32, 8, width=24, depth=2, heads=3)


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_the_vector_is_the_class_token_where_the_map_ends(
    name: str, final_norm: bool, tmp_path: Path
) -> None:
    shape = SHAPES[name]
    state = random_state(shape)
    encoder = ViT(shape, saved(state, tmp_path), final_norm=final_norm)
    images = torch.rand((2, 3, shape.image_size, shape.image_size))
    state = state if final_norm else state | NO_NORM
    expected = reference(state, (images - encoder.mean) / encoder.std, shape)[:, 0]
    actual = encoder.pooled(images)
    if not final_norm:  # the reference norms with weight 1 and bias 0
        actual = torch.nn.functional.layer_norm(actual, (24,), eps=shape.norm_eps)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-4)


def test_the_vector_trains_every_parameter_unless_frozen() -> None:
    images = torch.rand(2, 3, 32, 32)
    encoder = ViT(TIMM, frozen=False).train()
    encoder.pooled(images).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    frozen = ViT(TIMM).train()
    assert not frozen.pooled(images.requires_grad_()).requires_grad


def test_the_architectures_of_timm_have_their_numbers_of_parameters() -> None:
    """As ``timm.create_model(name, num_classes=0)`` counts them, timm 1.0.7."""
    published = {
        "vit_tiny_patch16_224": 5_524_416,
        "vit_small_patch32_224": 22_493_952,
        "vit_small_patch16_224": 21_665_664,
        "vit_base_patch32_224": 87_455_232,
        "vit_base_patch16_224": 85_798_656,
        "vit_base_patch8_224": 85_807_872,
        "vit_large_patch16_224": 303_301_632,
    }
    counted = {
        name: sum(torch.Size(size).numel() for size in shape.shapes().values())
        for name, shape in TIMM_ARCHITECTURES.items()
    }
    assert counted == published
    encoder = ViT("vit_tiny_patch16_224")
    assert sum(p.numel() for p in encoder.parameters()) == published["vit_tiny_patch16_224"]


def test_defaults_are_those_of_the_authors() -> None:
    half = torch.full((3, 1, 1), 0.5)
    timm, dino = ViT("vit_tiny_patch16_224"), ViT(TIMM)
    assert (timm.normalization, timm.positions) == ("half", "antialiased")
    assert torch.equal(timm.mean, half)
    assert torch.equal(timm.std, half)
    assert (dino.normalization, dino.positions) == ("imagenet", "offset")
    assert ViT(SHAPES["registers"]).positions == "antialiased"
    assert ViT(SHAPES["dinov3"]).positions is None
    asked = ViT("vit_tiny_patch16_224", normalization="imagenet", positions="plain")
    assert (asked.normalization, asked.positions) == ("imagenet", "plain")
    assert torch.equal(asked.mean, dino.mean)


def test_normalization_changes_what_the_network_sees(tmp_path: Path) -> None:
    path = saved(random_state(TIMM), tmp_path)
    images = torch.rand(1, 3, 32, 32)
    imagenet, half = ViT(TIMM, path), ViT(TIMM, path, normalization="half")
    same_seen = (images - half.mean) / half.std * imagenet.std + imagenet.mean
    torch.testing.assert_close(imagenet(same_seen), half(images), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(imagenet(images), half(images), atol=1e-2)


@pytest.mark.parametrize(("height", "width"), [(16, 56), (64, 24), (32, 32)])
def test_plain_positions_are_those_of_transformers(height: int, width: int, tmp_path: Path) -> None:
    encoder = ViT(TIMM, saved(random_state(TIMM), tmp_path), positions="plain")
    encoder.model.save_pretrained(tmp_path / "folder")
    plain = transformers.ViTModel.from_pretrained(tmp_path / "folder", add_pooling_layer=False)
    images = torch.rand(2, 3, height, width)
    with torch.no_grad():
        expected = plain(pixel_values=images, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(encoder.tokens(images), expected, rtol=1e-5, atol=1e-5)
    offset = ViT(TIMM, tmp_path / "vit.pth", positions="offset").tokens(images)
    assert torch.allclose(offset, expected, atol=1e-3) == (height == width)


def test_the_three_ways_differ_but_agree_at_the_trained_size() -> None:
    positions = torch.randn(1, 17, 5)
    ways: list[dict[str, Any]] = [{}, {"offset": 0.0}, {"offset": 0.0, "antialias": True}]
    for rows, columns in ((4, 4), (2, 3), (7, 9)):
        first, second, third = (resample_positions(positions, rows, columns, **w) for w in ways)
        alike = [torch.allclose(one, first, atol=1e-3) for one in (second, third)]
        assert alike == [(rows, columns) == (4, 4)] * 2


def test_checkpointing_changes_no_gradient() -> None:
    def gradients(checkpointing: bool) -> tuple[int, list[torch.Tensor]]:
        torch.manual_seed(0)
        encoder = ViT(TIMM, frozen=False, checkpointing=checkpointing).train()
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        for module in encoder.modules():
            if type(module).__name__.endswith("MLP"):
                module.register_forward_pre_hook(count)
        encoder.pooled(images).square().sum().backward()
        return calls, [
            parameter.grad for parameter in encoder.parameters() if parameter.grad is not None
        ]

    images = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    (once, plain), (twice, recomputed) = gradients(False), gradients(True)
    assert (once, twice) == (2, 4)
    assert len(plain) == len(recomputed) > 0
    for left, right in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(left, right)


def test_random_weights_are_fit_to_be_trained() -> None:
    """Truncated normal of 0.02, positions and class token included; norms 1, biases 0."""
    torch.manual_seed(0)
    encoder = ViT("vit_tiny_patch16_224", frozen=False)
    for name, value in encoder.named_parameters():
        if name.endswith(".bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert torch.equal(value, torch.ones_like(value)), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.15), name
            assert value.mean().item() == pytest.approx(0.0, abs=0.005), name
    torch.manual_seed(0)
    twin = ViT("vit_tiny_patch16_224", frozen=False)
    images = torch.rand(2, 3, 224, 224)
    assert torch.equal(twin.pooled(images), encoder.pooled(images))
    features = encoder(images)
    assert 0.5 < features.std().item() < 2


def test_names_do_not_clash() -> None:
    assert set(TIMM_ARCHITECTURES) < set(ARCHITECTURES)
    assert ViT("vit_small_patch16_224").architecture == ViT("dino_vits16").architecture
