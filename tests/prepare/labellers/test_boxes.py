"""Boxes: overlap and non-maximum suppression against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.prepare.labellers.boxes import box_iou, corners_of, nms

# Whole numbers: overlaps are then exact, and equal boxes and scores are frequent.
corner = st.integers(0, 8)
a_box = st.tuples(corner, corner, corner, corner)


def plain_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0, c[2] - c[0]) * max(0, c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


def plain_nms(
    boxes: list[tuple[float, ...]], scores: list[float], threshold: float, groups: list[int]
) -> list[int]:
    left = sorted(range(len(boxes)), key=lambda index: -scores[index])
    kept = []
    while left:
        best, *left = left
        kept.append(best)
        left = [
            other
            for other in left
            if groups[other] != groups[best] or plain_iou(boxes[best], boxes[other]) <= threshold
        ]
    return kept


def tensor(boxes: list[tuple[float, ...]]) -> torch.Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


@settings(deadline=None)
@given(st.lists(a_box, max_size=6), st.lists(a_box, max_size=6))
def test_iou_is_that_of_a_plain_loop(first: list[tuple[int, ...]], second: list[tuple[int, ...]]):
    found = box_iou(tensor(first), tensor(second))
    assert found.shape == (len(first), len(second))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            assert float(found[i, j]) == pytest.approx(plain_iou(a, b), abs=1e-12)


@settings(deadline=None)
@given(
    st.lists(st.tuples(a_box, st.integers(0, 4), st.integers(0, 1)), max_size=14),
    st.sampled_from([0.0, 0.3, 0.51, 0.9, 1.0]),
    st.booleans(),
)
def test_nms_is_that_of_a_plain_loop(
    given_boxes: list[tuple[tuple[int, ...], int, int]], threshold: float, grouped: bool
):
    boxes = [one[0] for one in given_boxes]
    scores = [float(one[1]) for one in given_boxes]
    groups = [one[2] if grouped else 0 for one in given_boxes]
    kept = nms(
        tensor(boxes), torch.tensor(scores), threshold,
        torch.tensor(groups, dtype=torch.int64) if grouped else None,
    )  # fmt: skip
    assert kept.tolist() == plain_nms(boxes, scores, threshold, groups)


def test_of_equal_scores_the_first_wins():
    boxes = torch.tensor([[0.0, 0, 2, 2]] * 3)
    assert nms(boxes, torch.ones(3), 0.5).tolist() == [0]


def test_many_equal_scores_stay_in_order():
    boxes = torch.stack([torch.tensor([float(i), 0, i + 1.0, 1]) for i in range(100)])
    assert nms(boxes, torch.ones(100), 0.5).tolist() == list(range(100))


def test_corners():
    boxes = torch.tensor([[[2.0, 3.0, 4.0, 2.0]]])
    assert corners_of(boxes).tolist() == [[[0.0, 2.0, 4.0, 4.0]]]
