"""A finished pretraining, opened in a stand-in for the viewer."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dataset_files import write_semantic_kitti
from lidarssl import checkpoints
from lidarssl.cli import main
from lidarssl.errors import DataError
from lidarssl.experiments.viewing import trained_recipe, view_run
from lidarssl.report import figures
from lidarssl.report.occupancy import OccupancySlices
from lidarssl.report.schema import Results


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of ALSO on a written example of SemanticKITTI."""
    folder = tmp_path_factory.mktemp("also")
    root = write_semantic_kitti(folder / "data")
    words = [
        "pretrain", "also_minkunet_kitti_sample", "--dataset.root", str(root),
        "--run", str(folder / "run"), "--quiet", "--training.steps", "3",
        "--method.sampling.min_range", "0", "--method.sampling.num_queries", "60",
    ]  # fmt: skip
    assert main(words) == 0
    return folder / "run"


def test_the_report_of_also_shows_occupancy(run: Path) -> None:
    pictures = [record.file for record in Results.load(run).pictures]
    assert "figures/occupancy.npz" in pictures
    figure = figures.load(run / "figures/occupancy.npz")
    assert isinstance(figure, OccupancySlices)
    assert np.isfinite(figure.prediction).any()
    assert (run / "figures/occupancy_5.png").is_file()
    assert "Occupancy" in (run / "report.html").read_text("utf-8")


def test_the_whole_method_is_loaded_with_its_heads(run: Path) -> None:
    method = trained_recipe(run).method
    student = checkpoints.load(run / "student.safetensors").state
    for name, value in method.student.state_dict().items():
        assert torch.equal(value, student[name])
    fresh = trained_recipe(run).method
    assert torch.equal(fresh.latent_head.weight, method.latent_head.weight)
    path = run / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(state["module.decoder.fc_out.bias"], method.decoder.fc_out.bias)


def test_the_viewer_gets_features_cells_and_the_scan(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, Any] = {}

    def archetype(*arguments: Any, **values: Any) -> Any:
        return SimpleNamespace(arguments=arguments, **values)

    fake = SimpleNamespace(
        init=lambda name, spawn: None,
        set_time=lambda timeline, sequence: None,
        log=lambda entity, value, static=False: logged.setdefault(entity, value),
        ViewCoordinates=SimpleNamespace(RIGHT_HAND_Z_UP=None),
        Points3D=archetype,
        Boxes3D=archetype,
    )
    monkeypatch.setitem(sys.modules, "rerun", fake)
    view_run(run, spawn=False)
    assert {"lidar/points", "lidar/features", "lidar/occupancy/returns"} <= logged.keys()
    cells, scan = logged["lidar/occupancy/returns"], logged["lidar/points"].arguments[0]
    assert len(cells.centers) > 0
    away = np.abs(cells.centers[:, None] - scan[None]).max(2).min(1)
    assert away.max() <= cells.half_sizes.max() + 1e-5


def test_a_folder_without_a_checkpoint_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", types.ModuleType("rerun"))
    (tmp_path / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    with pytest.raises(DataError, match=r"last\.ckpt"):
        view_run(tmp_path, spawn=False)


def test_the_verb_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["view", str(tmp_path)]) == 2
    assert "lidarssl[viewer]" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rerun", types.ModuleType("rerun"))
    assert main(["view", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
