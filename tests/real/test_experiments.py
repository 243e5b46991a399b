"""The whole chain on real frames: pretrain, probe, evaluate, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lidarssl.cli import main
from lidarssl.images.unet import SmallUNet
from lidarssl.report.schema import Results

DATASETS = {"kitti": "semantic_kitti", "nuscenes": "nuscenes"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained: these tests are about the chain, not about scores."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    SmallUNet().save(path)
    return path


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "sample"), [("slidr", "kitti"), ("ppkt", "kitti"), ("ppkt", "nuscenes")]
)
def test_pretrain_probe_evaluate_report(
    method: str,
    sample: str,
    teacher: Path,
    data_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = data_root / DATASETS[sample]
    if not root.is_dir():
        pytest.skip(f"no {root}")
    pretrained, probed = tmp_path / "pretrained", tmp_path / "probed"
    words = ["--quiet", "--dataset.root", str(root)]
    code = main(
        [
            "pretrain", f"{method}_minkunet_{sample}_sample", "--run", str(pretrained), *words,
            "--method.image_encoder.weights", str(teacher), "--training.steps", "2",
            "--training.workers", "0",
        ]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    losses = [json.loads(row)["loss"] for row in (pretrained / "metrics.jsonl").open()]
    assert all(0 < loss < 20 for loss in losses)
    kinds = {picture.file for picture in Results.load(pretrained).pictures}
    assert any("lidar_on" in kind for kind in kinds)
    code = main(
        [
            "probe", f"probe_minkunet_{sample}_sample", "--run", str(probed), *words,
            "--checkpoint", str(pretrained), "--workers", "0", "--probe.steps", "20",
            "--probe.points_per_frame", "2000", "--no-baseline",
        ]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    scores = json.loads((probed / "metrics.json").read_text())
    assert 0 < scores[method]["miou"] < 1
    capsys.readouterr()
    assert main(["evaluate", str(probed), "--protocol", "slidr", "--workers", "0"]) == 0
    assert "mIoU (slidr)" in capsys.readouterr().out
    for run in (pretrained, probed):
        assert "<html" in (run / "report.html").read_text()


@pytest.mark.real
@pytest.mark.slow
def test_pretrain_and_calibrate(
    teacher: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data_root / "semantic_kitti"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    run = tmp_path / "nclr"
    code = main(
        [
            "pretrain", "nclr_minkunet_kitti_sample", "--run", str(run), "--quiet",
            "--dataset.root", str(root), "--method.image_encoder.weights", str(teacher),
            "--training.steps", "2", "--training.workers", "0",
        ]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    shown = {picture.file for picture in Results.load(run).pictures}
    assert any("calibration_image_2" in file for file in shown)
    assert main(["calibrate", str(run), "--frames", "1", "--quiet"]) == 0
    found = json.loads((run / "calibration" / "calibration.json").read_text())
    assert [image["camera"] for image in found["images"]] == ["image_2"]
    assert found["before"]["rotation"]["median"] > 0
    assert list((run / "calibration" / "figures").glob("*calibration_image_2*.png"))
