"""Labelled frames, and the look-up baseline on them."""

from __future__ import annotations

import pytest

from lidarssl.errors import ConfigError
from lidarssl.experiments.labelled import Labelled, labelled_frames, lookup_confusion
from lidarssl.frame import Field, FrameId
from toys import MemoryDataset


class Refusing(MemoryDataset):
    """As nuScenes: refuses fractions that it cannot make."""

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        raise ConfigError(f"no 1/{skip}", field="skip", remedy="use 1..3")


class Listed(MemoryDataset):
    """A protocol that lists frames, half of which are not on disk."""

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        return self.frames(split)[:2] if skip == 1 else []

    def fraction_size(self, split: str, skip: int) -> int:
        return 4


class Unlabelled(MemoryDataset):
    def provides(self, split: str) -> Field:
        return Field.IMAGES


class Empty(MemoryDataset):
    def frames(self, split: str) -> list[FrameId]:
        return super().frames(split) if split == "train" else []


def frames(dataset: MemoryDataset, skip: int = 1) -> Labelled:
    return labelled_frames(dataset, "train", "val", skip, workers=0, batch_size=4)


def test_a_fraction_of_the_labels() -> None:
    some = frames(MemoryDataset(frames=10), skip=4)
    assert [frame.token for frame in some.train] == ["0000", "0004", "0008"]
    assert some.fraction == 0.3
    assert len(some.val) == 10
    assert some.val_batches == 3
    sizes = [batch.points.batch_size for batch in some.batches(some.val)]
    assert sizes == [4, 4, 2]


def test_a_share_with_frames_that_are_not_there_says_so() -> None:
    assert frames(Listed()).notes == ["2 of the 4 frames of this share are on disk."]
    assert frames(MemoryDataset()).notes == []
    with pytest.raises(ConfigError, match="none of the 4 that the protocol lists is on disk"):
        frames(Listed(), skip=100)


@pytest.mark.parametrize(
    ("dataset", "skip", "field"),
    [
        (MemoryDataset(), 0, "label_skip"),
        (MemoryDataset(), -2, "label_skip"),
        (Refusing(), 40, "label_skip"),
        (Unlabelled(), 1, "semantic"),
        (Empty(), 1, "val_split"),
    ],
)
def test_nothing_to_learn_from(dataset: MemoryDataset, skip: int, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        frames(dataset, skip)
    assert caught.value.field == field
    assert caught.value.remedy


def test_lookup_learns_what_height_tells() -> None:
    """The toy's classes are below and above z = 0, which a table of heights can hold."""
    some = frames(MemoryDataset(frames=6))
    matrix = lookup_confusion(some)
    assert int(matrix.sum()) == 6 * 200
    assert float(matrix.diagonal().sum() / matrix.sum()) > 0.9
