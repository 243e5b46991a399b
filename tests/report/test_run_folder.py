from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.report import run_folder
from lidarssl.report.run_folder import read_run
from lidarssl.report.schema import PictureRecord, Section


def picture(file: str) -> PictureRecord:
    return PictureRecord(file, "title", "caption", Section.INPUT)


def test_a_complete_run_has_no_problem(complete_run: Path) -> None:
    run = read_run(complete_run)
    assert run.problems == []
    assert run.results is not None
    assert [record for record, _ in run.drawings] == list(run.results.pictures)
    assert list(run.log.stages) == ["teacher", "pretrain/slidr", "pretrain/ppkt"]
    assert read_run(complete_run, pictures=False).drawings == []


def test_no_folder_is_an_error_and_an_empty_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        read_run(tmp_path / "none")
    run = read_run(tmp_path)
    assert [problem.split(":")[0] for problem in run.problems] == [
        "run.json",
        "results.json",
        "metrics.jsonl",
    ]
    assert run.name == tmp_path.name


def test_a_picture_that_cannot_be_shown_is_said_and_the_others_kept(
    make_run: Callable[..., Path],
) -> None:
    names = ["good.png", "none.png", "text.png", "none.npz", "jpeg.png", "folder.png"]
    run = make_run(pictures=tuple(picture(f"figures/{name}") for name in names))
    (run / "figures" / "folder.png").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(run / "figures" / "good.png")
    Image.new("RGB", (4, 4)).save(run / "figures" / "jpeg.png", "JPEG")
    (run / "figures" / "text.png").write_text("no picture")
    found = read_run(run)
    assert [record.file for record, _ in found.drawings] == ["figures/good.png"]
    assert [problem.split(":")[0] for problem in found.problems] == [
        f"figures/{name}" for name in names[1:]
    ]


def test_a_link_out_of_the_run_folder_is_not_followed(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(pictures=(picture("figures/secret.png"),))
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (run / "figures").mkdir()
    os.symlink(tmp_path / "secret.png", run / "figures" / "secret.png")
    found = read_run(run)
    assert found.drawings == []
    assert found.problems == ["figures/secret.png: leads out of the run folder"]


def test_a_picture_beyond_the_limit_is_not_read(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(pictures=(picture("a.png"),))
    Image.new("RGB", (4, 4)).save(run / "a.png")
    monkeypatch.setattr(run_folder, "MAX_PNG_BYTES", 10)
    assert "larger than" in read_run(run).problems[0]
