"""The Triton kernels become machine code of a GPU, on a machine without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("compile_triton.py")
SHARED_MEMORY = 99 << 10
"""Bytes that a program may use on every GPU since Ampere."""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_kernels_compile_and_are_pipelined(tmp_path):
    """Gathers are asynchronous copies and products run on tensor cores, where a type has them."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, SCRIPT, "90"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 4 * 4
    for kernel in found:
        assert kernel["shared"] <= SHARED_MEMORY, kernel["kernel"]
        if kernel["kernel"] != "add_chunks" and kernel["dtype"] != "fp64":
            assert "cp.async" in kernel["ptx"], kernel["kernel"]
            assert "mma" in kernel["ptx"], kernel["kernel"]
