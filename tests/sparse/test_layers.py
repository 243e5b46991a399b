from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.sparse.layers import BatchNorm, ReLU, SparseConv3d, cat, frozen_statistics, relu
from lidarssl.sparse.tensor import SparseTensor
from sparse.reference import dense_convolution, random_sites

CONVENTIONS = ("minkowski", "torchsparse")
sizes = st.one_of(st.integers(1, 5), st.tuples(*[st.integers(1, 4)] * 3))
steps = st.one_of(st.integers(1, 3), st.tuples(*[st.integers(1, 2)] * 3))


def random_input(seed: int, channels: int, count: int = 60, extent: int = 4) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    sites = random_sites(generator, count, extent)
    features = torch.randn(sites.shape[0], channels, generator=generator, dtype=torch.float64)
    return SparseTensor.of(sites, features.requires_grad_())


def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * weight).sum(), inputs)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=sizes,
    stride=steps,
    dilation=st.integers(1, 3),
    convention=st.sampled_from(CONVENTIONS),
    bias=st.booleans(),
)
def test_equals_dense_convolution(seed, size, stride, dilation, convention, bias):
    x = random_input(seed, 3)
    layer = SparseConv3d(3, 2, size, stride, dilation, bias=bias, convention=convention).double()
    y = layer(x)
    expected = dense_convolution(layer, x.coordinates, x.features, y.coordinates)
    if layer.bias is not None:
        expected = expected + layer.bias
    assert torch.allclose(y.features, expected, rtol=0, atol=1e-12)
    for actual, reference in zip(
        gradients(y.features, x.features, layer.kernel),
        gradients(expected, x.features, layer.kernel),
        strict=True,
    ):
        assert torch.allclose(actual, reference, rtol=0, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=sizes,
    stride=steps,
    dilation=st.integers(1, 2),
    convention=st.sampled_from(CONVENTIONS),
)
def test_transposed_is_the_adjoint(seed, size, stride, dilation, convention):
    x = random_input(seed, 3)
    down = SparseConv3d(3, 2, size, stride, dilation, convention=convention).double()
    up = SparseConv3d(2, 3, size, stride, dilation, True, convention=convention).double()
    kernel = down.kernel.detach()
    up.kernel.data.copy_(kernel.transpose(-1, -2))
    y = down(x)
    z = up(y)
    assert z.level == x.level
    other = torch.randn_like(x.features)
    # <up(y), other> = <y, down(other)>
    left = (z.features * other).sum()
    right = (y.features * down(x.with_features(other)).features).sum()
    assert torch.allclose(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (2, 2), (3, 2), (2, 1), ((1, 3, 3), 1)])
def test_gradients_by_differences(size, stride, convention):
    x = random_input(3, 2, count=12, extent=2)
    down = SparseConv3d(2, 2, size, stride, bias=True, convention=convention).double()
    up = SparseConv3d(2, 1, size, stride, transposed=True, convention=convention).double()

    def run(features, first, second):
        with torch.nn.utils.parametrize.cached():
            y = torch.func.functional_call(down, {"kernel": first}, (x.with_features(features),))
            return torch.func.functional_call(up, {"kernel": second}, (y,)).features

    assert torch.autograd.gradcheck(run, (x.features, down.kernel, up.kernel))


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


def test_nothing_in_nothing_out():
    sites, features = torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 3, requires_grad=True)
    x = SparseTensor.of(sites, features)
    down, up = SparseConv3d(3, 4, 2, 2), SparseConv3d(4, 3, 2, 2, transposed=True)
    y = up(relu(SparseConv3d(4, 4, 3)(down(x))))
    assert y.features.shape == (0, 3)
    y.features.sum().backward()
    assert torch.equal(down.kernel.grad, torch.zeros_like(down.kernel))


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
    y = cat(x, ReLU()(x))
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
