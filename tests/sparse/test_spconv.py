"""Convolutions on grids with borders, against dense ones on the same grid in float64."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.norms import MapNorm
from lidarssl.sparse.spconv import ResidualUnit, SpconvConv3d, dense_map
from lidarssl.sparse.tensor import SparseTensor

BATCH = 2
threes = st.tuples(*[st.integers(1, 3)] * 3)


def grid_input(seed: int, shape: tuple[int, ...], channels: int = 3) -> SparseTensor:
    """A third of the cells, corners and faces among them."""
    generator = torch.Generator().manual_seed(seed)
    sites = (torch.rand(BATCH, *shape, generator=generator) < 0.35).nonzero()
    corner = torch.tensor([[0, 0, 0, 0], [1, *(size - 1 for size in shape)]])
    sites = torch.unique(torch.cat([sites, corner]), dim=0)
    sites = sites[torch.randperm(len(sites), generator=generator)]
    features = torch.randn(len(sites), channels, generator=generator, dtype=torch.float64)
    return SparseTensor.of(sites, features.requires_grad_(), shape=shape)


def dense(sites: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, C, X, Y, Z)."""
    volume = values.new_zeros(BATCH, *shape, values.shape[1])
    return volume.index_put(tuple(sites.unbind(1)), values).permute(0, 4, 1, 2, 3)


def by_conv3d(layer: SpconvConv3d, x: SparseTensor) -> tuple[Tensor, Tensor]:
    """Dense output (B, X, Y, Z, C), and which of its cells read an occupied one."""
    weight = layer.weight.permute(0, 4, 3, 2, 1)  # (C_out, C_in, x, y, z)
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    volume = dense(x.coordinates, x.features, x.shape)
    ones = dense(x.coordinates, torch.ones_like(x.features[:, :1]), x.shape)
    reads = F.conv3d(ones, torch.ones_like(weight[:1, :1]), **options) > 0
    return F.conv3d(volume, weight, layer.bias, **options).permute(0, 2, 3, 4, 1), reads[:, 0]


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weight).sum(), inputs)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(*[st.integers(5, 8)] * 3),
    size=threes,
    stride=threes,
    padding=st.tuples(*[st.integers(0, 2)] * 3),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
)
def test_strided_equals_dense(seed, shape, size, stride, padding, dilation, bias):
    x = grid_input(seed, shape)
    layer = SpconvConv3d(3, 2, size, stride, padding, dilation, bias=bias).double()
    if layer.pointwise:
        return
    y = layer(x)
    expected, reads = by_conv3d(layer, x)
    assert y.shape == tuple(expected.shape[1:4])
    cells = y.coordinates // torch.tensor([1, *y.stride])
    assert torch.equal(cells, reads.nonzero())
    at_sites = expected[reads]
    assert torch.allclose(y.features, at_sites, rtol=0, atol=1e-12)
    for actual, reference in zip(
        gradients(y.features, x.features, layer.weight),
        gradients(at_sites, x.features, layer.weight),
        strict=True,
    ):
        assert torch.allclose(actual, reference, rtol=0, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(*[st.sampled_from([1, 3, 5])] * 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 3),
)
def test_submanifold_keeps_its_sites_and_ignores_padding(seed, size, dilation, padding):
    x = grid_input(seed, (6, 5, 7))
    layer = SpconvConv3d(3, 2, size, 1, padding, dilation, submanifold=True).double()
    if layer.pointwise:
        return
    y = layer(x)
    assert y.level == x.level
    expected, _ = by_conv3d(layer, x)
    at_sites = expected[tuple(x.coordinates.unbind(1))]
    assert torch.allclose(y.features, at_sites, rtol=0, atol=1e-12)


def test_second_level_counts_its_own_cells():
    x = grid_input(3, (9, 10, 11))
    first = SpconvConv3d(3, 4, 3, 2, 1).double()
    second = SpconvConv3d(4, 2, (1, 1, 3), (1, 1, 2)).double()
    y = first(x)
    z = second(y)
    cells = y.coordinates // torch.tensor([1, *y.stride])
    again = SparseTensor.of(cells, y.features, shape=y.shape)
    expected, reads = by_conv3d(second, again)
    assert z.stride == (2, 2, 4)
    assert torch.allclose(z.features, expected[reads], rtol=0, atol=1e-12)


def test_one_cell_reads_its_memory_as_a_matrix():
    x = grid_input(4, (5, 5, 5))
    layer = SpconvConv3d(3, 2, 1, bias=True).double()
    assert layer.weight.shape == (2, 1, 1, 1, 3)
    matrix = layer.weight.detach().reshape(3, 2)
    assert torch.allclose(layer(x).features, x.features @ matrix + layer.bias)
    transposed = layer.weight.detach().reshape(2, 3).t()
    assert not torch.allclose(layer(x).features, x.features @ transposed + layer.bias)


def test_initial_weights_fill_the_bound_of_spconv():
    weight = SpconvConv3d(16, 8, 3, submanifold=True).weight
    bound = (27 * 16) ** -0.5
    assert 0.99 * bound < weight.abs().max() <= bound


def test_dense_map_stacks_heights_channel_by_channel():
    x = grid_input(5, (4, 5, 3), channels=2)
    found = dense_map(x, BATCH)
    assert found.shape == (BATCH, 2 * 3, 5, 4)
    for (frame, column, row, level), values in zip(x.coordinates.tolist(), x.features, strict=True):
        for channel in range(2):
            assert found[frame, channel * 3 + level, row, column] == values[channel]
    assert (found != 0).sum() == x.features.numel()


def test_residual_unit_adds_its_input():
    x = grid_input(6, (5, 5, 5), channels=4)
    unit = ResidualUnit(4).double()
    torch.nn.init.zeros_(unit.bn2.weight)
    assert torch.equal(unit(x).features, x.features.clamp(min=0))


def test_borders_survive_pickling():
    x = grid_input(7, (5, 6, 7))
    layer = SpconvConv3d(3, 2, 3, 2, 1).double()
    expected = layer(x)
    maps = pickle.loads(pickle.dumps(x.maps))
    actual = layer(SparseTensor(x.features, maps))
    assert torch.equal(actual.features, expected.features)
    assert actual.shape == expected.shape


def test_errors():
    sites, features = torch.tensor([[0, 0, 0, 5]]), torch.zeros(1, 3)
    with pytest.raises(DataError, match="outside a grid"):
        SparseTensor.of(sites, features, shape=(5, 5, 5))
    with pytest.raises(DataError, match="outside a grid"):
        SparseTensor.of(-sites, features, shape=(5, 5, 6))
    with pytest.raises(ValueError, match="without borders"):
        SpconvConv3d(3, 2, 3, 2, 1)(SparseTensor.of(sites, features))
    with pytest.raises(ValueError, match="without borders"):
        dense_map(SparseTensor.of(sites, features), 1)
    with pytest.raises(ValueError, match="smaller than a kernel"):
        SpconvConv3d(3, 2, 3, 2)(SparseTensor.of(sites, features, shape=(2, 6, 6)))
    with pytest.raises(ValueError, match="odd sizes"):
        SpconvConv3d(3, 2, 2, submanifold=True)
    with pytest.raises(ValueError, match="SpconvConv3d"):
        SparseConv3d(3, 2, 3, convention="spconv")


def test_map_norm_equals_torch():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    own, reference = MapNorm(3).double(), torch.nn.BatchNorm2d(3).double()
    assert torch.equal(own(maps), reference(maps))
    assert torch.equal(own.running_var, reference.running_var)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    one = maps[:1, :, :1, :1]
    assert torch.allclose(own(one), own.eval()(one))
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())
