"""`lidarssl pretrain`, killed at a random moment and resumed, as if it had never stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("embreex")
pytest.importorskip("skimage")

from lidarssl.checkpoints import read_state
from lidarssl.cli import main
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.config import LidarConfig, SplitConfig, WorldConfig, camera_rig

STEPS = 16
RECIPE = """
kind: pretrain
about: {{title: SLidR on a tiny world}}
dataset: {{class_path: Synthetic, init_args: {{root: {root}}}}}
method:
  class_path: Slidr
  init_args:
    embedding: 8
    pool: cells
    superpixels: {{segments: 20, sigma: 1.0}}
    augmentation: {{image_size: [32, 64], min_pairs: 8, scale: [0.95, 1.05]}}
    backbone:
      class_path: MinkUNet
      init_args:
        rule: slidr_cartesian
        voxel_size: 0.5
        inputs: {{columns: [intensity, z, one], scale: [0.012, 0.33, 1.0], reduce: mean}}
        stem_channels: 8
        encoder_channels: [8, 8]
        decoder_channels: [8, 8]
        blocks: [1, 1, 1, 1]
    image_encoder: {{class_path: SmallUNet, init_args: {{out_channels: 8}}}}
training:
  batch_size: 2
  steps: {steps}
  workers: 2
  accelerator: cpu
  checkpoint_every: 3
  log_every: 1
  validate_every: 4
  optimizer: {{name: adamw, lr: 0.01}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    world = WorldConfig(
        splits=(SplitConfig("train", 4, 1), SplitConfig("val", 2, 1)),
        cameras=camera_rig(2, 48, 96),
        lidar=LidarConfig(beams=16, azimuth_steps=180),
    )
    Synthetic.generate(folder / "world", world, workers=1, progress=False)
    path = folder / "slidr_tiny.yaml"
    path.write_text(RECIPE.format(root=folder / "world", steps=STEPS))
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """A run that was never stopped."""
    run = recipe.parent / "whole"
    assert main(["pretrain", str(recipe), "--run", str(run), "--quiet"]) == 0
    return run


def start(recipe: Path, run: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lidarssl.cli", "pretrain", str(recipe)]
    return subprocess.Popen(
        [*command, "--run", str(run), "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def when(process: subprocess.Popen[bytes], true: Callable[[], bool], timeout: float = 120) -> None:
    """Return as soon as ``true`` holds."""
    until = time.monotonic() + timeout
    while not true():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < until
        time.sleep(0.002)


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def logged(run: Path) -> int:
    """Whole lines of the log so far."""
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.is_file() else 0


def same(one: Path, other: Path) -> None:
    """Weights and logs of two runs are equal, bit for bit."""
    left, right = (read_state(run / "student.safetensors") for run in (one, other))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert rows(one) == rows(other)


@pytest.mark.parametrize("seed", [0])
def test_killed_run_resumes_exactly(recipe: Path, whole: Path, seed: int) -> None:
    run, moment = recipe.parent / f"killed_{seed}", random.Random(seed)
    step, wait = moment.randrange(4, STEPS - 2), moment.uniform(0, 0.05)
    process = start(recipe, run)
    when(process, lambda: logged(run) >= step)
    time.sleep(wait)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (run / "student.safetensors").exists()
    assert main(["pretrain", str(recipe), "--run", str(run), "--quiet", "--resume"]) == 0
    assert [row["step"] for row in rows(run)] == list(range(STEPS))
    same(run, whole)


@pytest.mark.slow
def test_preempted_run_saves_and_says_how_to_go_on(recipe: Path, whole: Path) -> None:
    run = recipe.parent / "preempted"
    process = start(recipe, run)
    when(process, lambda: logged(run) >= 5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"--resume" in errors
    assert b"Traceback" not in errors
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == logged(run) < STEPS
    assert main(["pretrain", str(recipe), "--run", str(run), "--quiet", "--resume"]) == 0
    same(run, whole)


def test_finished_run_stays_as_it_is(whole: Path, recipe: Path) -> None:
    weights, log = read_state(whole / "student.safetensors"), rows(whole)
    assert main(["pretrain", str(recipe), "--run", str(whole), "--quiet", "--resume"]) == 0
    after = read_state(whole / "student.safetensors")
    assert weights.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())
    assert rows(whole) == log


def test_held_out_loss_is_logged(whole: Path) -> None:
    assert [row["step"] for row in rows(whole) if "val_loss" in row] == [3, 7, 11, 15]


def test_dry_run_writes_nothing_and_warns_of_nothing(
    recipe: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    run = recipe.parent / "dry"
    assert main(["pretrain", str(recipe), "--run", str(run), "--dry-run"]) == 0
    out, errors = capfd.readouterr()
    assert "frames      2" in out
    assert errors == ""
    assert [str(warning.message) for warning in recwarn] == []
    assert not run.exists()


def test_dry_run_computes_as_precisely_as_the_run(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        option = f"--training.precision={precision}"
        assert main(["pretrain", str(recipe), "--dry-run", option]) == 0
        losses[precision] = float(capfd.readouterr().out.partition("loss")[2].split()[0])
    assert losses["32-true"] != losses["bf16-mixed"]
    assert losses["32-true"] == pytest.approx(losses["bf16-mixed"], rel=0.1)
