"""Runs on disk: logs, exact resume after a kill, two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field
from lidarssl.training.fit import FitResult, Training, fit
from lidarssl.training.learner import Optimizer, Schedule, build_optimizer
from toys import MemoryDataset, ToyModule

SETTINGS = Training(
    batch_size=4,
    steps=24,
    optimizer=Optimizer("adamw", lr=1e-2),
    schedule=Schedule("warmup_cosine", warmup=0.1),
    workers=0,
    checkpoint_every=5,
    log_every=4,
    accelerator="cpu",
)


def train(
    run: Path, settings: Training = SETTINGS, resume: bool = False, **data: object
) -> FitResult:
    torch.manual_seed(0)
    module, dataset = ToyModule(), MemoryDataset(**data)  # type: ignore[arg-type]
    result = fit(
        module, dataset, dataset.frames("train"), Field.NONE, [], settings, run, "toy",
        resume=resume, progress=False,
    )  # fmt: skip
    torch.save(module.state_dict(), run / "final.pt")
    return result


def final(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "final.pt", weights_only=True)


def test_loss_falls_and_is_logged(tmp_path: Path) -> None:
    assert train(tmp_path).steps == 24
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert rows[0]["stage"] == "toy"
    assert (tmp_path / "logs" / "toy" / "metrics.csv").is_file()
    assert list((tmp_path / "logs" / "toy").glob("events.out.tfevents*"))


def test_same_seed_same_weights_and_other_seed_other_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, Training(**{**vars(SETTINGS), "seed": seed}))
    a, b, c = (final(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


KILLED = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from training.test_fit import SETTINGS, train
from toys import ToyModule
import os, signal, lidarssl.training.learner as learner
before = learner.Learner.training_step
def step(self, batch, batch_idx):
    if batch_idx == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, batch, batch_idx)
learner.Learner.training_step = step
train(Path({run!r}))
"""


@pytest.mark.parametrize("at", [7, 13])
def test_killed_run_resumes_to_the_same_weights(tmp_path: Path, at: int) -> None:
    train(tmp_path / "whole")
    run = tmp_path / "killed"
    tests = str(Path(__file__).resolve().parents[1])
    code = KILLED.format(tests=tests, at=at, run=str(run))
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (run / "final.pt").exists()
    assert train(run, resume=True).steps == 24
    whole, resumed = final(tmp_path / "whole"), final(run)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_resume_without_checkpoint_and_of_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        train(tmp_path, resume=True)
    train(tmp_path)
    dataset = MemoryDataset()
    other = torch.nn.Linear(1, 1)
    other.training_step = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="another architecture"):
        fit(
            other, dataset, dataset.frames("train"), Field.NONE, [], SETTINGS, tmp_path, "toy",
            resume=True, progress=False,
        )  # fmt: skip


def test_bad_sample_policies(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0003\.bin"):
        train(tmp_path / "raise", bad=(3,))
    skip = Training(**{**vars(SETTINGS), "bad_samples": "skip"})
    assert train(tmp_path / "skip", skip, bad=(3,)).skipped == 8
    ceiling = Training(**{**vars(skip), "max_skipped": 2})
    with pytest.raises(DataError, match="more than training.max_skipped"):
        train(tmp_path / "ceiling", ceiling, bad=(3,))


def test_cosine_per_epoch_is_stepped_once_per_epoch() -> None:
    factor = Schedule("cosine_epoch").factor(steps=50, steps_per_epoch=10)
    rates = [factor(step) for step in range(50)]
    assert rates[:10] == [1.0] * 10
    assert rates[10] == pytest.approx(0.9045084971874737)
    assert rates[49] == pytest.approx(0.09549150281252627)


def test_head_has_its_own_rate() -> None:
    groups = build_optimizer(ToyModule(), Optimizer(lr=0.1, head_lr=2.0)).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.1, 4), (2.0, 2)]


TWO_PROCESSES = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from training.test_fit import SETTINGS, train
train(Path({run!r}))
"""


def test_two_processes_under_torchrun_equal_one(tmp_path: Path) -> None:
    train(tmp_path / "one")
    script = tmp_path / "two.py"
    tests = str(Path(__file__).resolve().parents[1])
    script.write_text(textwrap.dedent(TWO_PROCESSES.format(tests=tests, run=str(tmp_path / "two"))))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run(
        [*command, str(script)], capture_output=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, f"{time.monotonic() - start:.0f} s: {done.stderr.decode()}"
    one, two = final(tmp_path / "one"), final(tmp_path / "two")
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=1e-4), key
