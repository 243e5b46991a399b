"""Votes of an evaluation: their order, the loader's workers and the other frames change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.experiments.labelled import Labelled
from lidarssl.experiments.voting import VoteSource, check_votes, voted_confusion
from lidarssl.frame import FrameId
from lidarssl.tasks.augmentation import PointAugmentation
from lidarssl.tasks.semantic import SemanticSegmentation
from methods.small import backbone
from toys import MemoryDataset

CPU = torch.device("cpu")
DATASET = MemoryDataset(5)
FRAMES = DATASET.frames("val")


@pytest.fixture(scope="module")
def task() -> SemanticSegmentation:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SemanticSegmentation(backbone(), 3).eval()


def voted(
    task: SemanticSegmentation, ids: Sequence[FrameId], workers: int = 0, size: int = 2,
    seed: int = 0,
) -> Tensor:  # fmt: skip
    frames = Labelled(DATASET, [], 1.0, list(ids), workers, size)
    return voted_confusion(task, frames, 3, False, seed, CPU, progress=False)


@pytest.mark.parametrize(("workers", "size"), [(0, 1), (0, 4), (2, 3)])
def test_order_workers_and_batches_change_nothing(
    task: SemanticSegmentation, workers: int, size: int
) -> None:
    expected = voted(task, FRAMES)
    assert int(expected.sum()) == 5 * 200
    assert torch.equal(voted(task, FRAMES[::-1], workers, size), expected)
    parts = voted(task, FRAMES[:2], workers, size) + voted(task, FRAMES[2:], workers, size)
    assert torch.equal(parts, expected)


def test_every_frame_comes_so_often_with_other_draws() -> None:
    source = VoteSource(DATASET, FRAMES[:2], PointAugmentation().votes(), 3, seed=0)
    loaded = [source.load(0, sample) for sample in range(len(source))]
    assert [frame.id for frame in loaded] == [FRAMES[0]] * 3 + [FRAMES[1]] * 3
    moved = [frame.points for frame in loaded]
    assert not any(torch.equal(moved[a], moved[b]) for a in range(6) for b in range(a))
    other = VoteSource(DATASET, FRAMES[1:2], PointAugmentation().votes(), 3, seed=0)
    assert torch.equal(other.load(0, 2).points, moved[5])
    seeded = VoteSource(DATASET, FRAMES[1:2], PointAugmentation().votes(), 3, seed=1)
    assert not torch.equal(seeded.load(0, 2).points, moved[5])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [((1, True, "all"), "--votes-drop-path"), ((2, False, "nearest"), "--votes")],
)
def test_options_that_do_not_go_together(arguments: tuple[int, bool, str], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_votes(*arguments)
    assert caught.value.field == field
    assert caught.value.remedy
    check_votes(1, False, "nearest")
    check_votes(4, True, "all")
