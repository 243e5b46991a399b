"""Misspelt and senseless words on the command line: exit code 2 and the right word."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Command, Outcome, Tiny
from dataset_files import write_nuscenes

SLIDR = "pretrain slidr_minkunet_synthetic "


def refuses(done: Outcome, *said: str) -> None:
    assert done.code == 2, done.err or done.out
    assert done.err.startswith("error: ")
    assert "remedy: " in done.err
    for words in said:
        assert words in done.err
    for internal in ("Traceback", "jsonargparse", "Namespace", "Parser key", "<class", "usage:"):
        assert internal not in done.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrian", "did you mean 'pretrain'?"),
        ("prepare superpixel", "did you mean 'superpixels'?"),
        ("", "VERB"),
        ("data", "ACTION"),
        ("pretrain", "recipe"),
        ("report runs/x --compar y", "did you mean '--compare'?"),
        ("demo --steps many", "'many' is not a whole number of 1 or more"),
        ("demo --seed -1", "'-1' is not a whole number of 0 or more"),
        ("data check nuscenes --limit 0", "of 1 or more"),
        ("probe probe_minkunet_synthetic --seeds 0", "of 1 or more"),
    ],
)
def test_words_of_the_command(command: Command, line: str, said: str) -> None:
    refuses(command(*line.split()), said, "--help")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain slidr_minkunet_synth", "did you mean 'slidr_minkunet_synthetic'?"),
        ("recipes ppkt_minkunet_nuscene", "did you mean 'ppkt_minkunet_nuscenes'?"),
        ("probe slidr_minkunet_synthetic", "run it with `lidarssl pretrain`"),
        ("pretrain probe_minkunet_synthetic", "run it with `lidarssl probe`"),
        ("pretrain probe_minkunet_nuscenes", "run it with `lidarssl probe`"),
        ("pretrain finetune_minkunet_synthetic", "run it with `lidarssl finetune`"),
        ("data check nuscense --root x", "did you mean 'nuscenes'?"),
    ],
)
def test_names(command: Command, line: str, said: str) -> None:
    refuses(command(*line.split()), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--method.init_args.temprature 0.1", "did you mean 'method.temperature'?"),
        ("--method.temprature=0.1", "did you mean 'method.temperature'?"),
        ("--training.optimizer.lrr 3", "did you mean 'training.optimizer.lr'?"),
        ("--method.backbone.inputs.colums [z]", "did you mean 'method.backbone.inputs.columns'?"),
        ("--datset.root x", "did you mean 'dataset'?"),
        ("--steps 3", "did you mean 'training.steps'?"),
        ("--lr 3", "did you mean 'training.optimizer.lr'?"),
        ("--dry-rum true", "did you mean '--dry-run'?"),
        ("--method.class_path Slider", "did you mean 'Slidr'?"),
        ("--method.backbone.class_path MinkUnet", "did you mean 'MinkUNet'?"),
        ("--dataset.class_path lidarssl.methods.slidr.Slidr", "is not a Dataset"),
        ("--dataset.class_path nowhere.at.All", "there is no Dataset 'nowhere.at.All'"),
        ("--training.steps.x 3", "'training.steps' is a plain value"),
        ("--training.steps abc", "'abc' is not a whole number or null"),
        ("--training.optimizer.name adam", "'adam' is not one of sgd, adamw"),
        ("--method.augmentation.image_size [64,a]", "'[64,a]' is not a list of 2 whole numbers"),
        ("--training.bad_samples ignore", "one of raise, skip"),
        ("--training {stepz: 3}", "did you mean 'training.steps'?"),
        ("--training {steps: 3", "is not YAML"),
        ("--training.batch_size", "is given no value"),
        ("--training.batch_size 0", "give 1 or more"),
        ("--training.seed -3", "from 0 to 2^63 - 1"),
        ("--training.precision 8", "bf16-mixed"),
        ("--method.temperature 0", "give a number above 0"),
        ("--method.augmentation.image_size [0,4]", "pixels"),
    ],
)
def test_keys_of_a_recipe(command: Command, options: str, said: str) -> None:
    key, _, value = options.partition(" ")
    refuses(command(*SLIDR.split(), key, *([value] if value else [])), said, "--keys` lists")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--rot x", "did you mean 'root'?"),
        ("--root x --vresion v1.0-mini", "did you mean 'version'?"),
        ("--root x --cameras CAM_FRONT", "write lists as [a, b]"),
        ("--root x --image_scale half", "'half' is not a number"),
        ("", "add --root"),
    ],
)
def test_options_of_a_dataset_point_to_its_own_help(
    command: Command, options: str, said: str
) -> None:
    done = command("data", "check", "nuscenes", *options.split())
    refuses(done, said, "`lidarssl data check nuscenes --help` lists the options")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--lidar.bems=3", "did you mean 'lidar.beams'?"),
        ("--lidar.beams=0", "at least 1"),
        ("--splits=[{name: a}]", "'splits[0].scenes' is missing"),
        ("--splits=[{name: a, scenes: 1, frame: 1}]", "did you mean 'splits[0].frames'?"),
        ("--cameras=[{name: a, height: high}]", "'high' is not a whole number"),
    ],
)
def test_options_of_a_world(command: Command, tmp_path: Path, options: str, said: str) -> None:
    refuses(command("data", "synthesize", tmp_path, options), said)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--train_split=trian", "did you mean 'train'?"),
        ("--training.batch_size=3", "2 frames cannot fill a batch of 3"),
        ("--training.accelerator=tpu", "choose auto"),
        ("--dataset.cameras=[CAM_FRNT]", "did you mean 'CAM_FRONT'?"),
        ("--dataset.image_scale=2", "at most 1"),
        ("--method.augmentation.image_size=[31,64]", "multiple"),
        ("--method.superpixels.segments=0", "superpixels"),
        ("--method.superpixels.folder=nowhere", "lidarssl prepare superpixels"),
        ("--method.backbone.blocks=[1,1]", "number of blocks"),
        ("--method.backbone.stem_channels=0", "size or a count of 0"),
        ("--method.backbone.voxel_size=-1", "above 0"),
        ("--method.backbone.rule=cubes", "slidr_cartesian"),
        ("--method.image_encoder.weights=nowhere.safetensors", "nowhere.safetensors"),
    ],
)
def test_values_that_do_not_fit_the_data_or_each_other(
    command: Command, tiny: Tiny, tmp_path: Path, option: str, said: str
) -> None:
    refuses(command(*tiny.pretrain(tmp_path), option), said)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--chekpoint=x", "did you mean '--checkpoint'?"),
        ("--seed=-1", "'seed' cannot be -1"),
        ("--label_skip=0", "give 1 or more"),
        ("--val_split=nowhere", "known: teacher, train, val"),
        ("--probe.step=3", "did you mean 'probe.steps'?"),
        ("--resume", "without --resume"),
        ("--accelerator=tpu", "choose auto"),
    ],
)
def test_options_of_a_probe(
    command: Command, tiny: Tiny, tmp_path: Path, option: str, said: str
) -> None:
    refuses(command(*tiny.probe(tmp_path), option), said)


def test_a_fraction_without_a_frame(command: Command, tmp_path: Path) -> None:
    root = write_nuscenes(tmp_path / "nuscenes")
    done = command(
        "probe", "probe_minkunet_nuscenes_sample", f"--dataset.root={root}", "--label_skip=9",
        "--run", tmp_path / "run", "--workers=0", "--train_split=mini_train",
        "--val_split=mini_val", "--dataset.cameras=[CAM_FRONT]", "--quiet",
    )  # fmt: skip
    refuses(done, "label_skip")


def test_options_of_finetuning(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    words = tiny.finetune(tmp_path)
    refuses(command(*words, "--task.num_classes=5"), "set it to 14")
    refuses(command(*words, "--task.freeze=true"), "lidarssl probe")
    words[0] = "probe"
    refuses(command(*words, "--task.freeze=true", "--seeds=2"), "--seeds")


def test_evaluation(command: Command, probed: Path) -> None:
    refuses(command("evaluate", probed, "--split", "nowhere"), "known: teacher, train, val")
    refuses(command("evaluate", probed, "--protocol", "nuscenes"), "nuscenes_devkit")
    refuses(command("evaluate", probed, "--points", "some"), "all, decimated, nearest")
    refuses(command("evaluate", probed, "--points", "decimated"), "trained on whole scans")
    refuses(command("evaluate", probed, "--points", "nearest", "--votes", 2), "whole scans")
    refuses(command("evaluate", probed, "--votes-drop-path"), "2 or more")
    refuses(command("evaluate", probed, "--votes", 2, "--votes-drop-path"), "drop_path")
    refuses(command("evaluate", probed, "--dataset.root", "nowhere"), "nowhere")


def test_preparation(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    data = ["synthetic", "--root", tiny.world]
    spx = ["prepare", "superpixels", *data, "--output", tmp_path, "--workers", 0]
    refuses(command(*spx, "--shard", "4/4"), "--shard", "0/4")
    refuses(command(*spx, "--split", "vall"), "did you mean 'val'?")
    assert command(*spx, "--split", "val", "--segments", 10).code == 0
    refuses(command(*spx, "--split", "val", "--segments", 20), "other settings")
    teacher = ["prepare", "teacher", *data, "--output", tmp_path / "t.safetensors", "--quiet"]
    refuses(command(*teacher, "--score-split", "vall"), "did you mean 'val'?")
    assert not (tmp_path / "t.safetensors").exists()
