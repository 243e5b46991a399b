"""`lidarssl convert` of image encoders as a user types it, and plain transformers as the reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from commands import Command, Outcome
from lidarssl import checkpoints
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.checkpoints import Architecture, Card
from lidarssl.checkpoints.hub import PAGE_FILE
from lidarssl.checkpoints.minkunet_names import Naming, from_ours
from lidarssl.checkpoints.model_card import model_card
from lidarssl.experiments.image_weights import load_encoder
from lidarssl.images.vit import ViT, ViTArchitecture
from lidarssl.images.vit_keys import to_transformers

SHAPE = {"family": "dino", "image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "heads": 4}
CLASS_PATH = "lidarssl.images.vit.ViT"
FAMILIES = {
    "dino": SHAPE,
    "dinov2": SHAPE | {"family": "dinov2"},
    "registers": SHAPE | {"family": "dinov2", "registers": 3},
    "gated": SHAPE | {"family": "dinov2", "swiglu": True},
    "dinov3": SHAPE | {"family": "dinov3", "registers": 2},
}
# Reads a folder in a process that knows nothing of lidarssl.
READER = """
import sys, torch, transformers
sys.modules["lidarssl"] = None
folder, output, name = sys.argv[1:]
options = {"add_pooling_layer": False} if name == "ViTModel" else {}
model, report = getattr(transformers, name).from_pretrained(
    folder, output_loading_info=True, **options
)
assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
seen = torch.load(output)
more = {"interpolate_pos_encoding": True} if name == "ViTModel" else {}
with torch.no_grad():
    tokens = [model.eval()(pixel_values=one, **more).last_hidden_state for one in seen]
torch.save(tokens, output)
"""


def refuses(done: Outcome, *said: str) -> None:
    assert done.code == 2, done.out
    assert done.err.count("error: ") == 1
    assert "remedy: " in done.err
    for words in said:
        assert words in done.err
    assert "Traceback" not in done.err


def encoder_of(shape: dict[str, Any] = SHAPE, **options: Any) -> ViT:
    torch.manual_seed(0)
    encoder = ViT(ViTArchitecture(**shape), frozen=False, **options)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return encoder


def student(folder: Path, shape: dict[str, Any] = SHAPE, **options: Any) -> Path:
    """A run folder as a pretraining with CLCP leaves it."""
    card = Card(
        Architecture(CLASS_PATH, {"architecture": shape, "frozen": False, **options}),
        recipe="clcp", data=("synthetic/train",), step=7,
    )  # fmt: skip
    checkpoints.save(folder / "student.safetensors", encoder_of(shape, **options), card)
    return folder


def in_transformers(folder: Path, name: str, images: list[Tensor]) -> list[Tensor]:
    """Tokens by transformers alone, in another process."""
    exchange = folder.parent / "exchange.pt"
    torch.save(images, exchange)
    words = [sys.executable, "-c", READER, folder, exchange, name]
    subprocess.run([str(word) for word in words], check=True, cwd=folder.parent)
    return torch.load(exchange)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_run_is_described(command: Command, tmp_path: Path) -> None:
    done = command("convert", student(tmp_path))
    assert done.code == 0, done.err
    for said in (
        "from         lidarssl",
        "ViT, width 64, depth 2, 4 heads, patches of 8 pixels, images of 32",
        f"{sum(p.numel() for p in encoder_of().parameters()):,} in 30 tensors",
        "by the statistics of ImageNet",
        "prefix 'model.'",
        "left out     nothing",
        "method       clcp",
        "synthetic/train",
    ):
        assert said in done.out


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("dino", "ViTModel"),
        ("dinov2", "Dinov2Model"),
        ("registers", "Dinov2WithRegistersModel"),
        ("gated", "Dinov2Model"),
        ("dinov3", "DINOv3ViTModel"),
    ],
)
def test_plain_transformers_computes_the_same(
    family: str, name: str, command: Command, tmp_path: Path
) -> None:
    """Without lidarssl, at the trained size and, where both define it alike, at another one."""
    shape = FAMILIES[family]
    options = {} if family == "dinov3" else {"positions": "plain"}
    run = student(tmp_path / "run", shape, **options)
    done = command("convert", run, "--to", "transformers", "--output", tmp_path / "vit")
    assert done.code == 0, done.err
    assert f"transformers.{name}.from_pretrained(" in done.out
    encoder = encoder_of(shape, **options)
    sizes = [(32, 32)] + ([(48, 24)] if family in ("dino", "dinov2", "gated", "dinov3") else [])
    images = [torch.randn(2, 3, *size) for size in sizes]
    with torch.no_grad():
        expected = [encoder.tokens(one) for one in images]
    for actual, wanted in zip(
        in_transformers(tmp_path / "vit", name, images), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


def test_the_processor_of_transformers_normalises_alike(command: Command, tmp_path: Path) -> None:
    import transformers

    for way in ("imagenet", "half"):
        run = student(tmp_path / way, normalization=way)
        done = command("convert", run, "--to", "transformers", "--output", tmp_path / f"vit_{way}")
        assert done.code == 0, done.err
        settings = json.loads((tmp_path / f"vit_{way}" / "preprocessor_config.json").read_text())
        processor = transformers.ViTImageProcessor.from_pretrained(tmp_path / f"vit_{way}")
        image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
        seen = processor(image, return_tensors="pt")["pixel_values"][0]
        expected = encoder_of(normalization=way).normalised(image / 255)
        torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
        assert settings["size"] == {"height": 32, "width": 32}
        again = command("convert", tmp_path / f"vit_{way}")
        assert ("ImageNet" if way == "imagenet" else "-1 to 1") in again.out


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_gets_a_plain_state_dict(suffix: str, command: Command, tmp_path: Path) -> None:
    """The keys that CLCP's extraction leaves, which timm loads strictly without classes."""
    output = tmp_path / f"vit{suffix}"
    done = command("convert", student(tmp_path), "--to", "timm", "--output", output)
    assert done.code == 0, done.err
    state = load_file(output) if suffix == ".safetensors" else torch.load(output)
    keys = {"cls_token", "pos_embed"}
    for module in ("patch_embed.proj", "norm"):
        keys |= {f"{module}.weight", f"{module}.bias"}
    for block in range(2):
        for module in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            keys |= {f"blocks.{block}.{module}.weight", f"blocks.{block}.{module}.bias"}
    assert state.keys() == keys
    images = torch.rand(2, 3, 32, 32)
    again = ViT(ViTArchitecture(**SHAPE), output)
    assert torch.equal(again(images), encoder_of()(images))


