"""A run that was stopped goes on exactly; what cannot go on says why."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lidarssl.datasets.mixed import Mixed
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, StepOutput
from lidarssl.training.optimizer import Optimizer, Schedule
from lidarssl.training.resume import ORDER
from lidarssl.training.settings import Training
from toys import MemoryDataset, ToyModule
from training.runs import SETTINGS, final, rows, same_weights, settings, train, weighted

LOGGED = settings(log_every=1, validate_every=3)


class Stopped(ToyModule):
    """Does something in the middle of step ``at``."""

    def __init__(self, at: int, action: Any) -> None:
        super().__init__()
        self.at, self.action, self.step = at, action, 0

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        if self.training:
            if self.step == self.at:
                self.action()
            self.step += 1
        return super().training_step(batch, generator)


class PowerCut(Exception):
    pass


def power_cut() -> None:
    raise PowerCut


def interrupt_at(run: Path, at: int, training: Training = LOGGED) -> None:
    torch.manual_seed(0)
    with pytest.raises(PowerCut):
        train(run, training, module=Stopped(at, power_cut))
    assert not (run / "final.pt").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("whole")
    train(run, LOGGED)
    return run


@pytest.mark.parametrize("at", [5, 7, 13, 23])
def test_resumed_run_ends_with_the_same_weights_and_the_same_log(
    tmp_path: Path, whole: Path, at: int
) -> None:
    interrupt_at(tmp_path, at)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "toy", "st')  # the line that was being written
    assert train(tmp_path, LOGGED, resume=True).steps == 24
    assert same_weights(tmp_path, whole)
    assert rows(tmp_path) == rows(whole)
    table = Path("logs") / "toy" / "metrics.csv"
    assert (tmp_path / table).read_text() == (whole / table).read_text()


def test_the_bar_of_a_resumed_run_knows_where_it_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, settings(steps=10))
    capfd.readouterr()
    train(tmp_path, settings(steps=15), resume=True, progress=True)
    assert "15/15" in "".join(capfd.readouterr())


@pytest.mark.parametrize("drop_last", [True, False])
def test_weighted_datasets_go_on_where_their_passes_stopped(
    tmp_path: Path, drop_last: bool
) -> None:
    training = settings(log_every=1, drop_last=drop_last)
    train(tmp_path / "whole", training, dataset=weighted())
    torch.manual_seed(0)
    with pytest.raises(PowerCut):
        train(tmp_path / "cut", training, module=Stopped(13, power_cut), dataset=weighted())
    train(tmp_path / "cut", training, resume=True, dataset=weighted())
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_other_weights_are_another_run(tmp_path: Path) -> None:
    train(tmp_path, settings(steps=4), dataset=weighted())
    for other in (weighted(2.0), Mixed(weighted().datasets)):
        with pytest.raises(ConfigError, match=r"weights \{'few': 1.0, 'many': 1.5\}") as caught:
            train(tmp_path, settings(steps=4), resume=True, dataset=other)
        assert caught.value.field == "weights"


def test_checkpoints_of_before_there_were_weights_go_on(tmp_path: Path) -> None:
    train(tmp_path, settings(steps=4))
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    del saved[ORDER]["weights"]
    torch.save(saved, path)
    assert train(tmp_path, settings(steps=6), resume=True).steps == 6


class WithDropout(Stopped):
    """Draws inside a layer, from the generator of the process."""

    def __init__(self, at: int = -1, action: Any = None) -> None:
        super().__init__(at, action)
        self.layers.insert(1, torch.nn.Dropout(0.5))


def test_layers_that_draw_by_themselves_draw_the_same_after_a_restart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train(tmp_path / "whole", LOGGED, module=WithDropout())
    torch.manual_seed(0)
    with pytest.raises(PowerCut):
        train(tmp_path / "cut", LOGGED, module=WithDropout(13, power_cut))
    torch.rand(1000)  # whatever else the process draws
    train(tmp_path / "cut", LOGGED, resume=True, module=WithDropout())
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_without_interval_only_the_end_is_saved(tmp_path: Path) -> None:
    training = settings(steps=4, checkpoint_every=0)
    interrupt_at(tmp_path, 3, training)
    assert not (tmp_path / "checkpoints").exists()
    train(tmp_path, training)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


def test_resuming_keeps_the_log_of_other_stages(tmp_path: Path) -> None:
    other = '{"stage": "teacher", "step": 90, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(other)
    torch.manual_seed(0)
    with pytest.raises(PowerCut):
        train(tmp_path, LOGGED, module=Stopped(7, power_cut), append_metrics=True)
    train(tmp_path, LOGGED, resume=True)
    found = rows(tmp_path)
    assert (found[0]["stage"], found[0]["step"]) == ("teacher", 90)
    assert [row["step"] for row in found[1:]] == list(range(24))


def test_starting_again_forgets_the_old_log(tmp_path: Path) -> None:
    train(tmp_path, LOGGED)
    train(tmp_path, settings(steps=4))
    assert [row["step"] for row in rows(tmp_path)] == [3]


def test_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    train(tmp_path, LOGGED)
    weights, log = final(tmp_path), rows(tmp_path)
    result = train(tmp_path, LOGGED, resume=True)
    assert (result.steps, result.interrupted) == (24, False)
    assert rows(tmp_path) == log
    assert all(torch.equal(weights[key], value) for key, value in final(tmp_path).items())


def test_finished_run_goes_on_with_more_steps(tmp_path: Path) -> None:
    constant = {"schedule": Schedule("constant"), "log_every": 4}
    train(tmp_path / "long", settings(steps=28, **constant))
    train(tmp_path / "short", settings(steps=16, **constant))
    assert train(tmp_path / "short", settings(steps=28, **constant), resume=True).steps == 28
    assert same_weights(tmp_path / "long", tmp_path / "short")
    assert rows(tmp_path / "long") == rows(tmp_path / "short")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step(
    tmp_path: Path, whole: Path, number: signal.Signals
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    torch.manual_seed(0)
    module = Stopped(7, lambda: os.kill(os.getpid(), number))
    result = train(tmp_path, LOGGED, module=module)
    assert (result.steps, result.interrupted) == (8, True)
    assert [row["step"] for row in rows(tmp_path)] == list(range(8))
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    assert not train(tmp_path, LOGGED, resume=True).interrupted
    assert same_weights(tmp_path, whole)
    assert rows(tmp_path) == rows(whole)


def test_a_second_interrupt_is_not_waited_for(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, LOGGED, module=Stopped(7, twice))
    assert signal.getsignal(signal.SIGINT) is before
    train(tmp_path, LOGGED, resume=True)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no checkpoint to resume.*without --resume"):
        train(tmp_path, resume=True)


class Wide(ToyModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers[0] = torch.nn.Linear(4, 17)
        self.layers[2] = torch.nn.Linear(17, 1)


class Deep(ToyModule):
    def __init__(self) -> None:
        super().__init__()
        self.more = torch.nn.Linear(1, 1)


class Frozen(ToyModule):
    def __init__(self) -> None:
        super().__init__()
        self.head.requires_grad_(False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good checkpoint."""
    run = tmp_path_factory.mktemp("finished")
    train(run, settings(steps=4))
    return (run / "checkpoints" / "last.ckpt").read_bytes()


