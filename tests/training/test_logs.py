"""``metrics.jsonl`` and the CSV table say the same, whatever comes and goes."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from lidarssl.report.training_log import read_log
from lidarssl.training.logs import RunLog


def lines(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def table(run: Path, stage: str) -> list[dict[str, str]]:
    with (run / "logs" / stage / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    made = RunLog(tmp_path, "pretrain/slidr", steps_per_epoch=2, append=False)
    made.open(0)
    return made


def test_a_name_that_comes_later_is_a_new_column(log: RunLog, tmp_path: Path) -> None:
    log.add(0, {"loss": 2.0})
    log.add(1, {"loss": 1.5, "val_loss": 3.0})
    log.add(3, {"val_loss": 2.5})
    expected = [
        {"step": "0", "epoch": "0", "loss": "2.0", "val_loss": ""},
        {"step": "1", "epoch": "0", "loss": "1.5", "val_loss": "3.0"},
        {"step": "3", "epoch": "1", "loss": "", "val_loss": "2.5"},
    ]
    assert table(tmp_path, "pretrain_slidr") == expected
    curves = read_log(tmp_path / "metrics.jsonl").stages["pretrain/slidr"]
    assert (curves["val_loss"].steps, curves["val_loss"].values) == ([1, 3], [3.0, 2.5])


def test_what_is_not_finite_is_null(log: RunLog, tmp_path: Path) -> None:
    log.add(0, {"loss": math.nan, "lr": math.inf, "error": 1.0})
    (row,) = lines(tmp_path)
    assert (row["loss"], row["lr"], row["error"]) == (None, None, 1.0)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_opened_at_a_step_forgets_what_follows_and_what_is_broken(
    log: RunLog, tmp_path: Path, step: int
) -> None:
    for number in range(3):
        log.add(number, {"loss": float(number)})
    with log.path.open("ab") as file:
        file.write(b'[1, 2]\n{"step": "x", "stage": 3}\n\xff\xfe\n{"stage": "pretrain/slidr", "ste')
    log.open(step)
    log.add(step, {"loss": -1.0})
    assert [row["step"] for row in lines(tmp_path)] == [*range(step), step]
    assert [row["step"] for row in table(tmp_path, "pretrain_slidr")] == [
        str(number) for number in [*range(step), step]
    ]


@pytest.mark.parametrize("append", [True, False])
def test_stages_share_a_log_when_asked_to(log: RunLog, tmp_path: Path, append: bool) -> None:
    log.add(0, {"loss": 1.0})
    for _ in range(2):  # the second time replaces the first
        other = RunLog(tmp_path, "probe", 1, append)
        other.open(0)
        other.add(0, {"loss": 2.0})
    stages = [row["stage"] for row in lines(tmp_path)]
    assert stages == (["pretrain/slidr", "probe"] if append else ["probe"])
