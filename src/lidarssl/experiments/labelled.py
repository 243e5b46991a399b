"""The labelled frames of a downstream experiment, and the baseline that needs no network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, FrameId
from lidarssl.metrics.lookup import LookupBins, count_cells, predict, table_from_counts
from lidarssl.metrics.segmentation import confusion
from lidarssl.training.loading import FrameSource, evaluation_batches
from lidarssl.training.requirements import check_needs
from lidarssl.transforms.base import Transform

IMAGE_FIELDS = Field.IMAGES | Field.IMAGE_LABELS
"""What a frame is read with where images are segmented."""


@dataclass(frozen=True)
class Labelled:
    """Labelled frames to learn from and to be judged on.

    Attributes:
        train: ids of the chosen fraction.
        fraction: share of the split's frames that they are.
        val: ids to evaluate on.
        listed: frames that the protocol's list for this share names, on disk or not; None = there
            is no such list.
        fields: what a frame is read with.
    """

    dataset: Dataset
    train: list[FrameId]
    fraction: float
    val: list[FrameId]
    workers: int
    batch_size: int
    listed: int | None = None
    fields: Field = Field.SEMANTIC

    def batches(
        self,
        ids: Sequence[FrameId],
        backbone: Backbone | None = None,
        transforms: Sequence[Transform] = (),
        fields: Field | None = None,
    ) -> Iterator[Batch]:
        """Frames with ``fields``, by default all that a frame is read with, in order."""
        wanted = self.fields if fields is None else fields
        source = FrameSource(self.dataset, ids, wanted, transforms, seed=0)
        prepare = None if backbone is None else backbone.prepare
        return evaluation_batches(source, self.batch_size, self.workers, prepare)

    @property
    def notes(self) -> list[str]:
        """What a reader should know of the share; nothing when it is whole."""
        if self.listed is None or len(self.train) == self.listed:
            return []
        return [f"{len(self.train)} of the {self.listed} frames of this share are on disk."]

    @property
    def val_batches(self) -> int:
        return math.ceil(len(self.val) / self.batch_size)


def labelled_frames(
    dataset: Dataset,
    train_split: str,
    val_split: str,
    skip: int,
    workers: int,
    batch_size: int,
    fields: Field = Field.SEMANTIC,
) -> Labelled:
    """The frames of a downstream experiment.

    Args:
        fields: what a frame is read with: labels of points, or images and theirs.

    Raises:
        ConfigError: a split has no labels or no frames, or ``skip`` leaves none.
    """
    if batch_size < 1:
        raise ConfigError(
            f"{batch_size} frames are no batch", field="eval_batch_size", remedy="give 1 or more"
        )
    who = "semantic segmentation" if Field.SEMANTIC in fields else "image segmentation"
    for split in (train_split, val_split):
        check_needs(fields, dataset, split, who, points=Field.SEMANTIC in fields)
    pool, train = dataset.frames(train_split), _fraction(dataset, train_split, skip)
    val = dataset.frames(val_split)
    if not val:
        raise ConfigError(
            f"split '{val_split}' of '{dataset.name}' has no frame",
            field="val_split",
            remedy="choose another split",
        )
    listed = dataset.fraction_size(train_split, skip)
    share = len(train) / len(pool)
    return Labelled(dataset, train, share, val, workers, batch_size, listed, fields)


def check_classes(num_classes: int, dataset: Dataset) -> None:
    """Compare a task with the dataset that it is to learn.

    Raises:
        ConfigError: it has another number of classes.
    """
    if num_classes != len(dataset.classes):
        raise ConfigError(
            f"the task has {num_classes} classes, '{dataset.name}' has "
            f"{len(dataset.classes)} (the ignored one included)",
            field="task.num_classes",
            remedy=f"set it to {len(dataset.classes)}",
        )


def _fraction(dataset: Dataset, split: str, skip: int) -> list[FrameId]:
    if skip < 1:
        raise ConfigError(
            f"1/{skip} of the labels is no fraction", field="label_skip", remedy="give 1 or more"
        )
    try:
        train = dataset.label_fraction(split, skip)
    except ConfigError as error:
        raise ConfigError(error.problem, field="label_skip", remedy=error.remedy) from error
    if not train:
        listed = dataset.fraction_size(split, skip)
        gone = f": none of the {listed} that the protocol lists is on disk" if listed else ""
        raise ConfigError(
            f"1/{skip} of the labels of split '{split}' of '{dataset.name}' is no frame{gone}",
            field="label_skip",
            remedy="lower label_skip or choose another split",
        )
    return train


def lookup_confusion(frames: Labelled) -> Tensor:
    """Confusion matrix of the look-up on height, range and intensity, (C, C) int64."""
    classes = len(frames.dataset.classes)
    bins, counts = None, torch.zeros(0)
    for batch in frames.batches(frames.train):
        assert batch.semantic is not None
        points, intensity = batch.points.points, batch.points.intensity
        if bins is None:
            bins = LookupBins.from_points(points, intensity)
            counts = count_cells(points, intensity, batch.semantic, classes, bins)
        else:
            counts = counts + count_cells(points, intensity, batch.semantic, classes, bins)
    assert bins is not None
    table = table_from_counts(counts, bins)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for batch in frames.batches(frames.val):
        assert batch.semantic is not None
        predicted = predict(table, batch.points.points, batch.points.intensity)
        matrix += confusion(predicted, batch.semantic, classes)
    return matrix
