"""From confusion matrices to the rows of a report, to ``metrics.json`` and to text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.experiments.labelled import Labelled
from lidarssl.metrics.segmentation import iou_report
from lidarssl.report.headline import headline
from lidarssl.report.schema import (
    LOOK_UPS,
    ClassTableRow,
    EfficiencyRow,
    PictureRecord,
    Protocol,
    ProtocolNote,
    Results,
)
from lidarssl.report.scores import ScoreTable, summarise
from lidarssl.wording import counted


def pooled(matrices: Sequence[Tensor]) -> Tensor:
    """The counts of every seed together, (C, C) int64."""
    return torch.stack(list(matrices)).sum(0)


def efficiency_row(
    method: str, protocol: Protocol, frames: Labelled, matrices: Sequence[Tensor]
) -> EfficiencyRow:
    """mIoU of every seed."""
    scores = tuple(_score(float(iou_report(matrix).miou)) for matrix in matrices)
    return EfficiencyRow(method, protocol, frames.fraction, scores, len(frames.train))


def class_row(method: str, protocol: Protocol, frames: Labelled, matrix: Tensor) -> ClassTableRow:
    """IoU of every class but the ignored one."""
    report = iou_report(matrix)
    return ClassTableRow(
        method,
        protocol,
        frames.fraction,
        frames.dataset.classes.names[1:],
        tuple(_score(float(value)) for value in report.iou[1:]),
        tuple(int(value) for value in report.gt_points[1:]),
        tuple(tuple(int(value) for value in row) for row in matrix[1:, 1:].tolist()),
    )


def save_scores(
    run: Path,
    matrices: Mapping[str, Sequence[Tensor]],
    note: ProtocolNote,
    frames: Labelled,
    split: str,
    pictures: Sequence[PictureRecord],
) -> None:
    """``results.json`` and ``metrics.json`` of a run.

    Args:
        matrices: of every method, one per seed, (C, C) int64.
        note: how the networks were judged.
        split: of the frames that were judged on.
    """
    protocols = {
        method: Protocol.LOOKUP if method in LOOK_UPS else note.protocol for method in matrices
    }
    Results(
        f"{counted(len(frames.val), 'frame')} of {frames.dataset.name}/{split}, "
        f"{len(frames.dataset.classes) - 1} classes",
        protocols=(note,),
        efficiency=tuple(
            efficiency_row(method, protocols[method], frames, seeds)
            for method, seeds in matrices.items()
        ),
        classes=tuple(
            class_row(method, protocols[method], frames, pooled(seeds))
            for method, seeds in matrices.items()
        ),
        pictures=tuple(pictures),
    ).save(run)
    write_metrics(run, matrices, frames)


def write_metrics(run: Path, matrices: Mapping[str, Sequence[Tensor]], frames: Labelled) -> None:
    """``metrics.json``: every score of every method over its seeds together, and each seed's."""
    names, count = frames.dataset.classes.names, len(frames.val)
    content = {
        method: {
            **iou_report(pooled(seeds)).to_json(names, count),
            "miou_of_seeds": [_score(float(iou_report(matrix).miou)) for matrix in seeds],
        }
        for method, seeds in matrices.items()
    }
    (run / "metrics.json").write_text(json.dumps(content, indent=1))


def outcome(run: Path) -> str:
    """What a finished run says: the verdict, if it can tell, and a line per method."""
    rows = Results.load(run).efficiency
    said = headline(ScoreTable(rows))
    width = max(len(row.method) for row in rows)
    lines = []
    for row in rows:
        score = summarise(row.seeds)
        seeds = f" ({len(row.seeds)} seeds)" if len(row.seeds) > 1 else ""
        lines.append(f"{row.method:<{width}}  {'no score' if score is None else score} mIoU{seeds}")
    return "\n".join([*lines, *([said.verdict] if said.column else [])])


def score_table(matrix: Tensor, dataset: Dataset, protocol: str, counted: str = "points") -> str:
    """Per-class IoU and the means of a confusion matrix, as text; it counts points, or pixels."""
    report = iou_report(matrix, protocol)
    width = max(map(len, dataset.classes.names))
    lines = [f"{'class':<{width}}   IoU %   {counted}"]
    for number, name in enumerate(dataset.classes.names[1:], 1):
        value = float(report.iou[number])
        shown = "    -" if math.isnan(value) else f"{100 * value:5.1f}"
        lines.append(f"{name:<{width}}   {shown}   {int(report.gt_points[number]):,}")
    means = [
        (f"mIoU ({report.protocol})", report.miou),
        ("accuracy", report.oacc),
        ("mean accuracy", report.macc),
        ("fwIoU, frequency weighted", report.fwiou_true),
        ("fwIoU, micro", report.fwiou_micro),
    ]
    return "\n".join([*lines, "", *(f"{100 * value:5.1f}  {name}" for name, value in means)])


def _score(value: float) -> float | None:
    return None if math.isnan(value) else value
