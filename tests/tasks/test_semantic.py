"""Segmentation: frozen parts stay frozen, labels go to tokens, evaluation counts points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lidarssl.backbones.base import Backbone
from lidarssl.batching import collate
from lidarssl.errors import DataError
from lidarssl.frame import Batch, Field, Frame, FrameId, PointBatch, PointFeatures
from lidarssl.metrics.segmentation import iou_report
from lidarssl.tasks.semantic import (
    PointAugmentation,
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
        self.layers = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.ReLU())

    def forward(self, points: PointBatch) -> PointFeatures:
        cells = torch.cat([points.batch[:, None], (points.points * 4).floor().long()], 1)
        tokens, token_of_point = torch.unique(cells, dim=0, return_inverse=True)
        count = torch.bincount(token_of_point).float()
        height = torch.zeros(len(tokens)).index_add(0, token_of_point, points.points[:, 2])
        features = self.layers((height / count)[:, None])
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
    norm = backbone.layers[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.momentum == 0.1
    assert all(torch.equal(weights[k], v) for k, v in backbone.named_parameters())


def augmented(frame: Frame, augmentation: PointAugmentation, seed: int = 0) -> Frame:
    rng = np.random.default_rng(seed)
    for transform in augmentation.transforms(training=True):
        frame = transform(frame, rng)
    return frame


@pytest.fixture
def frame() -> Frame:
    """A scan around its sensor whose class 0 has points too."""
    loaded = MemoryDataset(points=2000).load(FrameId("memory", "train", "0000"), Field.SEMANTIC)
    points = loaded.points - torch.tensor([6.0, 0.0, 0.0])
    assert loaded.semantic is not None
    semantic = torch.where(points[:, 0] > 3, 0, loaded.semantic)
    return replace(loaded, points=points, semantic=semantic)


def test_nothing_is_changed_in_an_evaluation() -> None:
    everything = PointAugmentation(voxel_size=0.1, max_points=10, drop_unlabeled=True)
    assert everything.transforms(training=False) == []
    assert len(everything.transforms(training=True)) == 5
    assert PointAugmentation(rotate=False, flip="none").transforms(training=True) == []
    assert PointAugmentation().thinning() == []


@pytest.mark.parametrize("rounding", ["floor", "trunc"])
def test_thinning_keeps_one_point_of_each_cell(frame: Frame, rounding: str) -> None:
    still = PointAugmentation(False, "none", voxel_size=0.5, rounding=rounding)  # type: ignore[arg-type]
    thin = augmented(frame, still)
    to_cells = {"floor": np.floor, "trunc": np.trunc}[rounding]
    cells, first = np.unique(
        to_cells(frame.points.numpy() / np.float32(0.5)), axis=0, return_index=True
    )
    assert len(thin) == len(cells) < len(frame)
    assert torch.equal(thin.points, frame.points[np.sort(first)])
    assert len(augmented(frame, replace(still, max_points=100))) == 100


def test_unlabelled_points_are_dropped_on_request_only(frame: Frame) -> None:
    assert frame.semantic is not None
    labelled = int((frame.semantic > 0).sum())
    assert 0 < labelled < len(frame) == len(augmented(frame, PointAugmentation()))
    dropped = augmented(frame, PointAugmentation(drop_unlabeled=True))
    assert len(dropped) == labelled
    assert dropped.semantic is not None
    assert int(dropped.semantic.min()) == 1


@pytest.mark.parametrize(
    ("flip", "expected"),
    [
        ("none", {(1, 1)}),
        ("x", {(1, 1), (-1, 1)}),
        ("xy", {(1, 1), (-1, 1), (1, -1), (-1, -1)}),
    ],
)
def test_flips(frame: Frame, flip: str, expected: set[tuple[int, int]]) -> None:
    still = PointAugmentation(rotate=False, flip=flip)  # type: ignore[arg-type]
    found = set()
    for seed in range(40):
        moved = augmented(frame, still, seed).points / frame.points
        found.add((round(float(moved[0, 0])), round(float(moved[0, 1]))))
        assert float(moved.std(0).max()) < 1e-6
    assert found == expected


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