def test_from_clcps_checkpoint_to_every_format(command: Command, tmp_path: Path) -> None:
    """It holds the image encoder, its projection, a lidar encoder and a temperature."""
    state = {
        key: torch.randn(size)
        for key, size in ViTArchitecture(**SHAPE | {"heads": 1}).shapes().items()
    }
    content = {f"image_encoder.model.{key}": value for key, value in state.items()}
    lidar = from_ours(
        MinkUNet(
            stem_channels=8, encoder_channels=(8,) * 4, decoder_channels=(8,) * 4, blocks=(1,) * 8
        ).state_dict(),
        Naming.TORCHSPARSE,
    )
    content |= {f"point_cloud_encoder.{key}": value for key, value in lidar.items()}
    content |= {
        "image_encoder.projection.weight": torch.ones(64, 64),
        "temperature": torch.ones(()),
    }
    path = tmp_path / "clcp.ckpt"
    torch.save({"state_dict": content, "epoch": 19, "optimizer_states": []}, path)
    done = command("convert", path)
    assert done.code == 0, done.err
    assert "the trainer of CLCP" in done.out
    assert "width 64, depth 2, 1 head," in done.out
    assert "entry 'state_dict', prefix 'image_encoder.model.'" in done.out
    assert "ImageNet" in done.out
    for left_out in ("image_encoder (1 tensor)", "point_cloud_encoder (", "temperature (1 tensor)"):
        assert left_out in done.out

    assert command("convert", path, "--to", "timm", "--output", tmp_path / "t.pth").code == 0
    assert same(torch.load(tmp_path / "t.pth"), state)
    assert command("convert", path, "--to", "transformers", "--output", tmp_path / "t").code == 0
    assert same(load_file(tmp_path / "t" / "model.safetensors"), to_transformers(state, "dino"))
    own = command(
        "convert", path, "--to", "lidarssl", "--output", tmp_path / "own", "--licence", "mit"
    )
    assert own.code == 0, own.err
    card = checkpoints.load(tmp_path / "own").card
    assert card.licence == "mit"
    assert card.architecture.init_args["normalization"] == "imagenet"
    encoder = ViT(ViTArchitecture(**SHAPE | {"heads": 1}))
    load_encoder(encoder, tmp_path / "own", card.architecture)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(encoder(images), ViT(encoder.architecture, path)(images))

    # The lidar encoder is there as well: by a format of its own, or by its prefix.
    minkunet = command("convert", path, "--to", "torchsparse", "--output", tmp_path / "m.ckpt")
    assert minkunet.code == 0, minkunet.err
    assert same(torch.load(tmp_path / "m.ckpt"), dict(lidar))
    chosen = command("convert", path, "--prefix", "point_cloud_encoder.")
    assert "MinkUNet" in chosen.out
    refuses(command("convert", path, "--prefix", "encoder."), "--prefix", "image_encoder.model.")


