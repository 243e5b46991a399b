"""Weights of a pretraining, of a task and of others start an image encoder, or say why not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lidarssl import checkpoints
from lidarssl.checkpoints import Architecture, Card
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.image_weights import load_encoder
from lidarssl.experiments.record import STUDENT_FILE, TASK_FILE
from lidarssl.images.resnet import ResNet
from lidarssl.images.unet import SmallUNet
from lidarssl.images.vit import ViT, ViTArchitecture
from lidarssl.images.vit_files import to_timm
from lidarssl.images.vit_keys import to_transformers

SHAPE = ViTArchitecture("dino", 32, 8, width=24, depth=2, heads=3)
CLASS_PATH = "lidarssl.images.vit.ViT"
IMAGES = torch.rand((2, 3, 32, 40), generator=torch.Generator().manual_seed(0))


def random_state(shape: ViTArchitecture = SHAPE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {key: torch.randn(s, generator=generator) / 4 for key, s in shape.shapes().items()}


def trained(**options: Any) -> ViT:
    encoder = ViT(SHAPE, frozen=False, **options)
    encoder.load_original(random_state(), "state")
    return encoder


def arguments(**others: Any) -> Architecture:
    return Architecture(CLASS_PATH, {"architecture": asdict(SHAPE), **others})


def student(folder: Path, **others: Any) -> Path:
    options = {key: value for key, value in others.items() if key in ("final_norm",)}
    card = Card(arguments(**others), recipe="clcp")
    checkpoints.save(folder / STUDENT_FILE, trained(**options), card)
    return folder


def test_a_run_of_a_pretraining_gives_its_student(tmp_path: Path) -> None:
    encoder = ViT(SHAPE, frozen=False)
    expected = trained()
    assert not torch.allclose(encoder(IMAGES), expected(IMAGES))
    run = student(tmp_path, frozen=False, weights="vit.pth", checkpointing=True)
    assert load_encoder(encoder, run, arguments()) == "clcp"
    assert torch.equal(encoder(IMAGES), expected(IMAGES))
    assert torch.equal(encoder.pooled(IMAGES), expected.pooled(IMAGES))
    again = ViT(SHAPE)
    assert load_encoder(again, run / STUDENT_FILE, arguments(frozen=True)) == "clcp"
    assert torch.equal(again(IMAGES), expected(IMAGES))
    assert again.frozen
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_without_the_final_norm_as_well(tmp_path: Path) -> None:
    run = student(tmp_path, final_norm=False)
    encoder = ViT(SHAPE, final_norm=False)
    load_encoder(encoder, run, arguments(final_norm=False))
    assert torch.equal(encoder(IMAGES), trained(final_norm=False)(IMAGES))
    with pytest.raises(ConfigError, match="final_norm is false in the checkpoint, true here"):
        load_encoder(ViT(SHAPE), run, arguments())


def test_a_segmentation_gives_its_encoder(tmp_path: Path) -> None:
    task = nn.Module()
    task.encoder, task.head = trained(), nn.Linear(24, 19)
    path = tmp_path / TASK_FILE
    checkpoints.save(path, task, Card(arguments(), recipe="clcp"))
    encoder = ViT(SHAPE)
    assert load_encoder(encoder, path, arguments()) == "clcp"
    assert torch.equal(encoder(IMAGES), trained()(IMAGES))
    with pytest.raises(DataError, match="no such checkpoint"):
        load_encoder(encoder, tmp_path, arguments())


@pytest.mark.parametrize("kind", ["timm", "clcp", "lip-loc", "mmsegmentation", "transformers"])
def test_files_of_others(kind: str, tmp_path: Path) -> None:
    state = random_state()
    layouts: dict[str, dict[str, Any]] = {
        "timm": to_timm(state) | {"head.weight": torch.ones(1000, 24)},
        "clcp": {
            "epoch": 19,
            "state_dict": {f"image_encoder.model.{key}": v for key, v in state.items()}
            | {
                "image_encoder.projection.weight": torch.ones(24, 24),
                "point_cloud_encoder.model.backbone.conv_input.0.net.0.kernel": torch.ones(27, 4),
                "temperature": torch.ones(()),
            },
        },
        "lip-loc": {f"model.{key}": v for key, v in state.items()} | {"fc.weight": torch.ones(9)},
        "mmsegmentation": {
            "meta": {"iter": 80000},
            "state_dict": {f"backbone.timm_model.{key}": v for key, v in state.items()}
            | {"decode_head.cls_emb": torch.ones(1, 19, 24)},
        },
        "transformers": to_transformers(state, "dino"),
    }
    torch.save(layouts[kind], tmp_path / f"{kind}.pth")
    encoder = ViT(SHAPE, frozen=False, normalization="half")
    wanted = arguments(normalization="half")
    assert load_encoder(encoder, tmp_path / f"{kind}.pth", wanted) == kind
    expected = ViT(SHAPE, normalization="half")
    expected.load_original(state, "state")
    assert torch.equal(encoder(IMAGES), expected(IMAGES))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("name", "value"), [("width", 48), ("depth", 3), ("patch_size", 16), ("image_size", 48)]
)
def test_another_architecture_is_named(name: str, value: int, own: bool, tmp_path: Path) -> None:
    if own:
        path = student(tmp_path)
    else:
        path = tmp_path / "timm.pth"
        torch.save(random_state(), path)
    other = ViTArchitecture(**{**asdict(SHAPE), name: value})
    encoder = ViT(other)
    before = encoder(IMAGES)
    wanted = Architecture(CLASS_PATH, {"architecture": asdict(other)})
    expected = f"{name} is {getattr(SHAPE, name)} in the checkpoint, {value} here"
    with pytest.raises(ConfigError, match=expected) as caught:
        load_encoder(encoder, path, wanted)
    assert "task.encoder" in str(caught.value)
    assert str(path) in str(caught.value)
    assert torch.equal(encoder(IMAGES), before)


def test_names_and_defaults_are_resolved_before_they_are_compared(tmp_path: Path) -> None:
    """`vit_tiny_patch16_224` without a normalisation means one, which its shape alone does not."""
    named = Architecture(CLASS_PATH, {"architecture": "vit_tiny_patch16_224"})
    checkpoints.save(tmp_path / STUDENT_FILE, ViT("vit_tiny_patch16_224"), Card(named))
    spelled = {
        "architecture": asdict(ViTArchitecture("dino", 224, 16, 192, 12, 3)),
        "normalization": "half",
        "positions": "plain",
    }
    encoder = ViT("vit_tiny_patch16_224")
    assert load_encoder(encoder, tmp_path, Architecture(CLASS_PATH, spelled)) == "student"
    other = Architecture(CLASS_PATH, spelled | {"normalization": "imagenet"})
    with pytest.raises(ConfigError, match='normalization is "half" in the checkpoint'):
        load_encoder(encoder, tmp_path, other)


def test_another_class_is_refused(tmp_path: Path) -> None:
    card = Card(Architecture("lidarssl.images.unet.SmallUNet", {}), recipe="clcp")
    checkpoints.save(tmp_path / STUDENT_FILE, SmallUNet(), card)
    with pytest.raises(DataError, match="no vision transformer"):
        load_encoder(ViT(SHAPE), tmp_path, arguments())
    encoder = SmallUNet(frozen=False)
    with torch.no_grad():
        encoder(IMAGES)
    wanted = Architecture("lidarssl.images.unet.SmallUNet", {"frozen": False})
    assert load_encoder(encoder, tmp_path, wanted) == "clcp"
    with pytest.raises(ConfigError, match="class_path is"):
        load_encoder(encoder, student(tmp_path / "vit"), wanted)


def test_an_encoder_of_another_kind_is_taken_out_of_its_task(tmp_path: Path) -> None:
    torch.manual_seed(3)
    task = nn.Module()
    task.encoder, task.head = SmallUNet(frozen=False), nn.Linear(4, 4)
    wanted = Architecture("lidarssl.images.unet.SmallUNet", {})
    checkpoints.save(tmp_path / TASK_FILE, task, Card(wanted, recipe="scratch"))
    encoder = SmallUNet()
    assert load_encoder(encoder, tmp_path / TASK_FILE, wanted) == "scratch"
    torch.testing.assert_close(encoder(IMAGES), task.encoder.eval()(IMAGES))


def test_what_is_no_image_encoder(tmp_path: Path) -> None:
    torch.save({"conv0p1s1.kernel": torch.ones(27, 1, 8)}, tmp_path / "minkunet.pt")
    with pytest.raises(DataError, match="no vision transformer"):
        load_encoder(ViT(SHAPE), tmp_path / "minkunet.pt", arguments())
    torch.save(random_state(), tmp_path / "vit.pth")
    with pytest.raises(ConfigError, match="ResNet"):
        load_encoder(ResNet(18), tmp_path / "vit.pth", Architecture("x", {}))
    state = random_state()
    del state["norm.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(DataError, match=r"norm\.bias"):
        load_encoder(ViT(SHAPE), tmp_path / "part.pth", arguments())


def test_a_folder_of_transformers_gives_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    trained().model.save_pretrained(folder)
    encoder = ViT(SHAPE, frozen=False)
    assert load_encoder(encoder, folder, arguments()) == "mine"
    assert torch.equal(encoder(IMAGES), trained()(IMAGES))
