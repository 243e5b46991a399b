"""Distances of unit features against closed formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.losses.distillation import unit_distance


def features(seed: int, count: int = 9, channels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, count, channels, generator=generator, dtype=torch.float64)
    return both[0], both[1]


@given(seed=st.integers(0, 999), count=st.integers(1, 20), channels=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_distance_of_the_law_of_cosines(seed: int, count: int, channels: int) -> None:
    points, pixels = features(seed, count, channels)
    cosine = (points * pixels).sum(1) / (points.norm(dim=1) * pixels.norm(dim=1))
    expected = (2 - 2 * cosine.clamp(-1, 1)).sqrt()
    torch.testing.assert_close(unit_distance(points, pixels), expected, rtol=1e-6, atol=1e-7)


def test_lengths_do_not_matter() -> None:
    points, pixels = features(1)
    expected = unit_distance(points, pixels)
    torch.testing.assert_close(unit_distance(1e-6 * points, 1e6 * pixels), expected)


def test_opposite_and_orthogonal() -> None:
    axes = torch.eye(3)
    assert unit_distance(axes, -3 * axes).tolist() == pytest.approx([2.0] * 3)
    assert unit_distance(axes, axes.roll(1, 0)).tolist() == pytest.approx([math.sqrt(2)] * 3)
    assert unit_distance(axes, 7 * axes).tolist() == [0.0] * 3


def test_gradient_of_the_distance_itself() -> None:
    """d/dp sqrt(2 - 2 cos) = -(u_q - cos u_p) / (|p| sqrt(2 - 2 cos))."""
    points, pixels = features(2)
    points.requires_grad_()
    distance = unit_distance(points, pixels)
    distance.sum().backward()
    with torch.no_grad():
        length = points.norm(dim=1, keepdim=True)
        own, other = points / length, pixels / pixels.norm(dim=1, keepdim=True)
        cosine = (own * other).sum(1, keepdim=True)
        expected = -(other - cosine * own) / (length * distance[:, None])
    assert points.grad is not None
    torch.testing.assert_close(points.grad, expected)
    assert torch.autograd.gradcheck(unit_distance, (points, pixels.requires_grad_()))


def test_equal_features_have_a_gradient_of_zero() -> None:
    points = features(3)[0].requires_grad_()
    unit_distance(points, 2 * points.detach()).sum().backward()
    assert points.grad is not None
    assert not points.grad.any()


def test_features_of_zero() -> None:
    """The zero vector has no direction: it stays at the origin, one away from every other."""
    zeros, others = torch.zeros(4, 3, requires_grad=True), torch.eye(4, 3) + 1
    distance = unit_distance(zeros, others)
    assert distance.tolist() == pytest.approx([1.0] * 4)
    distance.sum().backward()
    assert zeros.grad is not None
    assert zeros.grad.isfinite().all()
    both = unit_distance(zeros, torch.zeros(4, 3))
    assert both.tolist() == [0.0] * 4
    both.sum().backward()
    assert zeros.grad.isfinite().all()


def test_no_pair() -> None:
    nothing = unit_distance(torch.zeros(0, 4), torch.zeros(0, 4))
    assert nothing.shape == (0,)
