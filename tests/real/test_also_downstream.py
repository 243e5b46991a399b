"""ALSO's fine-tuning on real scans: shares by list, thinned training, scored points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from commands import run_command
from lidarssl.datasets.semantic_kitti import SemanticKitti
from lidarssl.frame import Field
from lidarssl.report.schema import RunRecord


@pytest.mark.real
@pytest.mark.slow
def test_finetune_on_a_listed_share_and_score_what_is_asked(
    data_root: Path, tmp_path: Path
) -> None:
    root = data_root / "semantic_kitti"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    done = run_command(
        "finetune", "finetune_spvcnn_semantic_kitti_also", "--run", tmp_path, "--quiet",
        "--dataset.root", root, "--label_skip", 4, "--training.epochs", 1,
        "--training.workers", 0, "--training.accelerator", "cpu",
        "--task.augmentation.drop_unlabeled", "true", "--task.augmentation.max_points", "null",
        "--task.backbone.width", 0.25, "--task.backbone.blocks", "[1, 1, 1, 1, 1, 1, 1, 1]",
    )  # fmt: skip
    assert done.code == 0, done.err
    dataset = SemanticKitti(root, fractions="segcontrast")
    listed = len(dataset.label_fraction("train", 4))
    assert f"{listed} of the 4779 frames" in RunRecord.load(tmp_path).notes[0]
    every, left = 0, 0
    for frame_id in dataset.frames("val"):
        frame = dataset.load(frame_id, Field.SEMANTIC)
        assert frame.semantic is not None
        labelled = frame.points[frame.semantic > 0].numpy()
        every += len(labelled)
        left += len(np.unique(np.floor(labelled / np.float32(0.05)), axis=0))
    assert 0 < left < every
    for points, expected in (("all", every), ("decimated", left), ("nearest", every)):
        shown = run_command("evaluate", tmp_path, "--quiet", "--points", points)
        assert shown.code == 0, shown.err
        rows = shown.out.split("\n\n")[0].splitlines()[1:]
        assert sum(int(row.split()[-1].replace(",", "")) for row in rows) == expected
