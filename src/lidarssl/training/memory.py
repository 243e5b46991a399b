"""What a process does with memory that it has freed, and how much it has had."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Of mallopt(3), which can set values but not tell them: the last two are those of a new process.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_HALF_GIBIBYTE, _LARGEST, _NO_LIMIT = 2**29, 2**25, 2**31 - 1
_USUAL_TRIM_THRESHOLD, _USUAL_MMAP_MAX = 2**17, 2**16


def keep_freed_memory() -> bool:
    """Reuse freed memory, up to half a gibibyte, instead of giving it back and faulting it in anew.

    A loader worker makes arrays of the same sizes for every sample; new pages for them take longer
    than most of what is computed on them. Results do not depend on it.

    Returns:
        Whether the C library can be told so; only glibc can.
    """
    return _mallopt({_TRIM_THRESHOLD: _HALF_GIBIBYTE, _MMAP_THRESHOLD: _LARGEST})


@contextmanager
def step_memory_kept(device: torch.device, keep: bool = True) -> Iterator[None]:
    """Inside, a CPU reuses the memory of tensors of any size; at the end it is given back.

    By itself glibc returns whatever is above 32 MiB at once, so that every large tensor of a
    training step is zeroed page by page anew: a quarter of a step of eight sweeps. Kept memory has
    gaps, so that the peak is somewhat higher. Results do not depend on it. Nothing happens on
    other devices and with other C libraries.
    """
    if device.type != "cpu" or not keep:
        yield
        return
    _mallopt({_MMAP_MAX: 0, _TRIM_THRESHOLD: _NO_LIMIT})
    try:
        yield
    finally:
        if _mallopt({_MMAP_MAX: _USUAL_MMAP_MAX, _TRIM_THRESHOLD: _USUAL_TRIM_THRESHOLD}):
            ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """Bytes of this process at most so far, resident."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would start from the peak of the parent
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _mallopt(values: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    taken = [mallopt(name, value) for name, value in values.items()]
    return all(taken)