def resume_from(run: Path, checkpoint: bytes, training: Training = SETTINGS, **what: Any) -> None:
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(checkpoint)
    (run / "metrics.jsonl").write_text("untouched")
    try:
        train(run, training, resume=True, **what)
    finally:
        assert (run / "metrics.jsonl").read_text() == "untouched"


@pytest.mark.parametrize("module", [Wide, Deep], ids=lambda cls: cls.__name__)
def test_checkpoint_of_another_architecture(
    tmp_path: Path, finished: bytes, module: type[ToyModule]
) -> None:
    with pytest.raises(ConfigError, match=r"(?s)another architecture.*started the run") as caught:
        resume_from(tmp_path, finished, module=module())
    assert caught.value.field in {
        "module.layers.0.weight",
        "module.layers.0.bias",
        "module.more.bias",
    }


@pytest.mark.parametrize("change", ["sgd", "frozen"])
def test_checkpoint_of_another_optimiser(tmp_path: Path, finished: bytes, change: str) -> None:
    optimizer = Optimizer("sgd") if change == "sgd" else SETTINGS.optimizer
    module = ToyModule() if change == "sgd" else Frozen()
    with pytest.raises(ConfigError, match="another optimiser"):
        resume_from(tmp_path, finished, settings(optimizer=optimizer), module=module)


@pytest.mark.parametrize(
    ("field", "training", "dataset"),
    [
        ("seed", settings(seed=1), MemoryDataset()),
        ("batch_size", settings(batch_size=2), MemoryDataset()),
        ("frames", SETTINGS, MemoryDataset(frames=13)),
        ("drop_last", settings(drop_last=False), MemoryDataset()),
    ],
)
def test_checkpoint_of_other_batches(
    tmp_path: Path, finished: bytes, field: str, training: Training, dataset: MemoryDataset
) -> None:
    with pytest.raises(ConfigError, match="the run was started with") as caught:
        resume_from(tmp_path, finished, training, dataset=dataset)
    assert caught.value.field == field


class Payload:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["LIDARSSL_TEST_PAYLOAD"],)


@pytest.mark.parametrize("fault", ["empty", "half", "zeros", "text", "hostile", "weights only"])
def test_damaged_checkpoint(
    tmp_path: Path, finished: bytes, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    monkeypatch.setenv("LIDARSSL_TEST_PAYLOAD", str(trap))
    crafted = tmp_path / "crafted.pt"
    good = torch.load(_written(tmp_path / "good.pt", finished), weights_only=True)
    torch.save(
        {**good, "payload": Payload()} if fault == "hostile" else good["state_dict"], crafted
    )
    content = {
        "empty": b"",
        "half": finished[: len(finished) // 2],
        "zeros": bytes(len(finished)),
        "text": b"not a checkpoint\n" * 100,
        "hostile": crafted.read_bytes(),
        "weights only": crafted.read_bytes(),
    }[fault]
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(DataError, match=r"(?s)last\.ckpt.*remedy: ") as caught:
        resume_from(run, content)
    assert not isinstance(caught.value, ConfigError)
    assert not trap.exists()


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
