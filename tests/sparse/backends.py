"""The implementations of sparse convolution that can run here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import pytest
import torch

CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Backend:
    """How one of them is tested.

    Attributes:
        name: of ``lidarssl.sparse.backends.choice``.
        device: where it runs.
        dtype: of features and kernel.
        atol: largest difference from float64, of sums of a few hundred terms of size one.
        trains: whether it has a backward there.
        effort: share of the examples of a property that it is given.
    """

    name: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float64
    atol: float = 1e-11
    trains: bool = True
    effort: float = 1.0


def _spconv() -> Any:
    backend = Backend(
        "spconv", "cuda" if CUDA else "cpu", torch.float32, atol=1e-3, trains=CUDA, effort=0.3
    )
    missing = importlib.util.find_spec("spconv") is None
    return pytest.param(
        backend, id="spconv", marks=pytest.mark.skipif(missing, reason="spconv is not installed")
    )


BACKENDS = [
    pytest.param(Backend("torch"), id="torch"),
    *([pytest.param(Backend("torch", "cuda"), id="torch-cuda")] if CUDA else []),
    # Without a GPU in Triton's interpreter, which takes some milliseconds per block of a product.
    pytest.param(
        Backend("triton", "cuda" if CUDA else "cpu", effort=1.0 if CUDA else 0.1), id="triton"
    ),
    _spconv(),
]
