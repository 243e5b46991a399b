"""Convolution of some rows at a time, against all rows at once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.sparse.backends.torch import blocks, convolve
from lidarssl.sparse.kernel import Convention
from lidarssl.sparse.maps import KernelMaps
from sparse.reference import random_sites

M = Convention.MINKOWSKI


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 70),
    kernel=st.sampled_from([(3, 3, 3), (2, 2, 2), (3, 1, 2)]),
    strided=st.booleans(),
    transposed=st.booleans(),
)
def test_blocks_hold_the_pairs_of_their_rows_in_order(seed, size, kernel, strided, transposed):
    maps = KernelMaps.of(random_sites(torch.Generator().manual_seed(seed), 60, 4))
    coarse = maps.coarser(0, kernel, (2, 2, 2), M) if strided else 0
    pairs = maps.kernel_map(0, coarse, kernel, (1, 1, 1), M)
    pairs = pairs.transposed() if transposed else pairs
    values = torch.arange(len(pairs.in_row), dtype=torch.float64)[:, None] ** 2
    expected = pairs.by_out.sum(values)
    value_of = {
        (weight, *pair): value
        for weight, part in enumerate(
            zip(
                *(side.split(pairs.counts) for side in (pairs.in_row, pairs.out_row, values)),
                strict=True,
            )
        )
        for *pair, value in zip(*(side.flatten().tolist() for side in part), strict=True)
    }
    found, listed = [], 0
    for block in blocks(pairs, size):
        first = sum(map(len, found))
        assert bool((block.written >= first).all())
        assert bool((block.written < first + len(block.sums.start) - 1).all())
        weight = torch.arange(len(block.counts)).repeat_interleave(torch.tensor(block.counts))
        keys = zip(weight.tolist(), block.read.tolist(), block.written.tolist(), strict=True)
        own = torch.tensor([value_of[key] for key in keys], dtype=torch.float64)[:, None]
        found.append(block.sums.sum(own))
        listed += len(own)
    assert listed == len(values)
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=0)


def test_a_large_batch_gives_what_its_rows_give_together(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    sites = random_sites(generator, 200, 6)
    features = torch.randn(len(sites), 5, generator=generator, dtype=torch.float64)
    kernel = torch.randn(27, 5, 7, generator=generator, dtype=torch.float64)
    results = []
    for rows in (16, 2**15):
        monkeypatch.setattr("lidarssl.sparse.backends.torch._ROWS", rows)
        pairs = KernelMaps.of(sites).kernel_map(0, 0, (3, 3, 3), (1, 1, 1), M)
        leaves = [features.clone().requires_grad_(), kernel.clone().requires_grad_()]
        output = convolve(*leaves, pairs)
        grads = torch.autograd.grad(output.sin().sum(), leaves)
        assert len(blocks(pairs, rows)) == -(-len(sites) // rows)
        results.append((output, *grads))
    for many, one in zip(*results, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-12, atol=1e-12)
