"""Runs on disk: what is trained and logged, and what must not change it."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, StepOutput
from lidarssl.tasks.semantic import SemanticSegmentation
from lidarssl.training.draws import step_generator
from lidarssl.training.fit import fit
from lidarssl.training.optimizer import Optimizer, Schedule, build_optimizer
from lidarssl.training.settings import Training
from lidarssl.transforms.base import Transform
from methods.small import backbone, build, methods
from toys import MemoryDataset, ToyModule
from training.runs import SETTINGS, final, rows, same_weights, settings, train, weighted


def test_loss_falls_and_is_logged(tmp_path: Path) -> None:
    assert train(tmp_path).steps == 24
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == [3, 7, 11, 15, 19, 23]
    assert [row["epoch"] for row in logged] == [1, 2, 3, 5, 6, 7]
    assert {row["stage"] for row in logged} == {"toy"}
    assert set(logged[0]) == {"stage", "step", "epoch", "loss", "error", "lr"}
    assert logged[-1]["loss"] < logged[0]["loss"]
    with (tmp_path / "logs" / "toy" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in line.items()} for line in table] == [
        {key: value for key, value in row.items() if key != "stage"} for row in logged
    ]
    assert list((tmp_path / "logs" / "toy").glob("events.out.tfevents*"))


def test_the_last_step_of_a_short_run_is_logged(tmp_path: Path) -> None:
    train(tmp_path, settings(steps=2))
    assert [row["step"] for row in rows(tmp_path)] == [1]


def test_same_seed_same_weights_and_other_seed_other_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, settings(seed=seed))
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


class Listening(ToyModule):
    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        self.seeds.append(generator.initial_seed())
        return super().training_step(batch, generator)


def test_every_step_has_draws_of_its_own(tmp_path: Path) -> None:
    module = Listening()
    train(tmp_path, settings(seed=3, steps=6), module=module)
    assert module.seeds == [step_generator(3, step).initial_seed() for step in range(6)]
    assert len(set(module.seeds)) == 6


def test_a_normal_run_says_nothing_and_leaves_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer_log = logging.getLogger("pytorch_lightning")
    level, filters = trainer_log.level, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path, settings(steps=3, validate_every=2))
    assert capfd.readouterr() == ("", "")
    assert trainer_log.level == level
    assert warnings.filters == filters


def test_bad_sample_policies(tmp_path: Path) -> None:
    bad = MemoryDataset(bad=(3,))
    with pytest.raises(DataError, match=r"0003\.bin"):
        train(tmp_path / "raise", dataset=bad)
    assert train(tmp_path / "skip", settings(bad_samples="skip"), dataset=bad).skipped == 8
    ceiling = settings(bad_samples="skip", max_skipped=2)
    with pytest.raises(DataError, match=r"more than training\.max_skipped"):
        train(tmp_path / "ceiling", ceiling, dataset=bad)


def test_a_batch_larger_than_the_data_leaves_the_old_log(tmp_path: Path) -> None:
    train(tmp_path, settings(steps=2))
    with pytest.raises(ConfigError, match="cannot fill a batch"):
        train(tmp_path, settings(batch_size=40))
    assert len(rows(tmp_path)) == 1


def test_cosine_per_epoch_is_stepped_once_per_epoch() -> None:
    factor = Schedule("cosine_epoch").factor(steps=50, steps_per_epoch=10)
    rates = [factor(step) for step in range(50)]
    assert rates[:10] == [1.0] * 10
    assert rates[10] == pytest.approx(0.9045084971874737)
    assert rates[49] == pytest.approx(0.09549150281252627)


def test_cosine_per_epoch_of_thirty_epochs() -> None:
    """The rates of ALSO's fine-tuning, whose rate is constant within an epoch."""
    factor = Schedule("cosine_epoch").factor(steps=30 * 7, steps_per_epoch=7)
    rates = [1e-3 * factor(step) for step in range(30 * 7)]
    assert [rates[7 * epoch] for epoch in (0, 1, 15, 29)] == pytest.approx(
        [1e-3, 9.9726e-4, 5e-4, 2.739e-6], rel=1e-4
    )
    assert all(len(set(rates[7 * epoch : 7 * epoch + 7])) == 1 for epoch in range(30))


