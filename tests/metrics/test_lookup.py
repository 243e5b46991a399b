from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.metrics.lookup import (
    LookupBins,
    count_cells,
    fit_lookup,
    predict,
    table_from_counts,
)
from lidarssl.metrics.segmentation import confusion, iou_report

BINS = LookupBins(height=(0.0, 1.0), range=(10.0,), intensity=(0.5,))


def cloud(rows: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor]:
    """Points at (range, height, intensity)."""
    columns = torch.tensor(rows)
    points = torch.stack([-columns[:, 0], torch.zeros(len(rows)), columns[:, 1]], dim=1)
    return points, columns[:, 2]


def test_a_cell_takes_its_most_frequent_class() -> None:
    points, intensity = cloud([(5, 0.5, 0.1)] * 3 + [(5, 0.5, 0.9)])
    table = fit_lookup(points, intensity, torch.tensor([1, 1, 2, 2]), 3, BINS, balance=0)
    assert predict(table, points, intensity).tolist() == [1, 1, 1, 2]


def test_an_empty_cell_forgets_intensity_then_range() -> None:
    seen, intensity = cloud([(5, 0.5, 0.1), (5, 2.0, 0.1), (5, 2.0, 0.1), (50, 2.0, 0.1)])
    table = fit_lookup(seen, intensity, torch.tensor([1, 2, 2, 3]), 4, BINS, balance=0)
    asked, other = cloud([(5, 0.5, 0.9), (50, 0.5, 0.9), (50, 2.0, 0.9), (5, -3.0, 0.9)])
    assert predict(table, asked, other).tolist() == [1, 1, 3, 2]


def test_the_ignored_class_is_never_predicted() -> None:
    points, intensity = cloud([(5, 0.5, 0.1)] * 9)
    table = fit_lookup(points, intensity, torch.tensor([0] * 8 + [2]), 3, BINS)
    assert predict(table, points, intensity).unique().tolist() == [2]


def test_balance_favours_rare_classes() -> None:
    points, intensity = cloud([(5, 0.5, 0.1)] * 5 + [(5, 2.0, 0.1)] * 95)
    labels = torch.tensor([2, 2, 1, 1, 1] + [1] * 95)
    frequent = fit_lookup(points, intensity, labels, 3, BINS, balance=0)
    typical = fit_lookup(points, intensity, labels, 3, BINS, balance=1)
    assert predict(frequent, points, intensity)[0] == 1
    assert predict(typical, points, intensity)[0] == 2


def test_counts_add_up_over_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    points = 10 * torch.randn(300, 3, generator=generator)
    intensity, labels = (
        torch.rand(300, generator=generator),
        torch.randint(4, (300,), generator=generator),
    )
    bins = LookupBins.from_points(points, intensity)
    parts = sum(count_cells(points[i::2], intensity[i::2], labels[i::2], 4, bins) for i in range(2))
    whole = count_cells(points, intensity, labels, 4, bins)
    assert torch.equal(parts, whole)
    assert int(whole.sum()) == 300
    fitted = fit_lookup(points, intensity, labels, 4, bins)
    assert torch.equal(table_from_counts(whole, bins).classes, fitted.classes)


def test_bins_follow_the_points() -> None:
    points, intensity = cloud([(r, z / 10, r) for r in range(1, 51) for z in range(-20, 21)])
    bins = LookupBins.from_points(points, intensity, 0.1, 5.0, 4)
    assert bins.height[0] == pytest.approx(-2)
    assert bins.height[-1] == pytest.approx(2)
    assert np.diff(bins.height) == pytest.approx(0.1)
    assert bins.intensity == pytest.approx((13, 25.5, 38))
    only_height = LookupBins.from_points(points, intensity, 0.1, 0, 1)
    assert only_height.shape == (42, 1, 1)


def test_constant_intensity_is_one_edge() -> None:
    points, intensity = cloud([(r, 0.0, 0.3) for r in range(1, 9)])
    assert len(LookupBins.from_points(points, intensity).intensity) == 1


def test_refuses_nothing_to_learn_from() -> None:
    points, intensity = cloud([(5, 0.5, 0.1)])
    with pytest.raises(DataError, match="no labelled point"):
        fit_lookup(points, intensity, torch.tensor([0]), 3)
    with pytest.raises(DataError, match="no points"):
        LookupBins.from_points(points[:0], intensity[:0])


def test_each_quantity_helps_where_it_separates() -> None:
    """Class by range alone: a table of heights is at chance, one with ranges perfect."""
    generator = torch.Generator().manual_seed(0)
    distance, height, intensity = torch.rand(3, 4000, generator=generator)
    points = torch.stack([50 * distance, torch.zeros(4000), height], dim=1)
    labels = 1 + (distance > 0.5).long()
    scores = []
    for range_step in (0.0, 5.0):
        bins = LookupBins.from_points(points, intensity, 0.1, range_step, 1)
        table = fit_lookup(points[::2], intensity[::2], labels[::2], 3, bins)
        predicted = predict(table, points[1::2], intensity[1::2])
        scores.append(iou_report(confusion(predicted, labels[1::2], 3)).miou)
    assert scores[0] < 0.5
    assert scores[1] > 0.99
