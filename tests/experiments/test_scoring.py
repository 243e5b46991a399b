"""From confusion matrices to rows, files and text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from lidarssl.experiments.labelled import Labelled, labelled_frames
from lidarssl.experiments.scoring import (
    class_row,
    efficiency_row,
    outcome,
    pooled,
    score_table,
    write_metrics,
)
from lidarssl.report.schema import LOOK_UP, RANDOM_INIT, Protocol, Results
from toys import MemoryDataset


def frames(dataset: MemoryDataset, skip: int = 1) -> Labelled:
    return labelled_frames(dataset, "train", "val", skip, workers=0, batch_size=4)


def matrix(*rows: Sequence[int]) -> torch.Tensor:
    return torch.tensor([[0, 0, 0], [0, *rows[0]], [0, *rows[1]]])


PERFECT, HALF = matrix((5, 0), (0, 5)), matrix((5, 5), (0, 0))


def test_rows_hold_every_seed_and_pool_the_classes() -> None:
    some = frames(MemoryDataset(frames=4), skip=2)
    row = efficiency_row("slidr", Protocol.PROBE, some, [PERFECT, HALF])
    assert row.seeds == (1.0, 0.25)
    assert (row.fraction, row.labelled_frames) == (0.5, 2)
    classes = class_row("slidr", Protocol.PROBE, some, pooled([PERFECT, HALF]))
    assert classes.names == ("low", "high")
    assert classes.iou == pytest.approx((10 / 15, 5 / 10))
    assert classes.gt_points == (15, 5)


def test_metrics_json_holds_every_seed(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"slidr": [PERFECT, HALF]}, frames(MemoryDataset(frames=4)))
    found = json.loads((tmp_path / "metrics.json").read_text())["slidr"]
    assert found["miou_of_seeds"] == [1.0, 0.25]
    assert found["miou"] == pytest.approx((10 / 15 + 5 / 10) / 2)


def test_outcome_says_scores_and_verdict(tmp_path: Path) -> None:
    some = frames(MemoryDataset(frames=4))
    rows = (
        efficiency_row("slidr", Protocol.PROBE, some, [PERFECT, PERFECT]),
        efficiency_row(RANDOM_INIT, Protocol.PROBE, some, [HALF, HALF]),
        efficiency_row(LOOK_UP, Protocol.LOOKUP, some, [HALF]),
    )
    Results("4 frames", efficiency=rows).save(tmp_path)
    lines = outcome(tmp_path).splitlines()
    assert lines[0].split() == ["slidr", "100.0", "±", "0.0", "mIoU", "(2", "seeds)"]
    assert lines[2].split() == ["look-up", "25.0", "mIoU"]
    assert lines[3].startswith("Pretraining helped")


def test_outcome_without_pretraining_claims_nothing(tmp_path: Path) -> None:
    row = efficiency_row(RANDOM_INIT, Protocol.PROBE, frames(MemoryDataset(frames=4)), [HALF])
    Results("4 frames", efficiency=(row,)).save(tmp_path)
    assert outcome(tmp_path).splitlines() == ["random init  25.0 mIoU"]


def test_score_table_shows_absent_classes_as_such() -> None:
    table = score_table(matrix((5, 0), (0, 0)), MemoryDataset(), "nan").splitlines()
    assert table[1].split() == ["low", "100.0", "5"]
    assert table[2].split() == ["high", "-", "0"]
    assert "100.0  mIoU (nan)" in table