def test_head_has_its_own_rate() -> None:
    groups = build_optimizer(ToyModule(), Optimizer(lr=0.1, head_lr=2.0)).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.1, 4), (2.0, 2)]


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_gradient_clip_bounds_the_step(tmp_path: Path, clip: float | None) -> None:
    plain = Optimizer("sgd", 1.0, weight_decay=0, momentum=0, dampening=0, gradient_clip=clip)
    module = ToyModule()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    training = settings(steps=1, optimizer=plain, schedule=Schedule("constant"))
    train(tmp_path, training, module=module)
    moved = [new - old for new, old in zip(module.parameters(), before, strict=True)]
    length = torch.cat([change.flatten() for change in moved]).norm().item()
    if clip is None:
        assert length > 0.01
    else:
        assert length == pytest.approx(clip, rel=1e-3)


def a_few_steps(
    run: Path, module: nn.Module, transforms: Sequence[Transform], precision: str
) -> list[float]:
    dataset = MemoryDataset(4, cameras=2)
    training = Training(
        batch_size=2, steps=2, workers=0, log_every=1, accelerator="cpu", precision=precision,
        optimizer=Optimizer("adamw", lr=1e-3), schedule=Schedule("constant"),
    )  # fmt: skip
    fit(
        module, dataset, dataset.frames("train"), module.needs, transforms, training, run, "some",
        progress=False,
    )  # fmt: skip
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())
    assert all(value.dtype != torch.bfloat16 for value in module.state_dict().values())
    return [row["loss"] for row in rows(run)]


@pytest.mark.parametrize("cls", [*methods(), SemanticSegmentation], ids=lambda cls: cls.__name__)
def test_mixed_precision_trains(tmp_path: Path, cls: type) -> None:
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        segments = cls is SemanticSegmentation
        module = SemanticSegmentation(backbone(), 3) if segments else build(cls)
        run = tmp_path / precision
        losses[precision] = a_few_steps(run, module, module.transforms(True), precision)
    assert losses["bf16-mixed"][0] == pytest.approx(losses["32-true"][0], rel=0.1)
    assert losses["bf16-mixed"] != losses["32-true"]


TWO_PROCESSES = """
import sys
sys.path[:0] = [{tests!r}]
from pathlib import Path
from training.runs import settings, train, weighted
train(Path({run!r}), settings(validate_every=8))
train(Path({run!r}) / "weighted", settings(), dataset=weighted())
"""


def test_two_processes_under_torchrun_equal_one(tmp_path: Path) -> None:
    train(tmp_path / "one", settings(validate_every=8))
    train(tmp_path / "one" / "weighted", settings(), dataset=weighted())
    script = tmp_path / "two.py"
    tests = str(Path(__file__).resolve().parents[1])
    script.write_text(TWO_PROCESSES.format(tests=tests, run=str(tmp_path / "two")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run(
        [*command, str(script)], capture_output=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 0, f"{time.monotonic() - start:.0f} s: {done.stderr.decode()}"
    for folder in (".", "weighted"):
        one, two = (final(tmp_path / name / folder) for name in ("one", "two"))
        for key, value in one.items():
            assert torch.allclose(value, two[key], atol=1e-4), key
    for left, right in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert left.keys() == right.keys()
        assert left["step"] == right["step"]
        if "val_loss" in left:
            assert left["val_loss"] == pytest.approx(right["val_loss"], rel=1e-3)


def test_settings_of_the_tests_are_those_of_a_short_run() -> None:
    assert SETTINGS.total_steps(12) == 24
    assert settings(steps=None, epochs=3).total_steps(13) == 9
    assert settings(steps=None, epochs=3, drop_last=False).total_steps(13) == 12
