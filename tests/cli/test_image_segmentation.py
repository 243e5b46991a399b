"""Image segmentation as a user types it: finetune, probe, evaluate, evaluate --shift."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from commands import Command, run_command
from image_dataset_files import write_acdc, write_cityscapes
from lidarssl import checkpoints
from lidarssl.report.schema import PIXEL_POSITION, RANDOM_INIT, Protocol, Results
from lidarssl.report.shift import SHIFT_FILE, ShiftResults

SPLITS = (
    "[{name: train, scenes: 2, frames: 1}, {name: val, scenes: 2, frames: 1}, "
    "{name: val_fog, scenes: 2, frames: 1, like: val, weather: fog}, "
    "{name: val_night, scenes: 2, frames: 1, like: val, weather: night}]"
)
CAMERA = "[{name: CAM_FRONT, height: 32, width: 64}]"
ENCODER = "{family: dino, image_size: 32, patch_size: 8, width: 24, depth: 1, heads: 3}"
TINY = (
    f"--task.encoder.architecture={ENCODER}", "--task.augmentation.crop=[32,32]",
    "--task.inference.window=[32,32]", "--task.inference.stride=[32,32]", "--training.steps=2",
    "--training.batch_size=2", "--training.workers=0", "--quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in three weathers, and runs on it: two seeds at random, one of ``clcp``."""
    folder = tmp_path_factory.mktemp("images")
    made = run_command(
        "data", "synthesize", folder / "world", "--workers", 1, "--quiet", f"--splits={SPLITS}",
        f"--cameras={CAMERA}", "--lidar.beams=8", "--lidar.azimuth_steps=60",
    )  # fmt: skip
    assert made.code == 0, made.err
    for seed in (0, 1):
        done = run_command(
            "finetune", "finetune_vit_synthetic", f"--dataset.root={folder / 'world'}",
            "--run", folder / f"random_{seed}", f"--training.seed={seed}", *TINY,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert RANDOM_INIT in done.out
        assert PIXEL_POSITION in done.out
    found = checkpoints.load(folder / "random_0" / "task.safetensors")
    checkpoints.save(folder / "clcp.safetensors", found.state, replace(found.card, recipe="clcp"))
    return folder


def test_probe_of_a_checkpoint(command: Command, folder: Path) -> None:
    run = folder / "probed"
    done = command(
        "probe", "probe_vit_synthetic", f"--dataset.root={folder / 'world'}", "--run", run,
        "--checkpoint", folder / "clcp.safetensors", *TINY,
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = {row.method: row.protocol for row in Results.load(run).efficiency}
    assert rows == {"clcp": Protocol.PROBE, PIXEL_POSITION: Protocol.LOOKUP}
    again = command("evaluate", run, "--split", "val_fog", "--quiet")
    assert again.code == 0, again.err
    assert "pixels" in again.out
    assert "mIoU (nan)" in again.out


def test_several_runs_under_shift(command: Command, folder: Path) -> None:
    runs = [folder / "random_0", folder / "random_1"]
    done = command("evaluate", *runs, "--shift", "synthetic", "--root", folder / "world", "--quiet")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    (row,) = (line for line in lines if line.startswith(RANDOM_INIT))
    assert row.split()[2:5] == ["2", "clear", "2"]
    assert [line.split()[0] for line in lines[4:7]] == ["fog", "night", "all"]
    for run in runs:
        assert f"report: {run / 'report.html'}" in done.out
        assert ShiftResults.load(run).command.startswith("lidarssl evaluate")
        assert "Under shift: night" in (run / "report.html").read_text()


def test_from_cityscapes_to_acdc(command: Command, folder: Path, tmp_path: Path) -> None:
    """Both by the names of their official files, with the published recipe made tiny."""
    cityscapes, acdc = write_cityscapes(tmp_path / "cityscapes"), write_acdc(tmp_path / "acdc")
    run = tmp_path / "run"
    done = command(
        "finetune", "finetune_vit_cityscapes", "--dataset.root", cityscapes, "--run", run,
        "--task.inference.height=16", *TINY,
    )  # fmt: skip
    assert done.code == 0, done.err
    shifted = command("evaluate", run, "--shift", "acdc", "--root", acdc, "--quiet")
    assert shifted.code == 0, shifted.err
    results = ShiftResults.load(run)
    assert results.source == "cityscapes/val"
    assert results.conditions[0] == "cityscapes"
    assert results.conditions[-1] == "all"
    assert {"night"} < set(results.conditions)
    other = command("evaluate", run, "--shift", "synthetic", "--root", folder / "world", "--quiet")
    assert other.code == 2
    assert "class 1 is 'road' in 'cityscapes' and 'car' in 'synthetic'" in other.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "RUN"], "2 runs are evaluated together"),
        (["RUN", "--shift", "acdcc"], "did you mean 'acdc'"),
        (["RUN", "--shift", "synthetic", "--root", "WORLD", "--rot", "1"], "did you mean"),
        (["RUN", "--shift", "synthetic", "--root", "none"], "none"),
        (["RUN", "--shift", "synthetic", "--root", "WORLD", "--split", "vall"], "val"),
        (["RUN", "--shift", "synthetic", "--root", "WORLD", "--protocol", "slidr"], "--protocol"),
        (["RUN", "--shift", "synthetic", "--root", "WORLD", "--votes", "3"], "--votes"),
        (["RUN", "RUN", "--shift", "synthetic", "--root", "WORLD"], "is given twice"),
        (["RUN", "--shift", "synthetic", "--root", "WORLD", "--task.encodr.width", "3"], "encoder"),
        (["none", "--shift", "synthetic", "--root", "WORLD"], "no such run folder"),
        (["RUN", "--points", "nearest"], "segments images"),
    ],
)
def test_mistakes_of_a_user(command: Command, folder: Path, words: list[str], said: str) -> None:
    places = {"RUN": str(folder / "random_0"), "WORLD": str(folder / "world")}
    done = command("evaluate", *(places.get(word, word) for word in words), "--quiet")
    assert done.code == 2
    assert said in done.err
    assert "remedy" in done.err


def test_a_run_on_points_has_no_shift(command: Command, folder: Path, probed: Path) -> None:
    done = command("evaluate", probed, "--shift", "synthetic", "--root", folder / "world")
    assert done.code == 2
    assert "is a run of kind 'probe', which segments no images" in done.err
    assert not (probed / SHIFT_FILE).exists()


def test_a_recipe_says_which_verb_runs_it(command: Command) -> None:
    done = command("pretrain", "finetune_vit_synthetic")
    assert done.code == 2
    assert "lidarssl finetune" in done.err
    listed = command("recipes").out
    assert "probe_vit_synthetic " in listed


def test_help_lists_the_options_of_the_dataset(command: Command) -> None:
    shown = command("evaluate", "--shift", "acdc", "--help")
    assert shown.code == 0
    assert "--shift acdc --root data/acdc" in shown.out
    assert "--image_scale = 1.0" in shown.out
    assert "give it before --help" in command("evaluate", "--help").out
