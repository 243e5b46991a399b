"""Semantic segmentation of points: finetune, or probe with a frozen backbone.

Sources: the downstream protocols of SLidR (CVPR 2022, section 4.3) and of ALSO (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.distributed import gather_rows
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, Field, FrameId, PointBatch, PointFeatures, StepOutput
from lidarssl.geometry.neighbours import nearest
from lidarssl.losses.segmentation import segmentation_loss
from lidarssl.metrics.segmentation import confusion
from lidarssl.sparse.norms import RowNorm
from lidarssl.tasks.augmentation import PointAugmentation
from lidarssl.tasks.base import Task
from lidarssl.transforms.base import Transform
from lidarssl.transforms.mixing import MixingTransform, ScanMixing

Supervise = Literal["tokens", "points"]
Head = Literal["linear", "norm_linear"]


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
        head: ``linear``; ``norm_linear`` = batch norm, then a linear layer that starts from zero
            (ScaLR). The norm adapts to the data also on a frozen backbone.
        ignored_logit: the ignored class keeps its place in the softmax of the loss (SLidR, ALSO);
            false = the softmax is over the other classes alone (WaffleIron, ScaLR).
        mixing: of whole training scans, before the augmentation; None = scans are not mixed.
    """

    needs = Field.SEMANTIC
    class_weights: Tensor

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        freeze: bool = False,
        loss: Literal["lovasz", "cross_entropy"] = "lovasz",
        class_weights: Literal["none", "inverse_sqrt"] = "none",
        supervise: Supervise = "tokens",
        augmentation: PointAugmentation | None = None,
        head: Head = "linear",
        ignored_logit: bool = True,
        mixing: ScanMixing | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes, self.freeze, self.loss = num_classes, freeze, loss
        self.weighting, self.supervise = class_weights, supervise
        self.augmentation = augmentation or PointAugmentation()
        self.ignored_logit, self.mixing = ignored_logit, mixing
        self.head = _head(head, backbone.out_channels, num_classes)
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

    def mixing_of(self, dataset: Dataset, ids: Sequence[FrameId]) -> Sequence[MixingTransform]:
        """What the training scans ``ids`` of ``dataset`` go through before ``transforms``."""
        return [] if self.mixing is None else self.mixing.transforms(dataset, ids)

    def set_class_weights(self, counts: Tensor) -> None:
        """Weight classes by the point counts (num_classes,) of the labelled frames."""
        if self.weighting == "inverse_sqrt":
            self.class_weights = inverse_sqrt_weights(counts).to(self.class_weights.device)

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
        first = 0 if self.ignored_logit else 1
        loss = segmentation_loss(
            logits[:, first:],
            labels - first,
            ignore_index=-first,
            lovasz=self.loss == "lovasz",
            class_weights=None if self.weighting == "none" else self.class_weights[first:],
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


def _head(kind: Head, channels: int, num_classes: int) -> nn.Module:
    linear = nn.Linear(channels, num_classes)
    if kind == "linear":
        return linear
    if kind != "norm_linear":
        raise ConfigError(
            f"unknown head '{kind}'", field="task.head", remedy="use linear or norm_linear"
        )
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(RowNorm(channels), linear)


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
