from __future__ import annotations

import math

import pytest
import torch

from lidarssl.losses.occupancy import (
    intensity_sum,
    occupancy_confusion,
    occupancy_iou,
    occupancy_sum,
)


def test_occupancy_is_binary_cross_entropy() -> None:
    logits = [-3.0, 0.5, 40.0, -40.0]
    truth = [1, 0, 1, 1]
    expected = 0.0
    for logit, label in zip(logits, truth, strict=True):
        signed = logit if label else -logit
        expected += math.log1p(math.exp(-abs(signed))) + max(-signed, 0.0)
    values = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    loss, count = occupancy_sum(values, torch.tensor(truth))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert count == 4
    loss.backward()
    slope = torch.sigmoid(values.detach()) - torch.tensor(truth)
    assert torch.allclose(values.grad, slope)


def test_intensity_counts_where_it_is_known() -> None:
    predicted = torch.tensor([0.5, 2.0, -1.0, 9.0], dtype=torch.float64, requires_grad=True)
    loss, count = intensity_sum(predicted, torch.tensor([0.25, 0.0, 1.0, -1.0]))
    assert loss.item() == pytest.approx(0.25 + 2.0 + 2.0)
    assert count == 3
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [1.0, 1.0, -1.0, 0.0]


@pytest.mark.parametrize("loss", [occupancy_sum, intensity_sum])
def test_no_pairs_no_loss(loss: object) -> None:
    nothing = torch.zeros(0, requires_grad=True)
    total, count = loss(nothing, torch.zeros(0))  # type: ignore[operator]
    assert total == 0
    assert count == 0
    total.backward()


def test_half_precision_is_summed_in_full() -> None:
    loss, _ = occupancy_sum(torch.zeros(4000, dtype=torch.bfloat16), torch.ones(4000))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4000 * math.log(2), rel=1e-5)


def test_confusion_and_iou() -> None:
    logits = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])
    confusion = occupancy_confusion(logits, torch.tensor([1, 0, 0, 0, 1]))
    assert confusion.tolist() == [[2, 1], [1, 1]]
    assert occupancy_iou(confusion).tolist() == [2 / 4, 1 / 3]
    assert occupancy_iou(torch.zeros(2, 2)).tolist() == [1, 1]
