"""Semantic segmentation of points: finetune, or probe with a frozen backbone.

Sources: the downstream protocols of SLidR (CVPR 2022, section 4.3) and of ALSO (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lidarssl.backbones.base import Backbone
from lidarssl.distributed import gather_rows
from lidarssl.errors import DataError
from lidarssl.frame import Batch, Field, PointBatch, PointFeatures, StepOutput
from lidarssl.geometry.decimation import Rounding
from lidarssl.geometry.neighbours import nearest
from lidarssl.losses.segmentation import segmentation_loss
from lidarssl.metrics.segmentation import confusion
from lidarssl.tasks.base import Task
from lidarssl.transforms.base import Transform
from lidarssl.transforms.points import (
    Decimate,
    DropUnlabeled,
    FlipAxes,
    LimitPoints,
    RotateZ,
)

Supervise = Literal["tokens", "points"]


@dataclass
class PointAugmentation:
    """From a labelled scan to the points that a task trains on.

    Args:
        rotate: turn about z by a uniform angle.
        flip: mirror x, or x and y independently, each with probability 1/2.
        voxel_size: m, one point is kept of each cell of this size; None = all points.
        rounding: of the cells; ``trunc`` as the published code of ALSO.
        max_points: points that are left of a scan, drawn at random; None = all.
        drop_unlabeled: remove the points of the ignored class, as the published code of ALSO and
            NCLR does for SemanticKITTI and SemanticPOSS.
    """

    rotate: bool = True
    flip: Literal["none", "x", "xy"] = "xy"
    voxel_size: float | None = None
    rounding: Rounding = "floor"
    max_points: int | None = None
    drop_unlabeled: bool = False

    def transforms(self, training: bool) -> list[Transform]:
        """Thin, turn and mirror; nothing of it in an evaluation, which is about every point."""
        if not training:
            return []
        steps = self.thinning()
        if self.rotate:
            steps.append(RotateZ())
        if self.flip != "none":
            steps.append(FlipAxes(axes=self.flip))
        return steps

    def thinning(self) -> list[Transform]:
        """What removes points, in training alone."""
        steps: list[Transform] = [DropUnlabeled()] if self.drop_unlabeled else []
        if self.voxel_size is not None:
            steps.append(Decimate(self.voxel_size, self.rounding))
        if self.max_points is not None:
            steps.append(LimitPoints(self.max_points))
        return steps


class SemanticSegmentation(Task):
    """A linear head on a backbone.

    Args:
        backbone: pretrained or not.
        num_classes: train classes, the ignored class 0 included.
        freeze: probe: the backbone stays in eval mode and gets no gradient.
        loss: ``lovasz`` = cross-entropy + Lovász-softmax, or ``cross_entropy``.
        class_weights: ``none``, or ``inverse_sqrt`` = 1 / sqrt(frequency + 1e-3) once
            ``set_class_weights`` has seen the labels.
        supervise: loss on ``tokens`` (the label of a token's first point, as the paper) or on
            every ``points``.
        augmentation: see there.
    """

    needs = Field.SEMANTIC

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        freeze: bool = False,
        loss: Literal["lovasz", "cross_entropy"] = "lovasz",
        class_weights: Literal["none", "inverse_sqrt"] = "none",
        supervise: Supervise = "tokens",
        augmentation: PointAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes, self.freeze, self.loss = num_classes, freeze, loss
        self.weighting, self.supervise = class_weights, supervise
        self.augmentation = augmentation or PointAugmentation()
        self.head = nn.Linear(backbone.out_channels, num_classes)
        self.register_buffer("class_weights", torch.ones(num_classes))
        if freeze:
            self.backbone.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> SemanticSegmentation:
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    def transforms(self, training: bool) -> Sequence[Transform]:
        return self.augmentation.transforms(training)

    def set_class_weights(self, counts: Tensor) -> None:
        """Weight classes by the point counts (num_classes,) of the labelled frames."""
        if self.weighting == "inverse_sqrt":
            self.class_weights = inverse_sqrt_weights(counts).to(self.head.weight.device)

    def forward(self, batch: Batch) -> PointFeatures:
        """Logits of every token, (T, num_classes)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            tokens = self.backbone(batch.points)
        tokens.features = self.head(tokens.features)
        return tokens

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        assert batch.semantic is not None
        tokens = self(batch)
        if self.supervise == "tokens":
            logits, labels = tokens.features, first_point_labels(tokens, batch.semantic)
        else:
            logits, labels = tokens.at_points(), batch.semantic
        logits, labels = gather_rows(logits), gather_rows(labels)
        loss = segmentation_loss(
            logits,
            labels,
            ignore_index=0,
            lovasz=self.loss == "lovasz",
            class_weights=None if self.weighting == "none" else self.class_weights,
        )
        with torch.no_grad():
            valid = labels > 0
            correct = (logits[:, 1:].argmax(1) + 1 == labels)[valid].float().mean()
        return StepOutput(loss, {"accuracy": torch.nan_to_num(correct)})

    @torch.no_grad()
    def predict(self, batch: Batch) -> Tensor:
        """Class of every point, (N,) int64; the ignored class 0 is never predicted."""
        logits = self(batch).at_points()
        return logits[:, 1:].argmax(1) + 1


def first_point_labels(tokens: PointFeatures, labels: Tensor) -> Tensor:
    """Label of the first point of every token, (T,)."""
    count = tokens.features.shape[0]
    order = torch.arange(labels.shape[0], device=labels.device)
    first = order.new_full((count,), labels.shape[0])
    first.scatter_reduce_(0, tokens.token_of_point, order, "amin")
    return labels[first]


def inverse_sqrt_weights(counts: Tensor) -> Tensor:
    """1 / sqrt(frequency + 1e-3) of each class, the ignored class 0 without weight."""
    valid = counts.double().clone()
    valid[0] = 0
    weights = 1 / (valid / valid.sum().clamp(min=1) + 1e-3).sqrt()
    weights[0] = 0
    return weights.float()


def label_counts(batches: Iterable[Batch], num_classes: int) -> Tensor:
    """Points of each class, (num_classes,) int64."""
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for batch in batches:
        assert batch.semantic is not None
        counts += torch.bincount(batch.semantic, minlength=num_classes)
    return counts


def evaluate(
    task: SemanticSegmentation,
    batches: Iterable[Batch],
    device: torch.device,
    total: int | None = None,
    progress: bool = True,
    scored: Iterable[Batch] | None = None,
) -> Tensor:
    """Confusion matrix over all points of all frames.

    Args:
        task: see there.
        batches: what it sees.
        device: where it runs.
        total: number of batches, for the bar.
        progress: show a bar.
        scored: the same frames with the points that count, each of which takes the class of the
            nearest point that was seen; None = the points seen are those that count.

    Returns:
        (C, C) int64, rows ground truth, columns prediction.

    Raises:
        DataError: there is no frame.
    """
    task.to(device).eval()
    matrix = torch.zeros(task.num_classes, task.num_classes, dtype=torch.int64)
    pairs = ((one, one) for one in batches) if scored is None else zip(batches, scored, strict=True)
    seen = 0
    with torch.inference_mode():
        for batch, whole in tqdm(pairs, "evaluate", total, disable=not progress, leave=False):
            assert whole.semantic is not None
            predicted = task.predict(batch.to(device)).cpu()
            if scored is not None:
                predicted = at_nearest(predicted, batch.points, whole.points)
            matrix += confusion(predicted, whole.semantic.cpu(), task.num_classes)
            seen += 1
    if not seen:
        raise DataError("there is no frame to evaluate", remedy="choose a split that has frames")
    return matrix


def at_nearest(classes: Tensor, seen: PointBatch, points: PointBatch) -> Tensor:
    """The class of the nearest seen point, (N,) int64; 0 in a frame without any.

    Args:
        classes: (S,) int64, of the points ``seen``.
        seen: S points.
        points: N points of the same frames.
    """
    found = classes.new_zeros(len(points.points))
    query, source, _ = nearest(points.points, seen.points, 1, points.batch, seen.batch)
    found[query] = classes[source]
    return found


@torch.no_grad()
def adapt_batch_norm(backbone: Backbone, batches: Iterable[Batch], device: torch.device) -> None:
    """Give a network the batch-norm statistics of the data, weights untouched.

    A random network judged with statistics 0 and 1 is an artificially weak baseline.
    """
    norms = [
        module
        for module in backbone.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    backbone.to(device).train()
    for batch in batches:
        backbone(batch.to(device).points)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    backbone.eval()
