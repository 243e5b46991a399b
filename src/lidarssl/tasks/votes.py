"""Votes: a scan is seen several times, moved, and its points take the class of the summed softmax.

Source: the test-time augmentation of WaffleIron (ICCV 2023) and its code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lidarssl.backbones.base import Backbone
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, FrameId
from lidarssl.metrics.segmentation import confusion
from lidarssl.tasks.semantic import SemanticSegmentation


def vote_generator(seed: int, frame: FrameId, vote: int) -> np.random.Generator:
    """The generator of one vote on one frame, whatever stands before it in a list."""
    digest = hashlib.sha256(str(frame).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little"), vote])


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the classes that can be predicted, (N, C) -> (N, C - 1) float32."""
    return logits[:, 1:].float().softmax(1)


def elect(summed: Tensor) -> Tensor:
    """Class of every point, (N,) int64, from (N, C - 1) probabilities summed over the votes."""
    return summed.argmax(1) + 1


def evaluate_votes(
    task: SemanticSegmentation,
    batches: Iterable[Batch],
    votes: int,
    device: torch.device,
    total: int | None = None,
    progress: bool = True,
    drop_path_seed: int | None = None,
) -> Tensor:
    """Confusion matrix over all points of all frames, each seen ``votes`` times.

    Args:
        task: see there.
        batches: the votes on the first frame, then those on the second, ...; a batch may hold
            votes on several frames. The points of a frame come in one order.
        votes: on each frame.
        device: where it runs.
        total: number of batches, for the bar.
        progress: show a bar.
        drop_path_seed: leave out mixes of the backbone at random as in training (batches of one
            vote); None = never.

    Returns:
        (C, C) int64, rows ground truth, columns prediction.

    Raises:
        ConfigError: the backbone leaves nothing out.
        DataError: there is no frame.
    """
    task.to(device).eval()
    if drop_path_seed is not None:
        drop_paths(task.backbone)
    matrix = torch.zeros(task.num_classes, task.num_classes, dtype=torch.int64)
    cast, summed = 0, torch.zeros(())
    with torch.inference_mode():
        for batch in tqdm(batches, "evaluate", total, disable=not progress, leave=False):
            assert batch.semantic is not None
            with _draws(drop_path_seed, batch.ids[0], cast % votes, device):
                found = probabilities(task(batch.to(device)).at_points()).cpu()
            for frame in range(batch.points.batch_size):
                mine = batch.points.batch == frame
                summed = summed + found[mine] if cast % votes else found[mine]
                cast += 1
                if cast % votes == 0:
                    truth = batch.semantic[mine]
                    matrix += confusion(elect(summed), truth, task.num_classes)
    task.eval()
    if not cast:
        raise DataError("there is no frame to evaluate", remedy="choose a split that has frames")
    return matrix


def drop_paths(backbone: Backbone) -> None:
    """Let a backbone in eval mode leave mixes out as in training; its norms stay as they are.

    Raises:
        ConfigError: it leaves nothing out.
    """
    dropping = [part for part in backbone.modules() if getattr(part, "drop_path", 0.0)]
    if not dropping:
        raise ConfigError(
            "the backbone leaves nothing out",
            field="--votes-drop-path",
            remedy="leave the option away, or set --task.backbone.drop_path",
        )
    for part in dropping:
        # Not train(), which would reach the norms inside.
        part.training = True


@contextmanager
def _draws(seed: int | None, frame: FrameId, vote: int, device: torch.device) -> Iterator[None]:
    """Inside, layers that draw by themselves follow one vote on one frame."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(vote_generator(seed, frame, vote).integers(2**63)))
        yield
