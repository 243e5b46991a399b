"""What a run refuses to do: write over a run, go on as another one, train on nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_files import write_semantic_kitti
from lidarssl.cli import main

TRAIN_ALONE = (("00", 3), ("01", 2))


def pretrain(root: Path, run: Path, *options: str) -> int:
    return main(
        [
            "pretrain",
            "also_minkunet_kitti_sample",
            "--dataset.root",
            str(root),
            "--quiet",
            "--run",
            str(run),
            "--training.steps",
            "2",
            *options,
        ]
    )


def probe(root: Path, run: Path, *options: str) -> int:
    return main(
        [
            "probe",
            "probe_also_minkunet_kitti_sample",
            "--dataset.root",
            str(root),
            "--quiet",
            "--run",
            str(run),
            "--no-baseline",
            "--probe.steps",
            "2",
            *options,
        ]
    )


def test_a_probe_does_not_write_over_a_pretraining_nor_the_other_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_semantic_kitti(tmp_path / "data")
    assert pretrain(root, tmp_path / "also") == 0
    recipe = (tmp_path / "also" / "recipe.yaml").read_text()
    assert probe(root, tmp_path / "also", "--checkpoint", str(tmp_path / "also")) == 2
    assert "holds another run" in capsys.readouterr().err
    assert (tmp_path / "also" / "recipe.yaml").read_text() == recipe
    assert probe(root, tmp_path / "probe", "--checkpoint", str(tmp_path / "also")) == 0
    assert pretrain(root, tmp_path / "probe") == 2
    assert "--run" in capsys.readouterr().err


def finetune(root: Path, run: Path, *options: str) -> int:
    return main(
        [
            "finetune", "finetune_also_minkunet_kitti_sample", "--dataset.root", str(root),
            "--quiet", "--run", str(run), "--label_skip", "1", "--training.steps", "2",
            "--training.batch_size", "1", *options,
        ]
    )  # fmt: skip


VERBS = {
    "pretrain": (pretrain, "student.safetensors", ["--training.steps", "3"]),
    "probe": (probe, "task.safetensors", ["--probe.steps", "3"]),
    "finetune": (finetune, "task.safetensors", ["--training.steps", "3"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_finished_run_is_replaced_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    run_verb, file, longer = VERBS[verb]
    root, run = write_semantic_kitti(tmp_path / "data"), tmp_path / "run"
    assert run_verb(root, run) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run_verb(root, run, *longer) == 2
    said = capsys.readouterr().err
    assert f"holds a finished run, with its {file}" in said
    assert "another folder with --run" in said
    assert "--overwrite" in said
    assert ("--resume" in said) == (verb != "probe")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert run_verb(root, run, *longer, "--overwrite") == 0
    assert (run / file).read_bytes() != before[run / file]
    (run / file).unlink()
    assert run_verb(root, run) == 0, "an unfinished run starts anew"


@pytest.mark.parametrize(
    ("verb", "option", "value", "was"),
    [
        ("pretrain", "method.backbone.voxel_size", "0.5", "0.2"),
        ("pretrain", "training.optimizer.lr", "0.5", "0.002"),
        ("finetune", "task.backbone.voxel_size", "0.5", "0.2"),
    ],
)
def test_a_run_goes_on_with_its_own_recipe_alone(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    option: str,
    value: str,
    was: str,
) -> None:
    """None of these changes the shape of a weight."""
    run_verb, file, longer = VERBS[verb]
    root, run = write_semantic_kitti(tmp_path / "data"), tmp_path / "run"
    assert run_verb(root, run) == 0
    recipe, weights = (run / "recipe.yaml").read_text(), (run / file).read_bytes()
    capsys.readouterr()
    assert run_verb(root, run, "--resume", *longer, f"--{option}", value) == 2
    said = capsys.readouterr().err
    assert f"was started with {option} {was}, not {value}" in said
    assert "repeat the options" in said
    assert (run / "recipe.yaml").read_text() == recipe
    assert (run / file).read_bytes() == weights
    moved = root.rename(tmp_path / "moved")
    free = ["--training.workers", "0", "--about.title", "Other", "--training.log_every", "1"]
    assert run_verb(moved, run, "--resume", *longer, *free) == 0
    assert (run / file).read_bytes() != weights


def test_scans_of_which_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_semantic_kitti(tmp_path / "data")
    assert pretrain(root, tmp_path / "run", "--method.sampling.max_range", "0.001") == 2
    said = capsys.readouterr().err
    assert "no point of frame semantic_kitti/" in said
    assert "max_range" in said


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--method.latent", "0", "method.latent"),
        ("--method.intensity_scale", "0", "method.intensity_scale"),
        ("--method.intensity_scale", ".nan", "method.intensity_scale"),
        ("--method.backbone.voxel_size", "-0.1", "method.backbone.voxel_size"),
        ("--method.sampling.min_range", "99", "method.sampling.min_range"),
    ],
)
def test_values_that_make_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, named: str
) -> None:
    root = write_semantic_kitti(tmp_path / "data")
    words = [option, value, "--method.sampling.max_range", "50"]
    assert pretrain(root, tmp_path / "run", *words) == 2
    said = capsys.readouterr().err
    assert f"field: {named}" in said
    assert "remedy: " in said


def test_a_root_with_training_scans_alone_is_enough_to_pretrain(tmp_path: Path) -> None:
    root = write_semantic_kitti(tmp_path / "data", TRAIN_ALONE)
    assert pretrain(root, tmp_path / "run") == 0
    assert (tmp_path / "run" / "report.html").is_file()
