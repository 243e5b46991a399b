"""The parts of NCLR against plain versions of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.frame import Matches, PointFeatures
from lidarssl.geometry.projection import pinhole
from lidarssl.losses.pose import mean_cross_entropy, pose_sum
from lidarssl.methods.soft_matching import (
    CrossAttention,
    Fusion,
    StepDraws,
    Winner,
    choose_keypoints,
    first_points,
    pair_of,
    rays,
    soft_cells,
)


def draws(seed: int = 0, first_image: int = 0, replacement: bool = False) -> StepDraws:
    return StepDraws(torch.Generator().manual_seed(seed), first_image, replacement)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from(["first", "last"]))
def test_pair_of_against_a_search(data: st.DataObject, winner: Winner) -> None:
    small = st.integers(0, 4)
    rows = data.draw(st.lists(st.tuples(small, st.integers(0, 2)), max_size=20))
    asked = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=10))
    table = torch.tensor(rows, dtype=torch.int64).view(-1, 2)
    pairs = Matches(table[:, 0], table[:, 1], table[:, 0], table[:, 0])
    want = torch.tensor(asked, dtype=torch.int64).view(-1, 2)
    found = pair_of(want[:, 0], want[:, 1], pairs, winner)
    for (token, image), pair in zip(asked, found.tolist(), strict=True):
        same = [row for row, key in enumerate(rows) if key == (token, image)]
        assert pair == ((same[0] if winner == "first" else same[-1]) if same else -1)


def test_soft_cells_against_the_definition() -> None:
    points, cells = normal(5, 6), normal(3 * 4, 6, seed=1)
    found, certainty = soft_cells(points, cells, 4, 0.5)
    for row, point in enumerate(points):
        weights = torch.tensor([float(torch.exp(point @ cell / 0.5)) for cell in cells])
        weights = (weights / weights.sum()).double()
        x = sum(float(weights[y * 4 + x]) * x for y in range(3) for x in range(4))
        y = sum(float(weights[y * 4 + x]) * y for y in range(3) for x in range(4))
        torch.testing.assert_close(found[row].tolist(), [x, y], rtol=1e-5, atol=1e-5)
        assert float(certainty[row]) == pytest.approx(float(weights.max()), rel=1e-5)


def test_soft_cells_of_many_points_are_those_of_each() -> None:
    points, cells = normal(2500, 4), normal(6, 4, seed=1)
    found, _ = soft_cells(points, cells, 3, 0.1)
    alone, _ = soft_cells(points[2345:2346], cells, 3, 0.1)
    torch.testing.assert_close(found[2345:2346], alone)


def test_attention_against_the_definition() -> None:
    attention, rows, others = CrossAttention(4).double(), normal(3, 4), normal(5, 4, seed=1)
    score = attention.query(rows) @ attention.key(others).T / 2  # sqrt of 4 channels
    expected = torch.softmax(score, 1) @ attention.value(others)
    torch.testing.assert_close(attention(rows, others), expected)


def test_cells_without_a_point_stay_alone() -> None:
    fusion = Fusion(4).double()
    points, cells = fusion(normal(0, 4), normal(6, 4))
    assert points.shape == (0, 4)
    torch.testing.assert_close(cells, fusion.cell_projection(normal(6, 4)))


@pytest.mark.parametrize(
    ("scores", "above", "enough"),
    [
        ([0.95] * 9 + [0.8] * 3, range(9), True),  # more than asked for
        ([0.95] * 8 + [0.8] * 4, range(8), True),  # exactly
        ([0.95] * 3 + [0.1] * 9, range(3), True),
        ([0.95] * 2 + [0.8] * 4 + [0.1] * 6, range(6), True),  # the second threshold
        ([0.95] + [0.8] + [0.5] * 10, range(2), False),  # the best, which are not enough
    ],
)
def test_keypoints_are_of_high_overlap(scores: list[float], above: range, enough: bool) -> None:
    chosen, good = choose_keypoints(torch.tensor(scores), 8, (0.9, 0.7), 3, 0, draws())
    assert chosen.shape == (8,)
    assert good is enough
    assert set(chosen.tolist()) <= set(above)
    assert len(set(chosen.tolist())) == min(8, len(above))


def test_keypoints_of_few_points() -> None:
    chosen, good = choose_keypoints(torch.tensor([0.1]), 8, (0.9,), 3, 0, draws())
    assert chosen.tolist() == [0] * 8
    assert not good


def test_draws_of_an_image_do_not_depend_on_how_images_are_shared_out() -> None:
    one, second = draws(), draws(first_image=2)
    for use in (
        lambda made, image: made.tokens(image, 50, 20),
        lambda made, image: made.keypoints(image, 50, 20),
        lambda made, image: made.repeats(image, 50, 20),
    ):
        assert torch.equal(use(one, 2), use(second, 0))
        assert not torch.equal(use(one, 0), use(one, 1))
    assert torch.equal(one.pairs(30, 10), second.pairs(30, 10))


def test_tokens_are_different_unless_replaced() -> None:
    assert len(torch.unique(draws().tokens(0, 50, 40))) == 40
    assert len(draws().tokens(0, 30, 40)) == 30
    replaced = draws(replacement=True).tokens(0, 30, 40)
    assert len(replaced) == 40
    assert len(torch.unique(replaced)) < 40
    assert len(draws(replacement=True).tokens(0, 0, 40)) == 0


def test_first_points() -> None:
    tokens = PointFeatures(
        torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4), torch.tensor([2, 0, 2, 0, 3])
    )
    assert first_points(tokens).tolist() == [1, 5, 0, 4]


def test_rays_project_back() -> None:
    intrinsics = torch.tensor([[30.0, 0, 18], [0, 31, 10], [0, 0, 1]], dtype=torch.float64)
    cells = normal(2, 5, 2)
    found = rays(cells, intrinsics.repeat(2, 1, 1))
    for image in range(2):
        points = torch.cat([found[image], torch.ones(5, 1)], 1) * 7.0
        torch.testing.assert_close(pinhole(points, intrinsics).uv, cells[image])


def test_pose_sum_counts_valid_poses_alone() -> None:
    turned, truth = normal(2, 3, 3), normal(2, 3, 3, seed=1)
    moved, place = 5 * normal(2, 3), normal(2, 3, seed=1)
    total, count = pose_sum(turned, moved, truth, place, torch.tensor([True, False]), 0.01)

    def smooth(difference: float) -> float:
        size = abs(difference)
        return size - 0.5 if size > 1 else 0.5 * size**2

    expected = sum(smooth(d) for d in (turned[0] - truth[0]).flatten().tolist()) / 9
    expected += 0.01 * sum(smooth(d) for d in (moved[0] - place[0]).tolist()) / 3
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert count.item() == 1


def test_mean_cross_entropy_of_nothing_is_zero() -> None:
    logits = torch.tensor([0.3, -1.2], dtype=torch.float64)
    truth = torch.tensor([True, False])
    found, nothing = mean_cross_entropy((logits, truth), (logits[:0], truth[:0]))
    p = torch.sigmoid(logits)
    expected = -(torch.log(p[0]) + torch.log(1 - p[1])) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    assert nothing.item() == 0
