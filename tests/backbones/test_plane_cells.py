"""Convolutions of occupied cells against dense ones, which are those of PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lidarssl.backbones.plane_cells import OccupiedPlane, Plane, WholePlane
from lidarssl.backbones.waffleiron import LayerScale

Grid = tuple[int, int, int]


def layers(channels: int, activation: nn.Module, seed: int) -> tuple[nn.Sequential, LayerScale]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first, last = (
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(2)
        )
        return nn.Sequential(first, activation, last).double(), LayerScale(channels).double()


def tokens(grid: Grid, count: int, channels: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, cells and weights, some of which are zero as those of padding are."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    cells = torch.randint(math.prod(grid), (count,), generator=generator)
    return rows, cells, torch.rand(count, generator=generator).sub(0.2).relu().double()


def results(kind: Callable[..., Plane], grid: Grid, count: int, seed: int) -> list[Tensor]:
    """Output, and gradients of tokens and of every parameter."""
    ffn, scale = layers(3, nn.GELU() if seed % 2 else nn.ReLU(inplace=True), seed)
    rows, cells, weights = tokens(grid, count, 3, seed)
    rows.requires_grad_()
    mixed = kind(cells, weights, grid).mix(rows, ffn, scale)
    towards = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1)).double()
    inputs = [rows, *ffn.parameters(), *scale.parameters()]
    return [mixed.detach(), *torch.autograd.grad(mixed, inputs, towards)]


@given(
    frames=st.integers(1, 3), rows=st.integers(1, 6), columns=st.integers(1, 6),
    count=st.integers(0, 40), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_occupied_cells_are_convolved_as_dense_maps_are(
    frames: int, rows: int, columns: int, count: int, seed: int
) -> None:
    grid = (frames, rows, columns)
    expected = results(WholePlane, grid, count, seed)
    actual = results(OccupiedPlane.of, grid, count, seed)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradients_are_differences_of_the_output() -> None:
    ffn, scale = layers(2, nn.GELU(), 0)
    rows, cells, weights = tokens((2, 4, 3), 9, 2, 0)
    plane = OccupiedPlane.of(cells, weights, (2, 4, 3))
    assert torch.autograd.gradcheck(
        lambda values: plane.mix(values, ffn, scale), rows.requires_grad_()
    )


def test_work_follows_the_occupied_cells() -> None:
    """Two cells that touch have 10 neighbours, of 65 536 cells; a corner has fewer."""
    cells, weights = torch.tensor([0, 300, 301, 300]), torch.ones(4)
    plane = OccupiedPlane.of(cells, weights, (1, 256, 256))
    assert plane.sites == 3
    assert plane.around_sites.shape == (9, 3)
    assert plane.around_nearby.shape == (9, 4 + 12)
    assert plane.site.tolist() == [0, 1, 2, 1]
    border = plane.around_sites[:, 0] == plane.around_nearby.shape[1]
    assert int(border.sum()) == 5
