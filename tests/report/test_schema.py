from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lidarssl.errors import DataError
from lidarssl.report.schema import (
    ClassTableRow,
    EfficiencyRow,
    PictureRecord,
    Protocol,
    Results,
    RunRecord,
    Section,
    Stage,
)

ROW = EfficiencyRow("SLidR", Protocol.PROBE, 0.1, (0.2, None), 12)
CLASSES = ClassTableRow("SLidR", Protocol.PROBE, 0.1, ("car", "road"), (0.1, None), (5, 0))


def test_a_run_reads_back_what_it_saved(complete_run: Path, tmp_path: Path) -> None:
    record, results = RunRecord.load(complete_run), Results.load(complete_run)
    record.save(tmp_path)
    results.save(tmp_path)
    assert RunRecord.load(tmp_path) == record
    assert Results.load(tmp_path) == results
    assert results.classes[0].confusion is not None
    assert any(None in row.seeds for row in results.efficiency)


@pytest.mark.parametrize("key", ["command", "versions", "stages"])
def test_a_missing_key_is_named(make_run: Callable[..., Path], key: str) -> None:
    run = make_run()
    values = json.loads((run / "run.json").read_text())
    del values[key]
    (run / "run.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=f"run.json(.|\n)*field: {key}"):
        RunRecord.load(run)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: replace(ROW, seeds=(27.3,)), "seeds[0]"),
        (lambda: replace(ROW, seeds=(0.1, float("nan"))), "seeds[1]"),
        (lambda: replace(ROW, fraction=0.0), "fraction"),
        (lambda: replace(ROW, fraction=10.0), "fraction"),
        (lambda: replace(ROW, method=""), "method"),
        (lambda: replace(ROW, labelled_frames=-1), "labelled_frames"),
        (lambda: replace(CLASSES, iou=(0.1,)), "iou"),
        (lambda: replace(CLASSES, iou=(0.1, 1.5)), "iou[1]"),
        (lambda: replace(CLASSES, gt_points=(1, -1)), "gt_points"),
        (lambda: replace(CLASSES, gt_points=(1,)), "gt_points"),
        (lambda: replace(CLASSES, names=("car", "car")), "names"),
        (lambda: replace(CLASSES, confusion=((1, 2),)), "confusion"),
        (lambda: replace(CLASSES, confusion=((1, 2), (-1, 2))), "confusion"),
        (lambda: PictureRecord("/etc/a.png", "t", "c", Section.INPUT), "file"),
        (lambda: PictureRecord("../a.png", "t", "c", Section.INPUT), "file"),
        (lambda: PictureRecord("figures/a.svg", "t", "c", Section.INPUT), "file"),
        (lambda: Results("x", efficiency=(ROW, replace(ROW, seeds=(0.1,)))), "efficiency"),
        (lambda: Stage("s", -1.0, ""), "seconds"),
    ],
)
def test_an_impossible_value_is_refused(make: Callable[[], object], field: str) -> None:
    with pytest.raises(DataError) as caught:
        make()
    assert caught.value.field == field


def test_per_cent_scores_in_a_file_are_refused_with_the_remedy(
    make_run: Callable[..., Path],
) -> None:
    run = make_run(efficiency=(ROW,))
    values = json.loads((run / "results.json").read_text())
    values["efficiency"][0]["seeds"] = [27.3]
    (run / "results.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"efficiency\[0\]\.seeds\[0\](.|\n)*not per cent"):
        Results.load(run)
