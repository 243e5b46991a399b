"""`lidarssl evaluate --votes`: every scan several times, moved by draws of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.experiments.labelled import Labelled
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.tasks.semantic import SemanticSegmentation
from lidarssl.tasks.votes import evaluate_votes, vote_generator
from lidarssl.training.loading import FrameSource, evaluation_batches
from lidarssl.transforms.base import Transform


class VoteSource(FrameSource):
    """Every frame ``votes`` times in a row; the draws of a vote are those of its frame alone."""

    def __init__(
        self,
        dataset: Dataset,
        ids: Sequence[FrameId],
        transforms: Sequence[Transform],
        votes: int,
        seed: int,
    ) -> None:
        repeated = [frame for frame in ids for _ in range(votes)]
        super().__init__(dataset, repeated, Field.SEMANTIC, transforms, seed)
        self.votes = votes

    def load(self, epoch: int, sample: int) -> Frame:
        frame = self.dataset.load(self.ids[sample], self.fields)
        return self.transforms(frame, vote_generator(self.seed, frame.id, sample % self.votes))


def check_votes(votes: int, drop_path: bool, points: str) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: a drop path without votes, or votes on thinned scans.
    """
    if votes == 1 and drop_path:
        raise ConfigError(
            "one vote on the scan as it is has nothing to leave out",
            field="--votes-drop-path",
            remedy="add --votes with 2 or more",
        )
    if votes > 1 and points != "all":
        raise ConfigError(
            f"votes are of whole scans, not of their '{points}' points",
            field="--votes",
            remedy="use --points all, or no votes",
        )


def voted_confusion(
    task: SemanticSegmentation,
    frames: Labelled,
    votes: int,
    drop_path: bool,
    seed: int,
    device: torch.device,
    progress: bool,
) -> Tensor:
    """Confusion matrix over the frames to be judged on, (C, C) int64."""
    # What a batch leaves out depends on what is in it.
    size = 1 if drop_path else frames.batch_size
    source = VoteSource(frames.dataset, frames.val, task.augmentation.votes(), votes, seed)
    batches = evaluation_batches(source, size, frames.workers, task.backbone.prepare)
    total = math.ceil(len(source) / size)
    dropped = seed if drop_path else None
    return evaluate_votes(task, batches, votes, device, total, progress, dropped)
