"""What every implementation of sparse convolution computes, against dense ones in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.sparse.backends.choice import backend
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.spconv import SpconvConv3d
from lidarssl.sparse.tensor import SparseTensor
from sparse.backends import BACKENDS, Backend
from sparse.reference import CONVENTIONS, dense_convolution, random_input
from sparse.test_spconv import by_conv3d, grid_input, threes

sizes = st.one_of(st.integers(1, 5), st.tuples(*[st.integers(1, 4)] * 3))
steps = st.one_of(st.integers(1, 3), st.tuples(*[st.integers(1, 2)] * 3))
every_backend = pytest.mark.parametrize("by", BACKENDS)


def examples(by: Backend, count: int) -> settings:
    return settings(max_examples=max(1, round(count * by.effort)), deadline=None)


def moved(x: SparseTensor, by: Backend) -> SparseTensor:
    """The same sites, without pairs yet, and features for a backend."""
    features = x.features.detach().to(by.device, by.dtype).requires_grad_(by.trains)
    return SparseTensor.of(x.coordinates.to(by.device), features, shape=x.shape)


def run(layer: torch.nn.Module, x: SparseTensor, by: Backend) -> SparseTensor:
    with backend(by.name), torch.set_grad_enabled(by.trains):
        return layer.to(by.device, by.dtype)(x)


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    return torch.autograd.grad((output * weight.view_as(output)).sum(), inputs)


def assert_equal(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=atol)


@every_backend
def test_equals_dense_convolution(by):
    @examples(by, 60)
    @given(
        seed=st.integers(0, 10_000),
        size=sizes,
        stride=steps,
        dilation=st.integers(1, 3),
        convention=st.sampled_from(CONVENTIONS),
        bias=st.booleans(),
    )
    def check(seed, size, stride, dilation, convention, bias):
        x = random_input(seed, 3)
        layer = SparseConv3d(3, 2, size, stride, dilation, bias=bias, convention=convention)
        ours = moved(x, by)
        y = run(layer, ours, by)
        found = gradients(y.features, ours.features, layer.kernel) if by.trains else ()
        layer.to("cpu", torch.float64)
        expected = dense_convolution(layer, x.coordinates, x.features, y.coordinates.cpu())
        if layer.bias is not None:
            expected = expected + layer.bias
        assert_equal(y.features, expected, by.atol)
        for actual, reference in zip(
            found, gradients(expected, x.features, layer.kernel), strict=by.trains
        ):
            assert_equal(actual, reference, 10 * by.atol)

    check()


@every_backend
def test_equals_dense_convolution_on_a_grid_with_borders(by):
    @examples(by, 30)
    @given(
        seed=st.integers(0, 10_000),
        shape=st.tuples(*[st.integers(5, 8)] * 3),
        size=threes.filter(lambda size: max(size) > 1),
        stride=threes,
        padding=st.tuples(*[st.integers(0, 2)] * 3),
        dilation=st.integers(1, 2),
    )
    def check(seed, shape, size, stride, padding, dilation):
        x = grid_input(seed, shape)
        layer = SpconvConv3d(3, 2, size, stride, padding, dilation)
        ours = moved(x, by)
        y = run(layer, ours, by)
        found = gradients(y.features, ours.features, layer.weight) if by.trains else ()
        layer.to("cpu", torch.float64)
        dense, reads = by_conv3d(layer, x)
        assert_equal(y.features, dense[reads], by.atol)
        for actual, reference in zip(
            found, gradients(dense[reads], x.features, layer.weight), strict=by.trains
        ):
            assert_equal(actual, reference, 10 * by.atol)

    check()


@every_backend
def test_transposed_is_the_adjoint(by):
    @examples(by, 30)
    @given(
        seed=st.integers(0, 10_000),
        size=sizes,
        stride=steps,
        dilation=st.integers(1, 2),
        convention=st.sampled_from(CONVENTIONS),
    )
    def check(seed, size, stride, dilation, convention):
        x = moved(random_input(seed, 3), by)
        down = SparseConv3d(3, 2, size, stride, dilation, convention=convention)
        up = SparseConv3d(2, 3, size, stride, dilation, True, convention=convention)
        up.kernel.data.copy_(down.kernel.detach().transpose(-1, -2))
        y = run(down, x, by)
        z = run(up, y, by)
        assert z.level == x.level
        other = torch.randn_like(x.features)
        # <up(y), other> = <y, down(other)>
        left = (z.features * other).sum().item()
        right = (y.features * run(down, x.with_features(other), by).features).sum().item()
        assert left == pytest.approx(right, rel=10 * by.atol, abs=100 * by.atol)

    check()


@every_backend
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (2, 2), (3, 2), (2, 1), ((1, 3, 3), 1)])
def test_gradients_by_differences(by, size, stride, convention):
    if by.dtype != torch.float64:
        pytest.skip("differences need float64")
    count, extent = (12, 2) if by.effort == 1 else (4, 1)
    x = moved(random_input(3, 2, count, extent), by)
    down = SparseConv3d(2, 2, size, stride, bias=True, convention=convention)
    up = SparseConv3d(2, 1, size, stride, transposed=True, convention=convention)
    down, up = (layer.to(by.device, by.dtype) for layer in (down, up))

    def forward(features, first, second):
        y = torch.func.functional_call(down, {"kernel": first}, (x.with_features(features),))
        return torch.func.functional_call(up, {"kernel": second}, (y,)).features

    # Every difference is a run: where these are slow, along random directions only.
    with backend(by.name):
        assert torch.autograd.gradcheck(
            forward, (x.features, down.kernel, up.kernel), fast_mode=by.effort < 1
        )


@every_backend
def test_nothing_in_nothing_out(by):
    sites, features = torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 3)
    x = moved(SparseTensor.of(sites, features), by)
    down, up = SparseConv3d(3, 4, 2, 2), SparseConv3d(4, 3, 2, 2, transposed=True)
    y = run(up, run(SparseConv3d(4, 4, 3), run(down, x, by), by), by)
    assert y.features.shape == (0, 3)
    if by.trains:
        y.features.sum().backward()
        assert torch.equal(down.kernel.grad, torch.zeros_like(down.kernel))


@every_backend
def test_a_site_without_neighbours_reads_itself(by):
    x = moved(SparseTensor.of(torch.tensor([[0, 5, -7, 2]]), torch.ones(1, 2)), by)
    for size in (3, 5, (3, 1, 1)):
        layer = SparseConv3d(2, 4, size)
        y = run(layer, x, by).features
        centre = layer.kernel[layer.kernel.shape[0] // 2]
        torch.testing.assert_close(y, x.features @ centre)
        if by.trains:
            (grad,) = gradients(y, layer.kernel)
            assert torch.equal(
                grad.flatten(1).any(1).nonzero()[:, 0].cpu(), torch.tensor([len(grad) // 2])
            )
