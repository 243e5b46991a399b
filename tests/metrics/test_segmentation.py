from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.metrics.segmentation import (
    PROTOCOLS,
    confusion,
    confusion_by_distance,
    iou_report,
)

TOY = torch.tensor([[5, 1, 0, 0], [2, 10, 1, 0], [0, 3, 7, 0], [0, 0, 0, 0]])


def random_points(points: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(classes, (2, points), generator=generator).unbind()


def test_toy_case_of_slidr() -> None:
    report = iou_report(TOY, "slidr")
    assert report.iou[1:].tolist() == pytest.approx([0.6250, 7 / 11, 1.0])
    assert report.miou == pytest.approx(0.753788, abs=1e-6)
    assert report.fwiou_micro == pytest.approx(0.586207, abs=1e-6)


def test_toy_case_of_every_protocol() -> None:
    """Class 3 never occurs; two points of class 1 are predicted as the ignored class."""
    expected = {
        "nan": (10 / 16 + 7 / 11) / 2,
        "slidr": (10 / 16 + 7 / 11 + 1) / 3,
        "also": (10 / 14 + 7 / 11) / 2,
        "also_stats": (10 / 14 + 7 / 11) / 2,
        "scalr": (10 / 16 + 7 / 11) / 2,
        "semantic_kitti_api": (10 / 16 + 7 / 11) / 3,
    }
    found = {name: iou_report(TOY, name).miou for name in expected}
    assert found == pytest.approx(expected)
    with pytest.raises(DataError, match="7 points are predicted as the ignored class"):
        iou_report(TOY, "nuscenes_devkit")
    assert set(expected) | {"nuscenes_devkit"} == set(PROTOCOLS)


def test_accuracies_of_the_toy_case() -> None:
    report = iou_report(TOY)
    assert report.oacc == pytest.approx(17 / 23)
    assert report.macc == pytest.approx((10 / 13 + 7 / 10) / 2)
    assert report.fwiou_true == pytest.approx((13 * 10 / 16 + 10 * 7 / 11) / 23)
    assert report.precision[1:3].tolist() == pytest.approx([10 / 13, 7 / 8])
    assert report.gt_points.tolist() == [0, 13, 10, 0]
    assert report.pred_points.tolist() == [2, 13, 8, 0]
    assert torch.equal(report.confusion, TOY)


def test_a_class_only_predicted() -> None:
    """IoU 0 where absent means an empty union, the mean of the others by truth alone."""
    matrix = torch.tensor([[0, 0, 0], [0, 3, 1], [0, 0, 0]])
    assert iou_report(matrix, "nan").iou[2] == 0
    assert iou_report(matrix, "also_stats").iou[2] == 0.75


@settings(max_examples=25, deadline=None)
@given(points=st.integers(0, 60), classes=st.integers(2, 6), seed=st.integers(0, 2**16))
def test_nan_protocol_equals_sets_of_points(points: int, classes: int, seed: int) -> None:
    pred, target = random_points(points, classes, seed)
    report = iou_report(confusion(pred, target, classes))
    ious = []
    for c in range(1, classes):
        truth = {i for i in range(points) if target[i] == c}
        guess = {i for i in range(points) if pred[i] == c and target[i] != 0}
        if truth | guess:
            ious.append(len(truth & guess) / len(truth | guess))
            assert float(report.iou[c]) == pytest.approx(ious[-1])
        else:
            assert math.isnan(report.iou[c])
    expected = sum(ious) / len(ious) if ious else math.nan
    assert report.miou == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perfect_predictions(protocol: str) -> None:
    target = torch.arange(1, 6).repeat(7)
    report = iou_report(confusion(target, target, 6), protocol)
    scores = (report.miou, report.fwiou_true, report.fwiou_micro, report.oacc, report.macc)
    assert scores == (1, 1, 1, 1, 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_labelled_is_undefined_and_still_json(protocol: str) -> None:
    report = iou_report(torch.zeros(3, 3, dtype=torch.int64), protocol)
    text = json.dumps(report.to_json(("ignored", "car", "road"), frames=0), allow_nan=False)
    assert json.loads(text)["oacc"] is None


def test_without_ignored_class_every_class_counts() -> None:
    report = iou_report(torch.tensor([[3, 1], [0, 4]]), ignore_index=None)
    assert report.miou == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_ignored_class_may_be_the_last() -> None:
    flipped = iou_report(TOY.flip(0, 1), "slidr", ignore_index=3)
    assert flipped.miou == pytest.approx(0.753788, abs=1e-6)


def test_counts_above_float32_are_exact() -> None:
    matrix = torch.zeros(3, 3, dtype=torch.int64)
    matrix[1, 1], matrix[1, 2], matrix[2, 2] = 2**40 + 1, 1, 5
    report = iou_report(matrix)
    assert int(report.gt_points[1]) == 2**40 + 2
    assert float(report.iou[2]) == pytest.approx(5 / 6)


def test_json_holds_what_every_definition_needs() -> None:
    record = iou_report(TOY, "slidr").to_json(("ignored", "a", "b", "c"), frames=7)
    assert record["frames"] == 7
    assert record["protocol"] == "slidr"
    assert record["ignore"] == 0
    assert list(record["per_class"]) == ["a", "b", "c"]
    assert record["per_class"]["b"] == {
        "iou": pytest.approx(7 / 11),
        "acc": pytest.approx(0.7),
        "precision": pytest.approx(7 / 8),
        "gt_points": 10,
        "pred_points": 8,
    }
    again = iou_report(torch.tensor(record["confusion"]), "also")
    assert again.miou == iou_report(TOY, "also").miou


def test_json_refuses_the_wrong_number_of_names() -> None:
    with pytest.raises(ValueError, match="3 names for 4 classes"):
        iou_report(TOY).to_json(("a", "b", "c"), frames=1)


def test_confusion_rows_are_truth() -> None:
    assert confusion(torch.tensor([2]), torch.tensor([1]), 3)[1, 2] == 1


def test_confusion_takes_small_integers() -> None:
    labels = torch.tensor([19, 3], dtype=torch.uint8)
    assert confusion(labels, labels, 20)[19, 19] == 1


@pytest.mark.parametrize(("pred", "target"), [([3], [1]), ([1], [255]), ([-1], [1])])
def test_confusion_refuses_classes_out_of_range(pred: list[int], target: list[int]) -> None:
    with pytest.raises(DataError, match=r"outside 0\.\.2"):
        confusion(torch.tensor(pred), torch.tensor(target), 3)


def test_confusion_refuses_different_shapes() -> None:
    with pytest.raises(DataError, match="predictions for"):
        confusion(torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 3)


def test_distance_bins_split_the_confusion() -> None:
    pred, target = random_points(200, 4, seed=1)
    points = 30 * torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    edges = (0.0, 10.0, 40.0, float("inf"))
    parts = confusion_by_distance(pred, target, points, edges, 4)
    assert torch.equal(parts.sum(0), confusion(pred, target, 4))
    near = (points.norm(dim=1) < 10).nonzero().squeeze(1)
    assert torch.equal(parts[0], confusion(pred[near], target[near], 4))


def test_unknown_protocol() -> None:
    with pytest.raises(ConfigError, match="known: nan, slidr"):
        iou_report(TOY, "voc")
