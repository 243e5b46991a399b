from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.losses.contrastive import info_nce


def brute_force(anchors: torch.Tensor, candidates: torch.Tensor, temperature: float) -> float:
    total = 0.0
    for row, anchor in enumerate(anchors.tolist()):
        logits = [
            sum(a * c for a, c in zip(anchor, candidate, strict=True)) / temperature
            for candidate in candidates.tolist()
        ]
        largest = max(logits)
        partition = math.log(sum(math.exp(x - largest) for x in logits)) + largest
        total += partition - logits[row]
    return total / len(anchors)


def test_identity_features() -> None:
    """Hand-checkable: log(1 + exp(-1 / 0.07))."""
    eye = torch.eye(2, dtype=torch.float64)
    assert float(info_nce(eye, eye, 0.07)) == pytest.approx(6.2487e-07, rel=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_equal_features_score_chance(rows: int) -> None:
    same = torch.nn.functional.normalize(torch.ones(rows, 8), dim=1)
    assert float(info_nce(same, same, 0.07)) == pytest.approx(math.log(rows), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    channels=st.integers(1, 5),
    temperature=st.floats(0.05, 2),
    seed=st.integers(0, 2**16),
)
def test_equals_brute_force(rows: int, channels: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors, candidates = torch.randn(
        2, rows, channels, generator=generator, dtype=torch.float64
    ).unbind()
    expected = brute_force(anchors, candidates, temperature)
    assert float(info_nce(anchors, candidates, temperature)) == pytest.approx(expected, abs=1e-9)


def test_anchors_choose_among_candidates_and_not_the_reverse() -> None:
    anchors = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    forward, backward = info_nce(anchors, candidates, 1.0), info_nce(candidates, anchors, 1.0)
    assert float(forward) == pytest.approx(math.log(1 + math.e) - 0.5)
    assert float(backward) == pytest.approx((2 * math.log(2)) / 2)


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    a, b = (part.clone().requires_grad_() for part in rows)
    assert torch.autograd.gradcheck(lambda x, y: info_nce(x, y, 0.2), (a, b))


def test_no_rows_is_a_zero_loss_with_gradients() -> None:
    features = torch.randn(4, 3, requires_grad=True)
    loss = info_nce(features[:0], features[:0], 0.07)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros(4, 3))


def test_half_precision_features_give_a_finite_float32_loss() -> None:
    rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = info_nce(rows, rows, 0.01)
    assert loss.dtype is torch.float32
    assert bool(loss.isfinite())


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_refuses_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        info_nce(torch.ones(2, 2), torch.ones(2, 2), temperature)


def test_refuses_unpaired_rows() -> None:
    with pytest.raises(ValueError, match="one shape"):
        info_nce(torch.ones(2, 3), torch.ones(3, 3), 0.07)
