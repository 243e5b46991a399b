"""Linear probe on cached features: softmax regression on a frozen backbone, in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lidarssl.backbones.base import Backbone
from lidarssl.errors import DataError
from lidarssl.frame import Batch
from lidarssl.tasks.semantic import SemanticSegmentation, inverse_sqrt_weights


@dataclass
class LinearProbe:
    """How the regression is fitted.

    Args:
        steps: AdamW steps, cosine to 0.
        rows: points of a step.
        lr: first learning rate.
        weight_decay: decoupled.
        points_per_frame: labelled points cached of each frame, drawn at random; 0 = all.
        class_weights: weight classes by 1 / sqrt(frequency + 1e-3).
    """

    steps: int = 400
    rows: int = 8192
    lr: float = 2e-2
    weight_decay: float = 0.01
    points_per_frame: int = 0
    class_weights: bool = True


@dataclass
class FeatureTable:
    """Features of labelled points.

    Attributes:
        features: (N, C) float32.
        labels: (N,) int64, none of them the ignored class 0.
    """

    features: Tensor
    labels: Tensor


@torch.no_grad()
def extract_features(
    backbone: Backbone,
    batches: Iterable[Batch],
    device: torch.device,
    points_per_frame: int = 0,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> FeatureTable:
    """Features of the labelled points of every frame, by the backbone in eval mode.

    Raises:
        DataError: no point has a label.
    """
    backbone.to(device).eval()
    features, labels = [], []
    for batch in tqdm(batches, "features", disable=not progress, leave=False):
        assert batch.semantic is not None
        rows = backbone(batch.to(device).points).at_points().cpu()
        keep = _labelled_points(batch, points_per_frame, generator)
        features.append(rows[keep])
        labels.append(batch.semantic[keep])
    if not labels or not sum(len(part) for part in labels):
        raise DataError(
            "no labelled point to fit a probe on",
            field="semantic",
            remedy="choose a split or fraction with labels",
        )
    return FeatureTable(torch.cat(features), torch.cat(labels))


def fit_probe(
    table: FeatureTable,
    num_classes: int,
    settings: LinearProbe,
    generator: torch.Generator,
    progress: bool = True,
) -> torch.nn.Linear:
    """Softmax regression on standardised features; the standardisation is folded into it.

    Args:
        table: labelled features.
        num_classes: the ignored class 0 included; its logit never wins nor trains.
        settings: see there.
        generator: of the rows of each step.

    Returns:
        Linear (C -> num_classes) for raw features.
    """
    mean, std = table.features.mean(0), table.features.std(0, correction=0).clamp(min=1e-6)
    standard = (table.features - mean) / std
    counts = torch.bincount(table.labels, minlength=num_classes)
    weights = inverse_sqrt_weights(counts)[1:] if settings.class_weights else None
    linear = torch.nn.Linear(table.features.shape[1], num_classes - 1)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = torch.optim.AdamW(
        linear.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    for step in tqdm(range(settings.steps), "probe", disable=not progress, leave=False):
        optimizer.param_groups[0]["lr"] = (
            0.5 * settings.lr * (1 + math.cos(math.pi * step / settings.steps))
        )
        rows = torch.randint(len(table.labels), (settings.rows,), generator=generator)
        loss = F.cross_entropy(linear(standard[rows]), table.labels[rows] - 1, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _fold(linear, mean, std)


def probe_task(
    backbone: Backbone,
    batches: Iterable[Batch],
    num_classes: int,
    settings: LinearProbe,
    device: torch.device,
    generator: torch.Generator,
    progress: bool = True,
) -> SemanticSegmentation:
    """Fit a probe and wrap it as a task that can be evaluated and saved."""
    table = extract_features(
        backbone, batches, device, settings.points_per_frame, generator, progress
    )
    task = SemanticSegmentation(backbone, num_classes, freeze=True)
    task.head = fit_probe(table, num_classes, settings, generator, progress)
    return task.eval()


def _fold(linear: torch.nn.Linear, mean: Tensor, std: Tensor) -> torch.nn.Linear:
    with torch.no_grad():
        folded = torch.nn.Linear(linear.in_features, linear.out_features + 1)
        folded.weight[0], folded.bias[0] = 0, 0
        folded.weight[1:] = linear.weight / std
        folded.bias[1:] = linear.bias - (linear.weight * (mean / std)).sum(1)
    return folded


def _labelled_points(batch: Batch, per_frame: int, generator: torch.Generator | None) -> Tensor:
    assert batch.semantic is not None
    labelled = torch.nonzero(batch.semantic > 0)[:, 0]
    if not per_frame:
        return labelled
    frame = batch.points.batch.cpu()[labelled]
    draw = torch.rand(len(labelled), generator=generator)
    order = torch.argsort(frame + draw)
    frame = frame[order]
    first = torch.searchsorted(frame, frame)
    within = torch.arange(len(order)) - first
    return labelled[order[within < per_frame]].sort().values
