from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.losses.contrastive import (
    info_nce,
    multi_match_info_nce,
    near_pixels,
    supervised_info_nce,
)


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


def supervised_brute_force(
    anchors: torch.Tensor, candidates: torch.Tensor, labels: list[int], temperature: float
) -> float:
    total = 0.0
    for anchor, label in zip(anchors.tolist(), labels, strict=True):
        every, positive = 0.0, 0.0
        for candidate, other in zip(candidates.tolist(), labels, strict=True):
            likeness = math.exp(
                sum(a * c for a, c in zip(anchor, candidate, strict=True)) / temperature
            )
            every += likeness
            positive += likeness if other == label else 0.0
        total -= math.log(positive / every)
    return total / len(labels)


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    channels=st.integers(1, 5),
    temperature=st.floats(0.2, 2),
    seed=st.integers(0, 2**16),
)
def test_supervised_equals_brute_force(
    labels: list[int], channels: int, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors, candidates = torch.randn(
        2, len(labels), channels, generator=generator, dtype=torch.float64
    ).unbind()
    expected = supervised_brute_force(anchors, candidates, labels, temperature)
    loss = supervised_info_nce(anchors, candidates, torch.tensor(labels), temperature)
    assert float(loss) == pytest.approx(expected, abs=1e-9)


def random_pairs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, rows, 4, generator=generator, dtype=torch.float64).unbind()


def test_one_class_has_nothing_to_tell_apart() -> None:
    loss = supervised_info_nce(*random_pairs(6), torch.full((6,), 3), 0.07)
    assert float(loss) == pytest.approx(0, abs=1e-12)


def test_every_row_its_own_class_is_info_nce() -> None:
    anchors, candidates = random_pairs(6)
    loss = supervised_info_nce(anchors, candidates, torch.arange(6), 0.07)
    assert float(loss) == pytest.approx(float(info_nce(anchors, candidates, 0.07)), rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 1, 2, 3, 4, 5], math.log(6)), ([0, 0, 0, 7, 7, 7], math.log(2)), ([5], 0.0)],
)
def test_supervised_at_equal_features(labels: list[int], expected: float) -> None:
    same = torch.nn.functional.normalize(torch.ones(len(labels), 8), dim=1)
    loss = supervised_info_nce(same, same, torch.tensor(labels), 0.07)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_supervised_gradients() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1])
    a, b = (part.clone().requires_grad_() for part in random_pairs(5))
    assert torch.autograd.gradcheck(lambda x, y: supervised_info_nce(x, y, labels, 0.2), (a, b))


def test_supervised_without_rows() -> None:
    features = torch.randn(4, 3, requires_grad=True)
    loss = supervised_info_nce(features[:0], features[:0], torch.zeros(0, dtype=torch.int64), 0.07)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros(4, 3))


def test_supervised_of_far_logits_is_finite() -> None:
    """Plain exponentials overflow here, and the positives underflow."""
    rows = 30 * torch.eye(4, requires_grad=True)
    rows.retain_grad()
    loss = supervised_info_nce(rows, rows.roll(1, 0), torch.arange(4), 0.07)
    loss.backward()
    assert loss.item() == pytest.approx(900 / 0.07, rel=1e-5)
    assert bool(rows.grad.isfinite().all())


def test_supervised_refuses() -> None:
    two, labels = torch.ones(2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="temperature"):
        supervised_info_nce(two, two, labels, 0)
    with pytest.raises(ValueError, match="one shape"):
        supervised_info_nce(two, torch.ones(3, 2), labels, 0.07)
    with pytest.raises(ValueError, match="one per anchor"):
        supervised_info_nce(two, two, labels[:1], 0.07)


def multi_match_brute_force(
    anchors: torch.Tensor, candidates: torch.Tensor, matches: torch.Tensor, temperature: float
) -> float:
    total = 0.0
    for rows, columns, pairs in (
        (anchors.tolist(), candidates.tolist(), matches.tolist()),
        (candidates.tolist(), anchors.tolist(), matches.T.tolist()),
    ):
        for row, match in zip(rows, pairs, strict=True):
            likeness = [
                math.exp(sum(a * c for a, c in zip(row, column, strict=True)) / temperature)
                for column in columns
            ]
            total += sum(
                -math.log(one / sum(likeness) + 1e-8) * weight
                for one, weight in zip(likeness, match, strict=True)
            ) / len(rows)
    return total


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    channels=st.integers(1, 4),
    temperature=st.floats(0.3, 2),
    seed=st.integers(0, 2**16),
)
def test_multi_match_equals_brute_force(
    rows: int, columns: int, channels: int, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    candidates = torch.randn(columns, channels, generator=generator, dtype=torch.float64)
    matches = torch.rand(rows, columns, generator=generator) < 0.4
    expected = multi_match_brute_force(anchors, candidates, matches, temperature)
    actual = multi_match_info_nce(anchors, candidates, matches, temperature)
    assert float(actual) == pytest.approx(expected, abs=1e-9)


def test_multi_match_with_one_match_each_is_info_nce_both_ways() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    both = info_nce(a, b, 0.5) + info_nce(b, a, 0.5)
    own = multi_match_info_nce(a, b, torch.eye(6), 0.5, floor=0.0)
    assert float(own) == pytest.approx(float(both))


def test_multi_match_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    matches = torch.rand(5, 4, generator=generator) < 0.5
    assert torch.autograd.gradcheck(lambda x, y: multi_match_info_nce(x, y, matches, 0.2), (a, b))


def test_multi_match_without_matches_is_zero_and_a_hopeless_match_is_bounded() -> None:
    a = torch.tensor([[100.0], [-100.0]], requires_grad=True)
    loss = multi_match_info_nce(a, a.detach(), torch.zeros(2, 2), 0.07)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(a.grad, torch.zeros(2, 1))
    hopeless = multi_match_info_nce(a, a, 1 - torch.eye(2), 0.07)
    assert hopeless.item() == pytest.approx(-2 * math.log(1e-8))
    assert multi_match_info_nce(a[:0], a, torch.zeros(0, 2), 0.07).item() == 0


def test_multi_match_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="must be"):
        multi_match_info_nce(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4, 2), 0.07)
    with pytest.raises(ValueError, match="temperature"):
        multi_match_info_nce(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 2), 0.0)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    distance=st.floats(0, 3),
    seed=st.integers(0, 2**16),
)
def test_near_pixels_equal_brute_force(height: int, width: int, distance: float, seed: int) -> None:
    pixels = torch.rand(5, 2, generator=torch.Generator().manual_seed(seed)).double() * 8 - 1
    near = near_pixels(pixels, height, width, distance)
    for index in range(height * width):
        for point, (x, y) in enumerate(pixels.tolist()):
            away = math.hypot(index % width - x, index // width - y)
            if abs(away - distance) > 1e-9:
                assert bool(near[index, point]) == (away < distance)


def test_a_pixel_at_exactly_the_distance_is_near() -> None:
    near = near_pixels(torch.tensor([[1.0, 1.0]]), 3, 3, 1.0)
    assert near[:, 0].int().tolist() == [0, 1, 0, 1, 1, 1, 0, 1, 0]
