"""Which implementation of sparse convolution runs."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from lidarssl.errors import ConfigError
from lidarssl.sparse.backends import choice
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.tensor import SparseTensor
from sparse.reference import random_sites


def some_tensor() -> SparseTensor:
    generator = torch.Generator().manual_seed(0)
    sites = random_sites(generator, 40, 4)
    return SparseTensor.of(sites, torch.randn(len(sites), 4, generator=generator))


def test_the_environment_chooses_for_a_process_and_a_block_for_itself(monkeypatch):
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    assert choice.chosen() == "torch"
    monkeypatch.setenv(choice.VARIABLE, "triton")
    assert choice.chosen() == "triton"
    with choice.backend("torch"):
        assert choice.chosen() == "torch"
        with choice.backend("spconv"):
            assert choice.chosen() == "spconv"
        assert choice.chosen() == "torch"
    assert choice.chosen() == "triton"


def test_an_unknown_name_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"(?s)torchsparse.*known: torch, triton, spconv"):
        choice.backend("torchsparse").__enter__()
    monkeypatch.setenv(choice.VARIABLE, "Torch")
    with pytest.raises(ConfigError, match=r"(?s)LIDARSSL_SPARSE.*did you mean 'torch'\?"):
        SparseConv3d(4, 4, 3)(some_tensor())


def test_spconv_does_not_train_on_a_cpu():
    with choice.backend("spconv"), pytest.raises(ConfigError, match="forward pass on one thread"):
        SparseConv3d(4, 4, 3)(some_tensor())


@pytest.mark.skipif(importlib.util.find_spec("spconv") is not None, reason="spconv is installed")
def test_a_backend_that_is_not_installed_says_how_to_get_it():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            torch.no_grad(),
            choice.backend("spconv"),
            pytest.raises(ConfigError, match="pip install spconv"),
        ):
            SparseConv3d(4, 4, 3)(some_tensor())
    finally:
        torch.set_num_threads(threads)
