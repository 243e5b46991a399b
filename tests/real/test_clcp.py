"""CLCP on the real samples, as a user types it: pretrain, extract the encoder, finetune, judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from commands import run_command

pytestmark = pytest.mark.real

SHAPE = "{family: dino, image_size: 64, patch_size: 16, width: 32, depth: 2, heads: 2}"
PRETRAIN = (
    "--method.image_encoder.class_path=ViT",
    f"--method.image_encoder.init_args.architecture={SHAPE}",
    "--method.image_encoder.init_args.frozen=false",
    "--method.image_encoder.init_args.weights=null",
    "--method.view.image_size=[64, 64]",
    "--training.steps=2",
    "--training.workers=0",
    "--training.accelerator=cpu",
    "--quiet",
)
SMALL_LIDAR = (
    "--method.backbone.voxel_size=0.4",
    "--method.backbone.encoder_channels=[8, 8]",
    "--method.backbone.decoder_channels=[8, 8]",
    "--method.backbone.stem_channels=8",
    "--method.backbone.blocks=[1, 1, 1, 1]",
)


def pretrain(recipe: str, run: Path, *words: str) -> None:
    done = run_command("pretrain", recipe, "--run", run, *PRETRAIN, *SMALL_LIDAR, *words)
    assert done.code == 0, done.err
    assert (run / "student.safetensors").is_file()
    assert (run / "lidar_encoder.safetensors").is_file()
    assert (run / "report.html").is_file()


@pytest.fixture(scope="module")
def from_kitti(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("clcp") / "kitti"
    pretrain(
        "clcp_vit_kitti_sample", run, f"--dataset.root={data_root / 'semantic_kitti'}",
        "--training.batch_size=3", "--training.validate_every=2",
    )  # fmt: skip
    return run


def test_semantic_kitti_pretrains_and_is_judged_by_retrieval(from_kitti: Path) -> None:
    rows = [json.loads(line) for line in (from_kitti / "metrics.jsonl").read_text().splitlines()]
    assert any("val_recall@1_image_to_lidar" in row for row in rows)
    found = json.loads((from_kitti / "retrieval.json").read_text())
    assert found["frames"] == 3, "the sample has three held-out scans"


def test_a2d2_pretrains(data_root: Path, tmp_path: Path) -> None:
    pretrain(
        "clcp_vit_a2d2", tmp_path / "run", f"--dataset.root={data_root / 'a2d2' / 'camera_lidar'}",
        "--training.batch_size=1", "--val_split=all", "--training.validate_every=0",
        "--method.lidar.weights=null",
    )  # fmt: skip


def test_an_encoder_of_kitti_is_finetuned_on_acdc_and_judged_under_its_weather(
    from_kitti: Path, data_root: Path, tmp_path: Path
) -> None:
    root, run = data_root / "acdc", tmp_path / "run"
    done = run_command(
        "finetune", "finetune_vit_cityscapes", "--checkpoint", from_kitti, "--run", run,
        "--dataset.class_path=Acdc", f"--dataset.init_args.root={root}",
        f"--task.encoder.architecture={SHAPE}", "--task.encoder.weights=null",
        "--task.encoder.normalization=imagenet",
        "--task.mask_transformer.heads=2", "--task.augmentation.crop=[64, 64]",
        "--task.inference.window=[64, 64]", "--task.inference.stride=[48, 48]",
        "--training.steps=3", "--training.batch_size=1", "--training.workers=0",
        "--training.accelerator=cpu", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Clcp" in done.out or "clcp" in done.out
    judged = run_command("evaluate", run, "--shift", "acdc", "--root", root, "--quiet")
    assert judged.code == 0, judged.err
    assert "night" in judged.out
    assert (run / "shift.json").is_file()


def test_the_encoder_is_extracted_for_others(from_kitti: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "vit"
    done = run_command("convert", from_kitti, "--to", "transformers", "--output", folder)
    assert done.code == 0, done.err
    model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
    state = model.state_dict()
    assert all(torch.isfinite(value).all() for value in state.values())
    assert model.config.hidden_size == 32
