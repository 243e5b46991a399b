from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.losses.segmentation import lovasz_softmax, segmentation_loss, weighted_nll

TOY_LOGITS = torch.tensor(
    [[2, 0, 1, 0], [0, 1, 0, 0.5], [0, 0, 2, -1], [1, -1, 0.5, 0], [0, 3, 0, 0]],
    dtype=torch.float64,
)
TOY_LABELS = torch.tensor([1, 1, 2, 0, 2])


def naive_lovasz(probabilities: Tensor, labels: Tensor) -> float:
    """Per class: walk down the sorted errors and weight each by the rise of 1 - IoU."""
    losses = []
    for c in sorted(set(labels.tolist())):
        rows = [
            (abs(float(y == c) - float(p)), int(y == c))
            for p, y in zip(probabilities[:, c], labels.tolist(), strict=True)
        ]
        rows.sort(key=lambda row: -row[0])
        truth = sum(foreground for _, foreground in rows)
        left, union, before, loss = truth, truth, 0.0, 0.0
        for error, foreground in rows:
            left -= foreground
            union += 1 - foreground
            jaccard = 1 - left / union
            loss += error * (jaccard - before)
            before = jaccard
        losses.append(loss)
    return sum(losses) / len(losses)


def random_rows(rows: int, classes: int, seed: int, scale: float = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=generator)


def test_toy_case_of_the_protocol() -> None:
    cross_entropy = segmentation_loss(TOY_LOGITS, TOY_LABELS, lovasz=False)
    both = segmentation_loss(TOY_LOGITS, TOY_LABELS)
    assert float(cross_entropy) == pytest.approx(1.690531, abs=1e-6)
    assert float(both - cross_entropy) == pytest.approx(0.697209, abs=1e-6)
    assert float(both) == pytest.approx(2.387740, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), classes=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_lovasz_equals_naive(rows: int, classes: int, seed: int) -> None:
    logits, labels = random_rows(rows, classes, seed)
    probabilities = logits.softmax(1)
    expected = naive_lovasz(probabilities, labels)
    assert float(lovasz_softmax(probabilities, labels)) == pytest.approx(expected, abs=1e-12)


def test_hard_predictions_cost_one_minus_iou() -> None:
    """On hard predictions the Lovász extension is the Jaccard loss itself."""
    predicted, labels = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 0, 0])
    ious = [1 / 4, 2 / 4]
    hard = torch.nn.functional.one_hot(predicted, 3).double()
    expected = sum(1 - iou for iou in ious) / 2
    assert float(lovasz_softmax(hard, labels)) == pytest.approx(expected)


def test_float32_keeps_the_weights_of_many_points() -> None:
    logits, labels = random_rows(200_000, 3, seed=0)
    exact = lovasz_softmax(logits.softmax(1), labels)
    single = logits.float().requires_grad_()
    loss = lovasz_softmax(single.softmax(1), labels)
    (gradient,) = torch.autograd.grad(loss, single)
    double = logits.requires_grad_()
    (expected,) = torch.autograd.grad(lovasz_softmax(double.softmax(1), labels), double)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-5)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-4


def test_gradients() -> None:
    logits, labels = random_rows(9, 4, seed=3)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    labels[0] = 1
    assert torch.autograd.gradcheck(
        lambda x: segmentation_loss(x, labels, class_weights=weights), logits.requires_grad_()
    )


def test_ignored_rows_change_nothing_but_their_logit_stays_in_the_softmax() -> None:
    logits, labels = random_rows(30, 5, seed=4)
    labels[::3] = 0
    kept = labels != 0
    whole = segmentation_loss(logits, labels)
    assert float(whole) == pytest.approx(float(segmentation_loss(logits[kept], labels[kept])))
    raised = logits.clone()
    raised[:, 0] += 1
    assert float(segmentation_loss(raised, labels)) > float(whole)


def test_shifted_labels_with_255_equal_the_same_classes() -> None:
    logits, labels = random_rows(30, 5, seed=5)
    labels[:4] = 0
    shifted = torch.where(labels == 0, 255, labels - 1)
    without_channel_0 = segmentation_loss(logits[:, 1:], shifted, ignore_index=255)
    hidden = logits.clone()
    hidden[:, 0] = -torch.inf
    assert float(without_channel_0) == pytest.approx(float(segmentation_loss(hidden, labels)))


def test_class_weights_equal_repeated_rows() -> None:
    logits, labels = random_rows(12, 3, seed=6)
    weights = torch.tensor([1.0, 2.0, 3.0])
    times = weights[labels].long()
    repeated = weighted_nll(
        logits.log_softmax(1).repeat_interleave(times, 0), labels.repeat_interleave(times)
    )
    weighted = weighted_nll(logits.log_softmax(1), labels, weights)
    assert float(weighted) == pytest.approx(float(repeated))


@pytest.mark.parametrize("lovasz", [True, False])
@pytest.mark.parametrize("rows", [0, 3])
def test_no_labelled_row_is_a_zero_loss_with_gradients(rows: int, lovasz: bool) -> None:
    logits = torch.randn(rows, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.zeros(rows, dtype=torch.int64), lovasz=lovasz)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(rows, 4))


def test_only_classes_of_weight_zero_is_finite() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    labels, weights = torch.ones(3, dtype=torch.int64), torch.zeros(2)
    loss = segmentation_loss(logits, labels, lovasz=False, class_weights=weights)
    loss.backward()
    assert loss.item() == 0


def test_extreme_logits_are_finite() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = segmentation_loss(logits, torch.tensor([1, 1]))
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(logits.grad.isfinite().all())


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits, labels = random_rows(50, 4, seed=7)
    loss = segmentation_loss(logits.bfloat16(), labels)
    assert loss.dtype is torch.float32
    assert float(loss) == pytest.approx(float(segmentation_loss(logits, labels)), rel=0.02)
