"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes

# Of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST = 2**29, 2**25


def keep_freed_memory() -> bool:
    """Reuse freed memory, up to half a gibibyte, instead of giving it back and faulting it in anew.

    A loader worker makes arrays of the same sizes for every sample; new pages for them take longer
    than most of what is computed on them. Results do not depend on it.

    Returns:
        Whether the C library can be told so; only glibc can.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    kept = (mallopt(_TRIM_THRESHOLD, _KEPT), mallopt(_MMAP_THRESHOLD, _LARGEST))
    return all(kept)
