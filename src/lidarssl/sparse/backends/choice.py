"""Which implementation of sparse convolution runs.

``torch`` runs everywhere and is the default. ``triton`` and ``spconv`` compute the same on the
same kernel maps. One is chosen for a process by the environment variable LIDARSSL_SPARSE, or for
a block of code by ``backend``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from torch import Tensor

from lidarssl.errors import unknown_name
from lidarssl.sparse.pairs import KernelMap

NAMES = ("torch", "triton", "spconv")
VARIABLE = "LIDARSSL_SPARSE"
_chosen: ContextVar[str | None] = ContextVar("sparse backend", default=None)


def convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sum over pairs (i, o) of weight k: output[o] += features[i] @ kernel[k].

    Args:
        features: (N_in, C_in).
        kernel: (K, C_in, C_out), same dtype.
        kernel_map: pairs of the K weights.

    Returns:
        (N_out, C_out), differentiable once in features and kernel.

    Raises:
        ConfigError: the chosen backend is unknown or not installed.
    """
    return _module(chosen()).convolve(features, kernel, kernel_map)


def chosen() -> str:
    """Name of the backend that runs.

    Raises:
        ConfigError: the environment asks for an unknown one.
    """
    return _chosen.get() or _known(os.environ.get(VARIABLE) or NAMES[0], VARIABLE)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Inside, convolutions of this thread run by ``name``, whatever the environment says.

    Raises:
        ConfigError: no such backend.
    """
    token = _chosen.set(_known(name, "backend"))
    try:
        yield
    finally:
        _chosen.reset(token)


def _known(name: str, field: str) -> str:
    if name not in NAMES:
        raise unknown_name(field, name, NAMES)
    return name


def _module(name: str) -> Any:
    return import_module(f"lidarssl.sparse.backends.{name}")
