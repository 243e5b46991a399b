"""The published segmentation recipe, with a small network, on real images of ACDC's layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import run_command
from lidarssl.report.schema import PIXEL_POSITION, RANDOM_INIT, Results
from lidarssl.report.shift import ShiftResults

pytestmark = pytest.mark.real

ENCODER = "{family: dino, image_size: 64, patch_size: 16, width: 24, depth: 1, heads: 3}"


def test_acdc_trains_is_scored_and_is_a_shift(data_root: Path, tmp_path: Path) -> None:
    """A run judged on a dataset that is its own, and knows no clear weather: nothing is lost."""
    acdc, run = data_root / "acdc", tmp_path / "run"
    if not acdc.is_dir():
        pytest.skip("no sample of ACDC")
    dataset = ["--dataset.class_path=Acdc", f"--dataset.root={acdc}", "--dataset.image_scale=0.2"]
    done = run_command(
        "finetune", "finetune_vit_cityscapes", *dataset, "--run", run, "--quiet",
        f"--task.encoder.architecture={ENCODER}", "--task.augmentation.crop=[64,64]",
        "--task.inference.height=null", "--task.inference.window=[64,64]",
        "--task.inference.stride=[64,64]", "--training.batch_size=1", "--training.steps=3",
        "--training.workers=0", "--training.accelerator=cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = {row.method: row.seeds[0] for row in Results.load(run).efficiency}
    assert rows.keys() == {RANDOM_INIT, PIXEL_POSITION}
    shifted = run_command(
        "evaluate", run, "--shift", "acdc", "--root", acdc, "--image_scale", 0.2, "--quiet"
    )
    assert shifted.code == 0, shifted.err
    results = ShiftResults.load(run)
    assert results.conditions == ("acdc", "night")
    source, night = results.methods[0].conditions
    assert source.miou.value == night.miou.value == rows[RANDOM_INIT]
    assert night.relative is not None
    assert night.relative.value == 1