def test_the_encoder_of_a_segmentation(command: Command, tmp_path: Path) -> None:
    task = nn.Module()
    task.encoder, task.head = encoder_of(), nn.Linear(64, 19)
    card = Card(Architecture(CLASS_PATH, {"architecture": SHAPE}), recipe="clcp")
    checkpoints.save(tmp_path / "task.safetensors", task, card)
    done = command(
        "convert", tmp_path / "task.safetensors", "--to", "timm", "--output", tmp_path / "t.pth"
    )
    assert done.code == 0, done.err
    assert "left out     head (2 tensors)" in done.out
    images = torch.rand(1, 3, 40, 32)
    assert torch.equal(
        ViT(ViTArchitecture(**SHAPE), tmp_path / "t.pth")(images), task.encoder(images)
    )


def test_heads_come_from_the_settings_beside_weights_or_from_an_option(
    command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "vit"
    assert (
        command("convert", student(tmp_path), "--to", "transformers", "--output", folder).code == 0
    )
    assert "4 heads" in command("convert", folder).out
    refuses(command("convert", folder, "--heads", 2), "4 attention heads", "--heads")
    narrow = ViTArchitecture("dino", 32, 8, width=24, depth=1, heads=3)
    state = {key: torch.randn(size) for key, size in narrow.shapes().items()}
    save_file(state, tmp_path / "vit.safetensors")
    refuses(command("convert", tmp_path / "vit.safetensors"), "attention heads", "--heads")
    assert "3 heads" in command("convert", tmp_path / "vit.safetensors", "--heads", 3).out


def test_a_card_asks_how_images_were_normalised(command: Command, tmp_path: Path) -> None:
    run = student(tmp_path / "run")
    path = tmp_path / "timm.pth"
    assert command("convert", run, "--to", "timm", "--output", path).code == 0
    words = ["convert", path, "--to", "lidarssl", "--output", tmp_path / "own", "--heads", 4]
    refuses(command(*words), "--normalization", "half")
    refuses(command(*words, "--normalisation", "half"), "normalization")
    refuses(command(*words, "--normalization", "none"), "normalization")
    refuses(
        command(*words, "--normalization", "half", "--architecture", "vit_tiny_patch16_224"),
        "width 64, not 192", "--architecture",
    )  # fmt: skip
    done = command(*words, "--normalization", "half", "--data", "imagenet/train")
    assert done.code == 0, done.err
    assert "-1 to 1" in done.out
    card = checkpoints.load(tmp_path / "own").card
    assert card.data == ("imagenet/train",)
    assert dict(card.architecture.init_args)["architecture"] == SHAPE | {
        "registers": 0, "swiglu": False, "norm_eps": 1e-6,
    }  # fmt: skip
    refuses(command(*words, "--normalization", "half"), "exists", "--overwrite")
    assert command(*words, "--normalization", "half", "--overwrite").code == 0


def test_a_card_can_follow_a_recipe(command: Command, tmp_path: Path) -> None:
    shape = {**SHAPE, "image_size": 128, "width": 96, "depth": 4, "heads": 3}
    state = {key: torch.randn(size) for key, size in ViTArchitecture(**shape).shapes().items()}
    torch.save(state, tmp_path / "vit.pth")
    words = ["convert", tmp_path / "vit.pth", "--heads", 3, "--to", "lidarssl"]
    done = command(*words, "--output", tmp_path / "own", "--like", "clcp_vit_synthetic")
    assert done.code == 0, done.err
    assert checkpoints.load(tmp_path / "own").card.architecture.init_args["frozen"] is False
    other = command(*words, "--output", tmp_path / "b", "--like", "slidr_minkunet_synthetic")
    refuses(other, "no vision transformer", "--like")


@pytest.mark.parametrize("target", ["torchsparse", "minkowski", "openpcdet", "waffleiron"])
def test_formats_of_lidar_networks_are_refused(
    target: str, command: Command, tmp_path: Path
) -> None:
    done = command("convert", student(tmp_path), "--to", target, "--output", tmp_path / "x.pth")
    refuses(done, "no vision transformer", "--to", "--to lidarssl, timm, transformers")


@pytest.mark.parametrize("target", ["timm", "transformers"])
def test_a_lidar_network_is_refused(target: str, command: Command, tmp_path: Path) -> None:
    network = MinkUNet(stem_channels=8, encoder_channels=(8,) * 4, decoder_channels=(8,) * 4,
        blocks=(1,) * 8)  # fmt: skip
    torch.save(network.state_dict(), tmp_path / "minkunet.pt")
    words = ["--to", target, "--output", tmp_path / "vit.safetensors"]
    done = command("convert", tmp_path / "minkunet.pt", *words)
    refuses(done, f"the networks that '{target}' files are for have no MinkUNet", "torchsparse")


def test_heads_of_a_lidar_network_are_an_argument_of_its_backbone(
    command: Command, tmp_path: Path
) -> None:
    network = MinkUNet(
        stem_channels=8, encoder_channels=(8,) * 4, decoder_channels=(8,) * 4, blocks=(1,) * 8
    )
    torch.save(network.state_dict(), tmp_path / "minkunet.pt")
    words = ["convert", tmp_path / "minkunet.pt", "--heads", 2]
    refuses(command(*words), "--heads describes a file to write", "--to")
    done = command(*words, "--to", "lidarssl", "--output", tmp_path / "own", "--voxel_size", 0.1)
    refuses(done, "heads")


def test_what_no_other_library_has_is_refused(command: Command, tmp_path: Path) -> None:
    raw = student(tmp_path / "raw", final_norm=False)
    for target, output in (("timm", "x.pth"), ("transformers", "x")):
        done = command("convert", raw, "--to", target, "--output", tmp_path / output)
        refuses(done, "without its final norm", "--to lidarssl")
    assert command("convert", raw, "--to", "lidarssl", "--output", tmp_path / "own").code == 0
    dinov3 = student(tmp_path / "v3", FAMILIES["dinov3"])
    done = command("convert", dinov3, "--to", "timm", "--output", tmp_path / "x.pth")
    refuses(done, "DINOv3", "--to lidarssl, transformers")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "timm", "--output", "folder"], ["'timm' is written as a file", "--output"]),
        (["--to", "transformers", "--output", "x.pth"], ["as a folder", "--output"]),
        (["--to", "lidarssl", "--output", "x.pth"], ["as safetensors", "--output"]),
        (["--to", "timm", "--output", "x.pth", "--licence", "mit"], ["--licence"]),
        (["--to", "timm", "--output", "x.pth", "--like", "clcp_vit_synthetic"], ["--like"]),
        (["--to", "timm", "--output", "x.pth", "--frozen", "true"], ["--frozen"]),
        (["--to", "timm", "--output", "x.pth", "--output-layout", "RSCK"], ["--output-layout"]),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    words: list[str], said: list[str], command: Command, tmp_path: Path
) -> None:
    run = student(tmp_path / "run")
    place = words.index("--output") + 1
    words = [*words[:place], str(tmp_path / words[place]), *words[place + 1 :]]
    refuses(command("convert", run, *words), *said)
    assert not (tmp_path / "x.pth").exists()


