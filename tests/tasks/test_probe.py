"""Softmax regression on cached features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lidarssl.backbones.base import Backbone
from lidarssl.batching import collate
from lidarssl.datasets.base import Dataset
from lidarssl.errors import DataError
from lidarssl.frame import Batch, Field, FrameId, PointBatch, PointFeatures
from lidarssl.tasks.probe import FeatureTable, LinearProbe, extract_features, fit_probe, probe_task
from toys import MemoryDataset


class Coordinates(Backbone):
    """Every point is a token whose features are its coordinates, scaled and shifted."""

    out_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([100.0, 1.0, 0.01]))

    def forward(self, points: PointBatch) -> PointFeatures:
        count = points.points.shape[0]
        features = points.points * self.scale + 50
        return PointFeatures(points.points, features, points.batch, torch.arange(count))


def batches(dataset: Dataset, ids: list[FrameId]) -> list[Batch]:
    return [collate([dataset.load(frame, Field.SEMANTIC)]) for frame in ids]


def test_solves_what_is_linear_whatever_the_scale_of_the_features() -> None:
    dataset = MemoryDataset(frames=4)
    train, val = dataset.frames("train"), dataset.frames("val")
    task = probe_task(
        Coordinates(), batches(dataset, train), 3, LinearProbe(steps=150, rows=256),
        torch.device("cpu"), torch.Generator().manual_seed(0), progress=False,
    )  # fmt: skip
    for batch in batches(dataset, val):
        predicted = task.predict(batch)
        assert batch.semantic is not None
        assert (predicted == batch.semantic).float().mean() > 0.97
        assert int(predicted.min()) > 0


def test_folded_layer_equals_the_standardised_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 5, generator=generator) * 30 + 7
    labels = 1 + (features[:, 0] > 7).long()
    linear = fit_probe(
        FeatureTable(features, labels), 3, LinearProbe(steps=60, rows=64), generator, False
    )
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    weight = linear.weight[1:] * features.std(0, correction=0)
    bias = linear.bias[1:] + (linear.weight[1:] * features.mean(0)).sum(1)
    expected = standard @ weight.T + bias
    assert torch.allclose(linear(features)[:, 1:], expected, atol=1e-3)
    assert torch.equal(linear(features)[:, 0], torch.zeros(400))


def test_same_generator_same_probe() -> None:
    table = FeatureTable(torch.randn(50, 2), torch.randint(1, 3, (50,)))
    settings = LinearProbe(steps=5, rows=16)
    one, two = (
        fit_probe(table, 3, settings, torch.Generator().manual_seed(3), False) for _ in range(2)
    )
    assert torch.equal(one.weight, two.weight)


@pytest.mark.parametrize("per_frame", [1, 7, 1000])
def test_points_per_frame_are_labelled_points_of_every_frame(per_frame: int) -> None:
    dataset = MemoryDataset(frames=2)
    batch = collate([dataset.load(frame, Field.SEMANTIC) for frame in dataset.frames("train")])
    assert batch.semantic is not None
    batch.semantic[:150] = 0
    table = extract_features(
        Coordinates(), [batch], torch.device("cpu"), per_frame, torch.Generator(), progress=False
    )
    counts = [min(per_frame, 50), min(per_frame, 200)]
    assert len(table.labels) == sum(counts)
    assert int(table.labels.min()) > 0
    features = batch.points.points * torch.tensor([100.0, 1.0, 0.01]) + 50
    found = (table.features[:, None] == features[None]).all(2).any(0)
    assert int(found[:200].sum()) == counts[0]
    assert not bool(found[:150].any())


def test_no_label_is_an_error() -> None:
    dataset = MemoryDataset(frames=1)
    (batch,) = batches(dataset, dataset.frames("train"))
    batch.semantic = torch.zeros_like(batch.points.batch)
    with pytest.raises(DataError, match="no labelled point"):
        extract_features(Coordinates(), [batch], torch.device("cpu"), progress=False)
