"""The largest response of neighbours against all of them written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.backbones import neighbourhood
from lidarssl.backbones.neighbourhood import largest_response

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def written_out(
    values: Tensor, neighbours: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> Tensor:
    difference = values[neighbours] - values[:, None]
    responses = (difference @ scale.t() + shift).relu() @ weight.t()
    largest: Tensor = responses.max(1).values
    return largest


def inputs(seed: int, count: int, pairs: int, hidden: int = 6, channels: int = 7) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    neighbours = torch.randint(max(count, 1), (count, pairs), generator=generator)
    return normal(count, 3), neighbours, normal(hidden, 3), normal(hidden), normal(channels, hidden)


def compare(case: Inputs) -> None:
    actual, expected = largest_response(*case), written_out(*case)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    learned = [one for one in case if one.requires_grad]
    towards = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1)).double()
    for one, other in zip(
        torch.autograd.grad(actual, learned, towards),
        torch.autograd.grad(expected, learned, towards),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@given(
    seed=st.integers(0, 99), count=st.integers(0, 30), pairs=st.integers(1, 9),
    hidden=st.integers(1, 9), channels=st.integers(1, 9), rows=st.integers(1, 40),
    few=st.booleans(),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_equal_to_all_responses(
    seed: int, count: int, pairs: int, hidden: int, channels: int, rows: int, few: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(neighbourhood._ROWS, "cpu", rows)
        patch.setattr(neighbourhood, "_few_are_faster", lambda gradient: few)
        compare(inputs(seed, count, pairs, hidden, channels))


def test_more_neighbours_than_a_byte_counts() -> None:
    for pairs in (255, 256, 300):
        compare(inputs(0, 5, pairs))


@pytest.mark.parametrize("few", [False, True])
def test_of_equal_neighbours_the_first_has_the_gradient(
    few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbourhood, "_few_are_faster", lambda gradient: few)
    values = torch.tensor([[0.0], [2.0], [2.0]], requires_grad=True)
    layer = torch.ones(1, 1)
    near = torch.tensor([[2, 1], [1, 1], [2, 2]])
    largest_response(values, near, layer, torch.zeros(1), layer)[0].sum().backward()
    assert values.grad is not None
    assert values.grad[:, 0].tolist() == [-1.0, 0.0, 1.0]


def test_nothing_wide_is_kept() -> None:
    """Of 4000 pairs of 64 channels, less than a quarter of the values of one layer."""
    case = inputs(0, 500, 8, 64, 64)
    kept: list[Tensor] = []

    def keep(one: Tensor) -> Tensor:
        kept.append(one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        largest_response(*case)
    assert sum(one.numel() for one in kept) < 500 * 8 * 64 / 4


def test_autocast_products_and_gradients() -> None:
    case = inputs(0, 50, 8, 32, 32)
    single = [one.detach().float().requires_grad_() if one.requires_grad else one for one in case]
    with torch.autocast("cpu", torch.bfloat16):
        actual = largest_response(*single)
    assert actual.dtype == torch.bfloat16
    expected = written_out(*case)
    actual.float().sum().backward()
    expected.sum().backward()
    error = (actual.double() - expected).norm() / expected.norm()
    assert float(error.detach()) < 0.02
    for one, other in zip(single, case, strict=True):
        if other.grad is not None:
            assert one.grad is not None
            assert one.grad.dtype == torch.float32
            assert float((one.grad - other.grad).norm() / other.grad.norm()) < 0.1


def test_without_gradients_the_same() -> None:
    case = inputs(1, 20, 4)
    with torch.no_grad():
        assert torch.equal(largest_response(*case), largest_response(*case).detach())
        torch.testing.assert_close(largest_response(*case), written_out(*case))
