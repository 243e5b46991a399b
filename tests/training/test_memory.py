from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from lidarssl.training import memory

SCRIPT = """
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not glibc")
def test_freed_memory_serves_again() -> None:
    """64 MiB of arrays are 16 384 pages the first time, and next to none after that."""
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("not glibc")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1000


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()
