from __future__ import annotations

import pytest
import torch

from lidarssl.sparse.layers import BatchNorm, SparseConv3d, cat, frozen_statistics, relu_
from lidarssl.sparse.tensor import SparseTensor
from sparse.reference import CONVENTIONS, random_input, random_sites


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_rows_may_come_in_any_order(convention):
    x = random_input(5, 3)
    layer = SparseConv3d(3, 4, 3, convention=convention).double()
    order = torch.randperm(x.features.shape[0], generator=torch.Generator().manual_seed(0))
    shuffled = SparseTensor.of(x.coordinates[order], x.features[order])
    assert torch.allclose(layer(shuffled).features, layer(x).features[order], atol=1e-12)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_frames_do_not_mix(convention):
    x = random_input(6, 3)
    down = SparseConv3d(3, 4, 2, 2, convention=convention).double()
    conv = SparseConv3d(4, 4, 3, convention=convention).double()
    together = conv(down(x))
    for frame in range(2):
        mine = x.coordinates[:, 0] == frame
        alone = conv(down(SparseTensor.of(x.coordinates[mine], x.features[mine])))
        rows = together.coordinates[:, 0] == frame
        assert torch.equal(alone.coordinates, together.coordinates[rows])
        assert torch.allclose(alone.features, together.features[rows], atol=1e-12)


@pytest.mark.parametrize("scale", [2**20, 2**40, 2**58])
def test_far_sites(scale):
    """Clusters so far apart that packed keys overflow behave as clusters side by side."""
    generator = torch.Generator().manual_seed(1)
    sites = random_sites(generator, 60, 3)
    cluster = torch.randint(-1, 2, (sites.shape[0], 3), generator=generator)
    features = torch.randn(sites.shape[0], 2, generator=generator, dtype=torch.float64)
    near, far = sites.clone(), sites.clone()
    near[:, 1:] += cluster * 32
    far[:, 1:] += cluster * scale * 2
    down = SparseConv3d(2, 3, 2, 2).double()
    conv = SparseConv3d(3, 3, 3).double()
    up = SparseConv3d(3, 3, 2, 2, transposed=True).double()
    expected = up(conv(down(SparseTensor.of(near, features))))
    actual = up(conv(down(SparseTensor.of(far, features))))
    assert torch.allclose(actual.features, expected.features, atol=1e-12)


def test_shapes_of_parameters_follow_the_library():
    assert SparseConv3d(3, 5, 1, bias=True).kernel.shape == (3, 5)
    assert SparseConv3d(3, 5, 1, 2).kernel.shape == (1, 3, 5)
    assert SparseConv3d(3, 5, (1, 2, 3)).kernel.shape == (6, 3, 5)
    assert SparseConv3d(3, 5, 2, bias=True).bias.shape == (1, 5)
    assert SparseConv3d(3, 5, 2, bias=True, convention="torchsparse").bias.shape == (5,)


def test_initial_weights_fill_the_bound_of_the_libraries():
    kernel = SparseConv3d(16, 4, 3, bias=True).kernel
    bound = (27 * 16) ** -0.5
    assert 0.99 * bound < kernel.abs().max() <= bound
    kernel = SparseConv3d(16, 4, 2, 2, transposed=True).kernel
    bound = (8 * 4) ** -0.5
    assert 0.97 * bound < kernel.abs().max() <= bound


def test_transposed_needs_an_earlier_level():
    with pytest.raises(ValueError, match="finer level"):
        SparseConv3d(3, 3, 2, 2, transposed=True).double()(random_input(0, 3))


def test_autocast_computes_in_its_dtype():
    x = random_input(7, 3)
    x = x.with_features(x.features.detach().float().requires_grad_())
    layer = SparseConv3d(3, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.features.dtype == torch.bfloat16
    assert torch.allclose(y.features.float(), layer(x).features, atol=0.05)
    y.features.float().sum().backward()
    assert layer.kernel.grad.dtype == torch.float32


def test_cat_and_relu():
    x = random_input(8, 2)
    y = cat(x, relu_(x.with_features(x.features.clone())))
    assert torch.equal(y.features, torch.cat([x.features, x.features.clamp(min=0)], 1))
    with pytest.raises(ValueError, match="different levels"):
        cat(x, SparseConv3d(2, 2, 2, 2).double()(x))


def test_batch_norm_equals_torch():
    x = random_input(9, 4)
    norm, reference = BatchNorm(4, momentum=0.3).double(), torch.nn.BatchNorm1d(4).double()
    reference.momentum = 0.3
    assert torch.equal(norm(x).features, reference(x.features))
    assert torch.equal(norm.bn.running_var, reference.running_var)
    assert torch.equal(norm.eval()(x).features, reference.eval()(x.features))


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_of_fewer_than_two_rows_uses_running_statistics(rows):
    x = random_input(10, 4)
    norm = BatchNorm(4).double()
    norm(x)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    few = SparseTensor.of(x.coordinates[:rows], x.features[:rows])
    out = norm(few).features
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.allclose(out, norm.eval()(few).features)


def test_frozen_statistics_stay():
    x, norm = random_input(11, 4), BatchNorm(4).double()
    with frozen_statistics(norm):
        frozen = norm(x).features
    assert torch.equal(norm.bn.running_mean, torch.zeros(4, dtype=torch.float64))
    assert norm.bn.num_batches_tracked == 0
    assert torch.equal(norm(x).features, frozen)
    assert norm.bn.num_batches_tracked == 1
