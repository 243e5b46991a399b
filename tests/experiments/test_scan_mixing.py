"""A fine-tuning on mixed scans as typed: bank, training, and an evaluation that needs no bank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import Outcome, run_command, small
from dataset_files import write_semantic_kitti
from lidarssl.report.schema import Results


def prepare(root: Path, bank: Path, *classes: str) -> Outcome:
    named = ["--classes", *classes] if classes else []
    return run_command(
        "prepare", "instances", "semantic_kitti", "--root", root, "--output", bank,
        "--workers", 0, "--quiet", *named,
    )  # fmt: skip


def finetune(root: Path, run: Path, *options: str) -> Outcome:
    return run_command(
        "finetune", "finetune_minkunet_kitti_sample", "--run", run, "--quiet",
        f"--dataset.root={root}", "--training.steps=2", "--training.batch_size=1",
        "--training.log_every=1", "--training.workers=0", *small("task.backbone"), *options,
    )  # fmt: skip


def mixing(bank: Path, **changes: object) -> list[str]:
    given = {"cut_classes": "[car]", "polar_classes": "[car]", "paste_on": "[road]"} | changes
    return [
        f"--task.mixing.bank={bank}",
        *(f"--task.mixing.{key}={value}" for key, value in given.items()),
    ]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in row]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kitti")
    write_semantic_kitti(made)
    done = prepare(made, made / "bank", "car")
    assert done.code == 0, done.err
    return made


def test_finetune_on_mixed_scans_then_evaluate(root: Path, tmp_path: Path) -> None:
    plain, mixed, again = tmp_path / "plain", tmp_path / "mixed", tmp_path / "again"
    bank = (root / "bank").rename(tmp_path / "bank")
    for run, options in ((plain, []), (mixed, mixing(bank)), (again, mixing(bank))):
        done = finetune(root, run, *options)
        assert done.code == 0, done.err
    assert losses(mixed) == losses(again)
    assert losses(mixed) != losses(plain)
    scored = Results.load(mixed).efficiency[0].seeds[0]
    assert scored is not None
    bank.rename(root / "bank")
    evaluated = run_command("evaluate", mixed, "--quiet")
    assert evaluated.code == 0, evaluated.err
    assert f"{100 * scored:5.1f}  mIoU (nan)" in evaluated.out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cut_classes": "[cra]"}, ("did you mean 'car'?", "field: mixing.cut_classes")),
        ({"paste_on": "[raod]"}, ("did you mean 'road'?", "field: mixing.paste_on")),
        ({"polar_classes": "[unlabeled]"}, ("unknown class", "field: mixing.polar_classes")),
        ({"cut_classes": "[car, truck]"}, ("made without truck", "use some of car")),
        ({"polar_probability": 2}, ("cannot be 2", "a number from 0 to 1")),
        ({"max_instances": -1}, ("cannot be -1", "0 or more")),
        ({"scale": "[2, 1]"}, ("cannot be", "two numbers above 0")),
        ({"cut_clases": "[car]"}, ("did you mean 'task.mixing.cut_classes'",)),
    ],
)
def test_wrong_options_are_refused(
    root: Path, tmp_path: Path, changes: dict[str, object], said: tuple[str, ...]
) -> None:
    done = finetune(root, tmp_path / "run", *mixing(root / "bank", **changes))
    assert done.code == 2
    for words in said:
        assert words in done.err


def test_missing_and_foreign_banks_are_refused(root: Path, tmp_path: Path) -> None:
    done = finetune(root, tmp_path / "run", *mixing(tmp_path / "nowhere"))
    assert done.code == 2
    assert "lidarssl prepare instances" in done.err
    done = finetune(root, tmp_path / "run", "--task.mixing.cut_classes=[car]")
    assert done.code == 2
    assert "there is no bank of them" in done.err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    index = json.loads((root / "bank" / "instances.json").read_text())
    for file in (root / "bank").iterdir():
        (foreign / file.name).write_bytes(file.read_bytes())
    (foreign / "instances.json").write_text(json.dumps(index | {"dataset": "semantic_poss"}))
    done = finetune(root, tmp_path / "run", *mixing(foreign))
    assert done.code == 2
    assert "belongs to another bank" in done.err


@pytest.mark.real
def test_the_real_sample_is_mixed_and_trained_on(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "semantic_kitti"
    done = prepare(root, tmp_path / "bank")
    assert done.code == 0, done.err
    run = tmp_path / "run"
    done = finetune(root, run, f"--task.mixing.bank={tmp_path / 'bank'}")
    assert done.code == 0, done.err
    assert len(losses(run)) == 2
