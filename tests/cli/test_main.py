"""Exit codes of what is no bad input: Ctrl-C, closed pipes, exhausted memory, bugs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from commands import Command, Tiny
from lidarssl import checkpoints
from lidarssl.cli import main, verbs


def test_ctrl_c_keeps_the_last_checkpoint(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    words = [*tiny.pretrain(tmp_path), "--training.checkpoint_every=1"]
    started = subprocess.Popen(
        [sys.executable, "-m", "lidarssl.cli", *words, "--training.steps=100000"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    last = tmp_path / "checkpoints" / "last.ckpt"
    try:
        deadline = time.monotonic() + 100
        while not last.is_file():
            assert started.poll() is None, started.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 130
    assert "stopped; " in said
    assert "--resume" in said
    assert "Traceback" not in said
    done = torch.load(last, weights_only=True)["global_step"]
    resumed = command(*words, "--resume", f"--training.steps={done + 1}")
    assert resumed.code == 0, resumed.err
    assert checkpoints.load(tmp_path / "student.safetensors").card.step == done + 1


def failing(error: BaseException) -> Callable[..., None]:
    def verb(*_: object) -> None:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "training.batch_size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), 2, "shm-size"),
        (PermissionError(13, "Permission denied", "runs"), 2, "runs: Permission denied"),
        (OSError(28, "No space left on device", "x.ckpt"), 2, "x.ckpt: No space left on device"),
    ],
)
def test_exit_codes(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setattr(verbs, "doctor", failing(error))
    done = command("doctor")
    assert done.code == code
    assert said in done.err


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "doctor", failing(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_a_closed_pipe_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lidarssl.cli", "recipes"], stdout=write, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""
