"""`lidarssl prepare image-features` as a user types it, rightly and wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from commands import Command, Outcome, Tiny
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.frame import Field
from lidarssl.images.stored import StoredTeacher
from lidarssl.images.unet import SmallUNet
from lidarssl.images.vit import ViT, ViTArchitecture
from lidarssl.transforms.image_features import StoredFeatures
from lidarssl.transforms.paired import MatchPixels, ResizeWhole

SHAPE = ViTArchitecture("dinov3", 16, 8, width=16, depth=1, heads=2, registers=4)
WORDS = (
    "{family: dinov3, image_size: 16, patch_size: 8, width: 16, depth: 1, heads: 2, registers: 4}"
)


def words(tiny: Tiny, output: Path, *more: object) -> list[object]:
    return [
        "prepare", "image-features", "synthetic", "--root", tiny.world, "--output", output,
        "--height", 24, "--width", 48, "--workers", 0, "--quiet", *more,
    ]  # fmt: skip


def unet(tiny: Tiny) -> list[object]:
    return [
        "--encoder.class_path", "SmallUNet", "--encoder.num_classes=14", "--weights", tiny.teacher,
    ]  # fmt: skip


def test_a_small_teacher(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    line = words(tiny, tmp_path, *unet(tiny))
    first = command(*line, "--shard", "0/2")
    assert first.code == 0, first.err
    assert "2 images encoded, 0 kept" in first.out
    assert "2 images encoded, 2 kept" in command(*line).out
    assert "0 images encoded, 4 kept" in command(*line).out
    assert "4 images encoded, 0 kept" in command(*line, "--overwrite").out
    dataset, rng = Synthetic(tiny.world), np.random.default_rng(0)
    frame = MatchPixels()(dataset.load(dataset.frames("train")[0], Field.IMAGES), rng)
    frame = ResizeWhole((24, 48), antialias=True)(frame, rng)
    stored = StoredFeatures(tmp_path)(frame, rng).cameras[1]
    teacher = SmallUNet(num_classes=14, weights=tiny.teacher)
    assert stored.image is not None
    assert stored.features is not None
    expected = teacher(stored.image[None])[0]
    torch.testing.assert_close(stored.features.float(), expected, rtol=2**-10, atol=1e-4)
    assert StoredTeacher(tmp_path).image_size == (24, 48)


def test_a_vision_transformer(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    ViT(SHAPE).model.save_pretrained(tmp_path / "vit")
    mask = {"embeddings.mask_token": torch.zeros(1, 1, 16)}
    weights = tmp_path / "vit" / "model.safetensors"
    from safetensors.torch import load_file

    save_file(load_file(weights) | mask, weights)
    more = ["--encoder.class_path=ViT", f"--encoder.architecture={WORDS}", "--weights", weights]
    folder = tmp_path / "features"
    done = command(*words(tiny, folder, *more, "--encoder.final_norm", "false"))
    assert done.code == 0, done.err
    assert (StoredTeacher(folder).out_channels, StoredTeacher(folder).stride) == (16, 8)
    # The same weights in a folder instead of a file are the same weights.
    again = [*more[:-1], weights.parent, "--encoder.final_norm=false"]
    assert "0 images encoded, 4 kept" in command(*words(tiny, folder, *again)).out
    refuses(command(*words(tiny, folder, *again[:-1])), "other settings", "encoder")


def refuses(done: Outcome, *parts: str) -> None:
    assert done.code == 2, done.out
    for part in parts:
        assert part in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ([], ["--architecture", "dinov2_vitl14"]),
        (["--weights", "x.pth"], ["--architecture"]),
        (["--architecture", "dinov2_vitl"], ["unknown architecture", "dinov2_vitl14"]),
        (["--architecture", "dino_vits8"], ["random weights", "--weights"]),
        (["--architecture", "dino_vits8", "--weights", "no.pth"], ["no.pth", "no such weights"]),
        (["--encoder.class_path", "VIT"], ["did you mean 'ViT'"]),
        (["--architecture", "dino_vits8", "--encoder.norm", "1"], ["no argument 'norm'"]),
        (["--architecture", "dinov3_vits16", "--encoder.positions", "x"], ["offset, antialiased"]),
        (["--architecture", "dino_vits8", "--heigth", "3"], ["--height"]),
        (["--architecture", "dino_vits8", "--height", "0"], ["1 or more"]),
        (["--shard", "2/2"], ["--shard", "0/4"]),
        (["--dtype", "int8"], ["float16"]),
    ],
)
def test_mistakes(
    more: list[str], parts: list[str], command: Command, tiny: Tiny, tmp_path: Path
) -> None:
    refuses(command(*words(tiny, tmp_path / "features", *more)), *parts)
    assert not (tmp_path / "features").exists()


def test_other_settings_and_a_file_as_output(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    assert command(*words(tiny, folder, *unet(tiny), "--split", "val")).code == 0
    refuses(command(*words(tiny, folder, *unet(tiny), "--height", 32)), "height", str(folder))
    (tmp_path / "file").touch()
    refuses(command(*words(tiny, tmp_path / "file", *unet(tiny))), "file")


def test_help_names_the_options_of_dataset_and_encoder(command: Command) -> None:
    shown = command("prepare", "image-features", "synthetic", "--help").out
    assert "--encoder.KEY" in shown
    assert "--root" in shown
    assert "--no-antialias" in shown
