from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.losses import balanced_sampling
from lidarssl.losses.balanced_sampling import (
    balanced_weights,
    bandwidth,
    range_bins,
    range_density,
    weighted_choice,
)

BINS = st.lists(st.integers(0, 40), min_size=2, max_size=40).filter(lambda b: len(set(b)) > 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("rounding", "expected"), [("floor", [5, 0, 1, 2]), ("round", [5, 0, 2, 2])]
)
def test_bins(rounding: balanced_sampling.Rounding, expected: list[int]) -> None:
    """Height does not count; 0.5, 1.5 and 2.5 rings round to the even number."""
    points = torch.tensor([[3.0, -4, 9], [0, 0.5, 0], [1.5, 0, 0], [0, -2.5, 1]])
    assert range_bins(points, 1.0, rounding).tolist() == expected
    assert range_bins(points * 0.5, 0.5, rounding).tolist() == expected


def test_bins_are_those_of_cylindrical_voxels() -> None:
    points = torch.randn(5000, 3, generator=seeded()) * 20
    x, y = points[:, 0], points[:, 1]
    expected = torch.floor(torch.sqrt(x * x + y * y) / torch.tensor(0.1)).long()
    assert torch.equal(range_bins(points, 0.1, "floor"), expected)


def test_bins_refuse() -> None:
    with pytest.raises(ValueError, match="size"):
        range_bins(torch.zeros(1, 3), 0.0, "floor")
    with pytest.raises(ValueError, match="rounding"):
        range_bins(torch.zeros(1, 3), 1.0, "ceil")  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(bins=BINS)
def test_density_equals_brute_force(bins: list[int]) -> None:
    mean = sum(bins) / len(bins)
    deviation = math.sqrt(sum((b - mean) ** 2 for b in bins) / (len(bins) - 1))
    width = 1.06 * deviation * len(bins) ** (-1 / 5)
    expected = [
        sum(math.exp(-0.5 * ((b - other) / width) ** 2) for other in bins)
        / (len(bins) * width * math.sqrt(2 * math.pi))
        for b in bins
    ]
    assert float(bandwidth(torch.tensor(bins))) == pytest.approx(width, rel=1e-12)
    assert range_density(torch.tensor(bins)).tolist() == pytest.approx(expected, rel=1e-10)


def test_density_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    bins = torch.randint(0, 50, (300,), generator=seeded())
    whole = range_density(bins)
    monkeypatch.setattr(balanced_sampling, "KERNEL_VALUES", 120)
    assert torch.allclose(range_density(bins), whole, rtol=1e-14)


@pytest.mark.parametrize("bins", [[], [7], [7, 7, 7]])
def test_density_without_spread_is_constant(bins: list[int]) -> None:
    """The bandwidth is 0 (or not defined): dividing by it gives NaN."""
    density = range_density(torch.tensor(bins, dtype=torch.int64))
    assert density.tolist() == [1.0] * len(bins)
    assert density.dtype is torch.float64


def test_weights() -> None:
    bins, labels = torch.tensor([1, 1, 2, 9]), torch.tensor([4, 4, 0, 4])
    density = range_density(bins)
    counts = torch.tensor([3, 3, 1, 3])
    assert torch.allclose(balanced_weights(bins, labels), 1 / (density * counts), rtol=1e-14)
    assert torch.allclose(balanced_weights(bins, labels, by_class=False), 1 / density, rtol=1e-14)
    assert torch.allclose(
        balanced_weights(bins, labels, by_range=False), 1 / counts.double(), rtol=1e-14
    )
    neither = balanced_weights(bins, labels, by_range=False, by_class=False)
    assert neither.tolist() == [1.0] * 4


def test_weights_of_one_class_at_one_range_are_uniform() -> None:
    weights = balanced_weights(torch.full((5,), 3), torch.full((5,), 2))
    assert weights.tolist() == pytest.approx([0.2] * 5)


def test_weights_refuse() -> None:
    with pytest.raises(ValueError, match="one shape"):
        balanced_weights(torch.zeros(3), torch.zeros(2))


def probabilities(weights: list[float], number: int) -> dict[tuple[int, ...], float]:
    """Of every ordered draw, each proportional to the weights that are left."""
    result = {}
    for order in itertools.permutations(range(len(weights)), number):
        chance, left = 1.0, sum(weights)
        for row in order:
            chance *= weights[row] / left
            left -= weights[row]
        result[order] = chance
    return result


@pytest.mark.parametrize("number", [1, 2, 3])
def test_draws_have_the_exact_probabilities(number: int) -> None:
    weights, draws, generator = [0.5, 1.0, 2.0, 4.0], 20_000, seeded(5)
    drawn = dict.fromkeys(probabilities(weights, number), 0)
    for _ in range(draws):
        row = weighted_choice(torch.tensor(weights), number, generator)
        drawn[tuple(row.tolist())] += 1
    for order, chance in probabilities(weights, number).items():
        deviation = math.sqrt(draws * chance * (1 - chance))
        assert abs(drawn[order] - draws * chance) < 4 * deviation, order


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-300, 1e-6, 1.0, 1e300]), max_size=30),
    number=st.integers(0, 40),
    seed=st.integers(0, 2**16),
)
def test_draws_are_distinct_and_those_of_weight_zero_come_last(
    weights: list[float], number: int, seed: int
) -> None:
    rows = weighted_choice(torch.tensor(weights, dtype=torch.float64), number, seeded(seed))
    assert rows.dtype is torch.int64
    assert len(rows) == len(set(rows.tolist())) == min(number, len(weights))
    positive = [weights[row] > 0 for row in rows.tolist()]
    assert positive == sorted(positive, reverse=True)


def test_rows_of_weight_zero_are_drawn_uniformly() -> None:
    generator = seeded(1)
    last = [int(weighted_choice(torch.tensor([1.0, 0, 0, 0]), 2, generator)[1]) for _ in range(900)]
    assert [last.count(row) for row in range(4)] == pytest.approx([0, 300, 300, 300], abs=60)


def test_draws_follow_the_generator() -> None:
    weights = torch.rand(1000, generator=seeded())
    first, same, other = (weighted_choice(weights, 50, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_more_rows_than_multinomial_takes() -> None:
    rows = weighted_choice(torch.ones(2**24 + 1, dtype=torch.float32), 3, seeded())
    assert len(set(rows.tolist())) == 3


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_draws_refuse(weight: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        weighted_choice(torch.tensor([1.0, weight]), 1, seeded())
    with pytest.raises(ValueError, match="number"):
        weighted_choice(torch.ones(2), -1, seeded())


@pytest.mark.parametrize("scale", [-1, 2**40])
def test_values_that_are_sorted_count_as_those_that_are_counted(scale: int) -> None:
    bins, labels = torch.arange(60) % 7, torch.arange(60) % 4
    by_class = balanced_weights(bins, labels, by_range=False)
    assert torch.equal(balanced_weights(bins, labels * scale, by_range=False), by_class)
    ratio = balanced_weights(bins * scale, labels) / balanced_weights(bins, labels)
    assert torch.allclose(ratio, ratio.new_tensor(abs(scale)), rtol=1e-12)
