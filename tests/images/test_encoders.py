"""What holds for every image encoder of the library: one added later joins by itself."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lidarssl.images
from lidarssl.images.base import ImageEncoder
from lidarssl.images.decoders import UpsampledHead
from lidarssl.images.resnet import ResNet
from lidarssl.images.stored import StoredTeacher
from lidarssl.images.unet import SmallUNet
from lidarssl.images.vit import ViT, ViTArchitecture

TINY_DINO = ViTArchitecture("dino", 32, 8, width=12, depth=2, heads=3)
TINY_REGISTERS = ViTArchitecture("dinov2", 28, 14, width=16, depth=1, heads=2, registers=3)
TINY_ROTARY = ViTArchitecture("dinov3", 32, 16, width=16, depth=1, heads=2, registers=2)

# Small arguments of every encoder, and the variants worth running.
SMALL: dict[type[ImageEncoder], list[dict[str, Any]]] = {
    ResNet: [{"depth": 18}, {"depth": 50, "dilated": True}],
    ViT: [
        {"architecture": TINY_DINO},
        {"architecture": TINY_REGISTERS, "final_norm": False},
        {"architecture": TINY_ROTARY, "final_norm": True},
    ],
    SmallUNet: [{}, {"out_channels": 8, "num_classes": 3}],
}
VARIANTS = [(kind, arguments) for kind, many in SMALL.items() for arguments in many]


def concrete_encoders() -> set[type[ImageEncoder]]:
    for module in pkgutil.iter_modules(lidarssl.images.__path__):
        importlib.import_module(f"lidarssl.images.{module.name}")

    def leaves(kind: type[ImageEncoder]) -> set[type[ImageEncoder]]:
        below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
        return set(below) if kind.__subclasses__() else {kind}

    return {kind for kind in leaves(ImageEncoder) if kind.__module__.startswith("lidarssl.images")}


@pytest.fixture(params=VARIANTS, ids=lambda value: f"{value[0].__name__}-{len(value[1])}")
def build(request: pytest.FixtureRequest) -> Callable[..., ImageEncoder]:
    kind, arguments = request.param

    def make(frozen: bool = True) -> ImageEncoder:
        torch.manual_seed(0)
        return kind(**arguments, frozen=frozen)

    return make


def images(height: int = 40, width: int = 72, count: int = 2) -> torch.Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(1))


def test_every_encoder_is_under_contract() -> None:
    # A stored teacher encodes nothing: it promises the shape alone, see test_stored.
    assert concrete_encoders() - {StoredTeacher} == set(SMALL)


@pytest.mark.parametrize(("height", "width"), [(56, 112), (33, 47)])
def test_shape_follows_the_stride_rounded_up(
    build: Callable[..., ImageEncoder], height: int, width: int
) -> None:
    encoder = build()
    rows, columns = -(-height // encoder.stride), -(-width // encoder.stride)
    features = encoder(images(height, width))
    assert features.shape == (2, encoder.out_channels, rows, columns)
    assert torch.isfinite(features).all()


def test_frozen_stays_frozen_when_a_parent_trains(build: Callable[..., ImageEncoder]) -> None:
    encoder = build()
    parent = nn.ModuleDict({"teacher": encoder}).train()
    assert parent.training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    assert not encoder(images().requires_grad_()).requires_grad
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_gradient_reaches_the_head_and_not_the_frozen_encoder(
    build: Callable[..., ImageEncoder],
) -> None:
    encoder = build()
    head = UpsampledHead(encoder.out_channels, 4, encoder.stride)
    head(encoder(images())).square().sum().backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_not_frozen_trains_every_parameter_of_the_features(
    build: Callable[..., ImageEncoder],
) -> None:
    encoder = build(frozen=False).train()
    assert all(module.training for module in encoder.modules())
    features = encoder(images())
    features.backward(torch.randn_like(features))
    without = [
        name
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None and not name.startswith("classifier.")
    ]
    assert without == []


def test_same_images_same_features(build: Callable[..., ImageEncoder]) -> None:
    encoder = build()
    batch = images()
    assert torch.equal(encoder(batch), encoder(batch))
    torch.testing.assert_close(encoder(batch)[1:], encoder(batch[1:]), rtol=1e-4, atol=1e-4)


def test_one_vector_for_each_image(build: Callable[..., ImageEncoder]) -> None:
    encoder = build(frozen=False).train()
    batch = images()
    vectors = encoder.pooled(batch)
    assert vectors.shape == (2, encoder.out_channels)
    assert vectors.requires_grad
    frozen = build()
    assert not frozen.pooled(images().requires_grad_()).requires_grad
    torch.testing.assert_close(
        frozen.pooled(batch)[1:], frozen.pooled(batch[1:]), rtol=1e-4, atol=1e-4
    )
    if not isinstance(encoder, ViT):
        torch.testing.assert_close(frozen.pooled(batch), frozen(batch).flatten(2).mean(-1))


def test_normalises_its_input_itself(build: Callable[..., ImageEncoder]) -> None:
    encoder = build()
    mean, std = encoder.mean.view(3, 1, 1), encoder.std.view(3, 1, 1)
    with torch.no_grad():
        by_hand = encoder.features((images() - mean) / std)
    assert torch.equal(encoder(images()), by_hand)
    assert not torch.allclose(encoder(images()), encoder.features(images()).detach())


def test_a_copy_is_independent(build: Callable[..., ImageEncoder]) -> None:
    encoder = build()
    expected = encoder(images())
    twin = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(encoder(images()), expected)
    assert not torch.allclose(twin(images()), expected)


def test_importing_an_encoder_does_not_import_transformers() -> None:
    code = (
        "import sys, lidarssl.images.resnet, lidarssl.images.vit, lidarssl.images.unet;"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