def test_files_stay_unless_they_may_be_replaced(command: Command, tmp_path: Path) -> None:
    run, folder = student(tmp_path / "run"), tmp_path / "vit"
    words = ["convert", run, "--to", "transformers", "--output", folder]
    assert command(*words).code == 0
    (folder / "notes.txt").write_text("mine")
    refuses(command(*words), "exists", "--overwrite")
    assert command(*words, "--overwrite").code == 0
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "model.safetensors", "notes.txt", "preprocessor_config.json",
    ]  # fmt: skip


def test_damaged_files_are_errors(command: Command, tmp_path: Path) -> None:
    run = student(tmp_path / "run")
    folder = tmp_path / "vit"
    assert command("convert", run, "--to", "transformers", "--output", folder).code == 0
    (folder / "config.json").write_text("{")
    refuses(command("convert", folder), "config.json", "cannot be read")
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    refuses(command("convert", folder), "model.safetensors")
    state = {key: torch.ones(size) for key, size in ViTArchitecture(**SHAPE).shapes().items()}
    state["blocks.1.mlp.fc2.weight"] = torch.ones(64, 255)
    torch.save(state, tmp_path / "t.pth")
    refuses(command("convert", tmp_path / "t.pth"), "blocks.1.mlp.fc2.weight", "(64, 255)")


def test_the_page_of_a_hub_speaks_of_an_image_encoder(tmp_path: Path) -> None:
    checkpoint = checkpoints.load(student(tmp_path) / "student.safetensors")
    page = model_card(checkpoint.card, checkpoint.state, "owner/clcp-vit")
    assert PAGE_FILE == "README.md"
    assert "Weights of an image encoder: " in page
    assert "lidarssl convert weights --to transformers --output vit" in page
    assert "The encoder of RECIPE must have these arguments" in page
    assert "backbone" not in page
    assert "probe RECIPE" not in page
