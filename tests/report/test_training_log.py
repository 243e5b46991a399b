from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import DataError
from lidarssl.report import training_log
from lidarssl.report.training_log import read_log

LINES = [{"stage": "pretrain", "step": s, "epoch": 0, "loss": 1 / (s + 1)} for s in range(4)]


def write(path: Path, *lines: object) -> Path:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text(text)
    return path


def test_terms_become_curves_by_stage(tmp_path: Path) -> None:
    other = {"stage": "probe", "step": 0, "loss": 2.0, "note": "text", "done": True}
    log = read_log(write(tmp_path / "m", *LINES, other, "\n"))
    assert list(log.stages) == ["pretrain", "probe"]
    assert list(log.stages["pretrain"]) == ["loss"]
    assert log.stages["pretrain"]["loss"].steps == [0, 1, 2, 3]
    assert log.stages["pretrain"]["loss"].values == [1, 1 / 2, 1 / 3, 1 / 4]
    assert list(log.stages["probe"]) == ["loss"]
    assert log.problems == []


def test_a_cut_off_last_line_is_said_and_the_rest_kept(tmp_path: Path) -> None:
    log = read_log(write(tmp_path / "m", *LINES, '{"stage": "pretr'))
    assert len(log.stages["pretrain"]["loss"].steps) == 4
    assert log.problems == ["the last line is cut off: the run was interrupted or is still going"]


@pytest.mark.parametrize(
    "bad",
    [
        "not json\n",
        "[1]\n",
        '{"step": 1}\n',
        '{"stage": 3, "step": 1}\n',
        '{"stage": "a", "step": -1}\n',
        '{"stage": "a", "step": 1.5}\n',
        '{"stage": "a", "step": true}\n',
        "[" * 60_000 + "\n",
    ],
)
def test_unreadable_lines_are_counted(tmp_path: Path, bad: str) -> None:
    log = read_log(write(tmp_path / "m", LINES[0], bad, *LINES[1:]))
    assert log.problems == ["1 of 5 lines are unreadable, first line 2"]
    assert len(log.stages["pretrain"]["loss"].steps) == 4


def test_a_loss_that_is_not_finite_is_kept_and_said(tmp_path: Path) -> None:
    nan = '{"stage": "pretrain", "step": 9, "loss": NaN}\n'
    huge = '{"stage": "pretrain", "step": 10, "loss": 1' + "0" * 400 + "}\n"
    log = read_log(write(tmp_path / "m", *LINES, nan, huge))
    curve = log.stages["pretrain"]["loss"]
    assert curve.first_not_finite == 9
    assert math.isinf(curve.values[-1])
    assert log.problems == ["pretrain: loss is not a finite number at step 9"]


def test_lines_and_their_number_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_log, "MAX_LINES", 2)
    log = read_log(write(tmp_path / "m", *LINES))
    assert log.stages["pretrain"]["loss"].steps == [0, 1]
    assert log.problems == ["only the first 2 lines are shown"]


def test_no_file_is_a_data_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError):
            read_log(path)


@settings(max_examples=40)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("log") / "m"
    path.write_bytes(data)
    read_log(path)
