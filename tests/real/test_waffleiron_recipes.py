"""The full-size recipes of ScaLR, with a smaller network and teacher, on real scans."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import run_command

pytestmark = pytest.mark.real

TEACHER = "{family: dinov2, image_size: 28, patch_size: 14, width: 8, depth: 1, heads: 2}"
TRAINING = ("--training.workers=0", "--training.precision=32-true", "--training.accelerator=cpu")


def smaller(backbone: str) -> list[str]:
    return [f"--{backbone}.depth=2", f"--{backbone}.channels=16"]


@pytest.mark.parametrize("name", ["scalr_waffleiron_mixed", "scalr_waffleiron_mixed_plus"])
def test_four_lidars_are_pretrained_on_together(data_root: Path, name: str) -> None:
    parts = "--dataset.datasets"
    outcome = run_command(
        "pretrain", name, "--dry-run", f"{parts}.nuscenes.root={data_root / 'nuscenes'}",
        f"{parts}.nuscenes.version=v1.0-mini",
        f"{parts}.semantic_kitti.root={data_root / 'semantic_kitti'}",
        f"{parts}.pandar64.root={data_root / 'pandaset'}",
        f"{parts}.pandar_gt.root={data_root / 'pandaset'}", *smaller("method.backbone"),
        "--method.image_encoder.weights=null", f"--method.image_encoder.architecture={TEACHER}",
        "--training.batch_size=2", *TRAINING,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert lines["frames"] == "2"
    size = "448, 896" if name.endswith("plus") else "224, 448"
    assert lines["images"] == f"(2, 3, {size})"
    # Only what the camera sees is given to the student; distances of unit vectors are at most 2.
    assert lines["matches"] == f"({lines['points'].strip('()').split(',')[0]},)"
    assert 0 < float(lines["loss"]) < 2


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("probe", "probe_waffleiron_pandaset_gt_scalr"),
        ("finetune", "finetune_waffleiron_pandaset_gt_scalr"),
    ],
)
def test_labels_are_trained_on_and_scored(
    data_root: Path, verb: str, name: str, tmp_path: Path
) -> None:
    outcome = run_command(
        verb, name, f"--dataset.root={data_root / 'pandaset'}", "--run", tmp_path / "run",
        "--quiet", *smaller("task.backbone"), "--training.batch_size=2", "--training.epochs=3",
        *TRAINING,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "run/report.html").is_file()
    scored = run_command("evaluate", tmp_path / "run", "--protocol", "scalr", "--quiet")
    assert scored.code == 0, scored.err
    assert "mIoU (scalr)" in scored.out
