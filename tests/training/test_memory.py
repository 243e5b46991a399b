from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch

from lidarssl.training import memory

WORKER = """
import resource
import numpy as np
from lidarssl.training.memory import keep_freed_memory

assert keep_freed_memory()

def fault() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2**20) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fault()
print(max(fault() for _ in range(3)))
"""
STEP = """
import resource
import torch
from lidarssl.training.memory import step_memory_kept

def fault() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**24) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1])

with step_memory_kept(torch.device("cpu"), keep={keep}):
    fault()
    inside, kept = min(fault() for _ in range(20)), resident()
print(inside, fault(), kept - resident())
"""


def printed(script: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.fixture
def glibc() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("not glibc")
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("not glibc")


@pytest.mark.usefixtures("glibc")
def test_freed_memory_serves_again() -> None:
    """64 MiB of arrays are 16 384 pages the first time, and next to none after that."""
    (faults,) = printed(WORKER)
    assert faults < 1000


@pytest.mark.usefixtures("glibc")
def test_a_step_keeps_the_memory_of_large_tensors() -> None:
    """Three of 64 MiB are 49 152 pages; they are given back and are new again afterwards."""
    inside, outside, given_back = printed(STEP.format(keep=True))
    assert inside < 1000
    assert outside > 40_000
    assert given_back > 40_000


@pytest.mark.usefixtures("glibc")
def test_a_step_keeps_nothing_unless_asked_to() -> None:
    inside, _, _ = printed(STEP.format(keep=False))
    assert inside > 40_000


@pytest.mark.usefixtures("glibc")
def test_memory_is_given_back_after_an_error() -> None:
    script = STEP.partition("with")[0].format() + (
        "try:\n"
        "    with step_memory_kept(torch.device('cpu')):\n"
        "        raise KeyError\n"
        "except KeyError:\n"
        "    fault()\n"
        "    print(fault())\n"
    )
    (faults,) = printed(script)
    assert faults > 40_000


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()
    with memory.step_memory_kept(torch.device("cpu")):
        pass


def test_peak_memory_counts_what_was_freed() -> None:
    script = (
        "import numpy as np\n"
        "from lidarssl.training.memory import peak_memory\n"
        "before = peak_memory()\n"
        "np.ones(2**26)\n"
        "print(before, peak_memory())\n"
    )
    before, after = printed(script)
    assert before + 2**28 < after < before + 2**30
