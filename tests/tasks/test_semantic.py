"""Segmentation: frozen parts stay frozen, labels go to tokens, evaluation counts points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lidarssl import checkpoints
from lidarssl.backbones.base import Backbone
from lidarssl.batching import collate
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, Field, FrameId, PointBatch, PointFeatures
from lidarssl.metrics.segmentation import iou_report
from lidarssl.tasks.semantic import (
    SemanticSegmentation,
    adapt_batch_norm,
    evaluate,
    first_point_labels,
    inverse_sqrt_weights,
    label_counts,
)
from toys import MemoryDataset


class Columns(Backbone):
    """Tokens are 1 m columns; their feature is the mean height, through a batch norm."""

    out_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.ReLU())

    def forward(self, points: PointBatch) -> PointFeatures:
        cells = torch.cat([points.batch[:, None], (points.points * 4).floor().long()], 1)
        tokens, token_of_point = torch.unique(cells, dim=0, return_inverse=True)
        count = torch.bincount(token_of_point).float()
        height = torch.zeros(len(tokens)).index_add(0, token_of_point, points.points[:, 2])
        features = self.body((height / count)[:, None])
        return PointFeatures(tokens[:, 1:] / 4, features, tokens[:, 0], token_of_point)


@pytest.fixture
def batch() -> Batch:
    dataset = MemoryDataset(frames=3)
    return collate([dataset.load(frame, Field.SEMANTIC) for frame in dataset.frames("train")])


def test_frozen_backbone_keeps_weights_statistics_and_mode(batch: Batch) -> None:
    task = SemanticSegmentation(Columns(), 3, freeze=True).train()
    before = {key: value.clone() for key, value in task.backbone.state_dict().items()}
    task.training_step(batch, torch.Generator()).loss.backward()
    assert not task.backbone.training
    assert task.head.training
    assert all(torch.equal(before[k], v) for k, v in task.backbone.state_dict().items())
    assert all(p.grad is None for p in task.backbone.parameters())
    assert task.head.weight.grad is not None
    assert float(task.head.weight.grad.abs().sum()) > 0


def test_finetuning_reaches_every_parameter(batch: Batch) -> None:
    task = SemanticSegmentation(Columns(), 3)
    task.training_step(batch, torch.Generator()).loss.backward()
    assert all(p.grad is not None for p in task.parameters())


@pytest.mark.parametrize("supervise", ["tokens", "points"])
@pytest.mark.parametrize("loss", ["lovasz", "cross_entropy"])
def test_training_learns_height(batch: Batch, supervise: str, loss: str) -> None:
    torch.manual_seed(0)
    task = SemanticSegmentation(Columns(), 3, loss=loss, supervise=supervise)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(task.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        task.training_step(batch, torch.Generator()).loss.backward()
        optimizer.step()
    matrix = evaluate(task, [batch], torch.device("cpu"), progress=False)
    assert iou_report(matrix).miou > 0.95
    assert int(matrix.sum()) == 600


def test_label_of_a_token_is_that_of_its_first_point() -> None:
    tokens = PointFeatures(
        torch.zeros(3, 3), torch.zeros(3, 2), torch.zeros(3), torch.tensor([2, 0, 2, 1, 0])
    )
    labels = torch.tensor([5, 6, 7, 8, 9])
    assert first_point_labels(tokens, labels).tolist() == [6, 8, 5]


def test_class_weights() -> None:
    weights = inverse_sqrt_weights(torch.tensor([1000, 75, 25, 0]))
    expected = [0.0, (0.75 + 1e-3) ** -0.5, (0.25 + 1e-3) ** -0.5, 1e-3**-0.5]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)


def test_label_counts(batch: Batch) -> None:
    assert batch.semantic is not None
    counts = label_counts([batch, batch], 3)
    assert counts.tolist() == [2 * int((batch.semantic == k).sum()) for k in range(3)]


def test_adapted_statistics_are_those_of_the_data(batch: Batch) -> None:
    backbone = Columns()
    weights = {k: v.clone() for k, v in backbone.named_parameters()}
    adapt_batch_norm(backbone, [batch], torch.device("cpu"))
    backbone.train()
    expected = backbone(batch.points).features
    backbone.eval()
    assert torch.allclose(backbone(batch.points).features, expected, atol=0.02)
    norm = backbone.body[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.momentum == 0.1
    assert all(torch.equal(weights[k], v) for k, v in backbone.named_parameters())


def test_loss_on_points_has_every_class_in_its_denominator(batch: Batch) -> None:
    task = SemanticSegmentation(Columns(), 3, loss="cross_entropy", supervise="points").eval()
    assert batch.semantic is not None
    batch.semantic[::3] = 0
    loss = task.training_step(batch, torch.Generator()).loss
    logits = task(batch).at_points().detach().double().numpy()
    truth = batch.semantic.numpy()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(shares[np.arange(len(truth)), truth])[truth > 0].mean()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_norm_linear_head_starts_from_nothing_and_follows_the_data(batch: Batch) -> None:
    """Its statistics move with a frozen backbone; their start and names are those of ScaLR."""
    task = SemanticSegmentation(Columns(), 3, freeze=True, head="norm_linear").train()
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected_names = {f"0.{name}" for name in names} | {"1.weight", "1.bias"}
    assert set(task.head.state_dict()) == expected_names
    assert float(task(batch).features.detach().abs().max()) == 0
    before = {key: value.clone() for key, value in task.backbone.state_dict().items()}
    running = task.head.get_buffer("0.running_mean").clone()
    task.training_step(batch, torch.Generator()).loss.backward()
    with torch.no_grad():
        features = task.backbone(batch.points).features.double().numpy()
    followed = 0.9 * (0.9 * 0 + 0.1 * features.mean(0)) + 0.1 * features.mean(0)
    found = task.head.get_buffer("0.running_mean").numpy()
    np.testing.assert_allclose(found, followed, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(found, running.numpy())
    assert all(torch.equal(before[k], v) for k, v in task.backbone.state_dict().items())
    task.eval()
    task(batch)
    np.testing.assert_array_equal(task.head.get_buffer("0.running_mean").numpy(), found)


def test_norm_linear_head_round_trips(batch: Batch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = SemanticSegmentation(Columns(), 3, head="norm_linear")
    task.set_class_weights(torch.tensor([0, 30, 20]))
    optimizer = torch.optim.Adam(task.parameters(), 0.05)
    for _ in range(3):
        task.training_step(batch, torch.Generator()).loss.backward()
        optimizer.step()
    checkpoints.save(
        tmp_path / "task.safetensors", task, checkpoints.Card({"class_path": "Columns"})
    )
    again = SemanticSegmentation(Columns(), 3, head="norm_linear")
    checkpoints.load_into(again, checkpoints.load(tmp_path / "task.safetensors").state)
    assert torch.equal(again.eval()(batch).features, task.eval()(batch).features)
    state = checkpoints.load(tmp_path / "task.safetensors").state
    with pytest.raises(ConfigError):
        checkpoints.load_into(SemanticSegmentation(Columns(), 3), state)


def test_unknown_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="norm_linear"):
        SemanticSegmentation(Columns(), 3, head="mlp")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["none", "inverse_sqrt"])
def test_loss_without_the_ignored_class(batch: Batch, weights: str) -> None:
    """The softmax is over classes 1 and 2; the ignored row of the head learns nothing."""
    task = SemanticSegmentation(
        Columns(), 3, loss="cross_entropy", supervise="points",
        class_weights=weights, ignored_logit=False,  # type: ignore[arg-type]
    ).eval()  # fmt: skip
    assert batch.semantic is not None
    batch.semantic[::3] = 0
    counts = torch.bincount(batch.semantic, minlength=3)
    task.set_class_weights(counts)
    loss = task.training_step(batch, torch.Generator()).loss
    loss.backward()
    logits = task(batch).at_points().detach().double().numpy()[:, 1:]
    truth = batch.semantic.numpy()
    valid = truth > 0
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    errors = -np.log(shares[np.arange(len(truth)), truth - 1])[valid]
    of_point = np.ones(valid.sum())
    if weights != "none":
        frequency = counts[1:].numpy() / counts[1:].sum().item()
        of_point = (1 / np.sqrt(frequency + 1e-3))[truth[valid] - 1]
    expected = (errors * of_point).sum() / of_point.sum()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert isinstance(task.head.weight, torch.Tensor)
    assert task.head.weight.grad is not None
    assert task.head.weight.grad.abs().sum(1).gt(0).tolist() == [False, True, True]


def test_points_that_were_not_seen_take_the_class_of_the_nearest(batch: Batch) -> None:
    """Against all distances; the second frame has no point left."""
    torch.manual_seed(0)
    task = SemanticSegmentation(Columns(), 3)
    dataset = MemoryDataset(frames=3)
    whole = [dataset.load(frame, Field.SEMANTIC) for frame in dataset.frames("train")]
    kept = [torch.arange(200) % 7 == 0, torch.zeros(200, dtype=torch.bool), torch.arange(200) < 40]
    thin = collate([frame.select(index) for frame, index in zip(whole, kept, strict=True)])
    matrix = evaluate(task, [thin], torch.device("cpu"), progress=False, scored=[batch])
    predicted = task.predict(thin)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    assert batch.semantic is not None
    for point, frame, truth in zip(
        batch.points.points, batch.points.batch, batch.semantic, strict=True
    ):
        rows = (thin.points.batch == frame).nonzero()[:, 0]
        found = 0
        if len(rows):
            distance = (thin.points.points[rows].double() - point.double()).norm(dim=1)
            found = int(predicted[rows[distance.argmin()]])
        expected[int(truth), found] += 1
    assert int(expected[:, 0].sum()) == 200
    assert torch.equal(matrix, expected)


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(DataError, match="no frame to evaluate"):
        evaluate(SemanticSegmentation(Columns(), 3), [], torch.device("cpu"), progress=False)


def test_id_of_a_frame_reads_well() -> None:
    assert str(FrameId("memory", "train", "0001")) == "memory/train/0001"
