"""Several datasets as one: whose frames, whose numbers, whose mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.inspect import check
from lidarssl.datasets.mixed import Mixed
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from toys import MemoryDataset


class Measured(MemoryDataset):
    """Says mean and standard deviation of its intensities, and drives along y."""

    intensity_statistics = (0.25, 0.5)
    forward = (0.0, 1.0)

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        loaded = super().load(frame, fields)
        return replace(loaded, intensity_statistics=self.intensity_statistics)


class Labelled(MemoryDataset):
    splits = ("train", "val", "test")


def two(first: Dataset | None = None, second: Dataset | None = None) -> Mixed:
    return Mixed({"a": first or MemoryDataset(3), "b": second or Measured(5)})


def test_frames_of_one_class_stand_one_after_the_other_under_the_names_they_have_here() -> None:
    mixed, members = two(), {"a": MemoryDataset(3), "b": Measured(5)}
    for split in ("train", "val"):
        expected = [
            FrameId(name, frame.sequence, frame.token)
            for name, member in members.items()
            for frame in member.frames(split)
        ]
        assert mixed.frames(split) == expected
        assert mixed.label_fraction(split, 2) == [expected[row] for row in (0, 2, 3, 5, 7)]


def test_a_frame_is_that_of_its_dataset_in_everything_but_its_name() -> None:
    mixed, member = two(), Measured(5)
    number, fields = 4, Field.IMAGES
    found = mixed.load(mixed.frames("train")[3 + number], fields)
    own = member.load(member.frames("train")[number], fields)
    assert found.id == FrameId("b", "train", "0004")
    assert torch.equal(found.points, own.points)
    assert torch.equal(found.intensity, own.intensity)
    assert found.intensity_statistics == (0.25, 0.5)
    assert found.cameras[0].token == own.cameras[0].token
    assert mixed.load(mixed.frames("train")[0]).intensity_statistics is None
    assert [mixed.of(frame).forward for frame in mixed.frames("val")[2:4]] == [(1, 0), (0, 1)]


def test_provides_what_all_do_but_no_labels() -> None:
    assert two().provides("train") == Field.IMAGES
    assert two(second=MemoryDataset(lacking=Field.IMAGES)).provides("train") == Field.NONE
    assert len(two().classes) == 1
    frame = two().load(two().frames("train")[0])
    assert frame.semantic is None
    assert frame.cameras


def test_a_dataset_by_itself_needs_no_mixing() -> None:
    member = MemoryDataset(3)
    assert member.of(member.frames("train")[0]) is member
    assert member.streams(member.frames("train")) == ()


def test_a_split_that_one_lacks_is_refused_with_its_name() -> None:
    mixed = two(Labelled())
    assert mixed.splits == ("train", "val")
    for ask in (mixed.frames, mixed.provides, mixed.absent):
        with pytest.raises(ConfigError, match=r"(?s)'b' has no split 'test'.*all have: train, val"):
            ask("test")
    with pytest.raises(ConfigError, match=r"(?s)unknown split 'tset'"):
        mixed.frames("tset")


def test_errors_say_which_dataset_they_are_of() -> None:
    mixed = two(second=MemoryDataset(bad=(1,)))
    with pytest.raises(DataError, match=r"^0001\.bin: points are not finite \(dataset 'b'\)\n"):
        mixed.load(FrameId("b", "train", "0001"))
    mixed.load(FrameId("a", "train", "0001"))
    with pytest.raises(DataError, match=r"(?s)of no dataset here.*known: a, b"):
        mixed.load(FrameId("memory", "train", "0001"))


class Partial(MemoryDataset):
    def absent(self, split: str) -> str:
        return f"2 of 9 scans of {split}"


def test_what_is_not_on_disk_is_told_by_name() -> None:
    assert two(second=Partial()).absent("val") == "b: 2 of 9 scans of val"
    assert two().absent("val") == ""


def test_the_check_counts_the_drives_of_each_dataset() -> None:
    report = check(two(), "train", progress=False)
    assert (report.frames, report.sequences, report.ok) == (8, 2, True)


@pytest.mark.parametrize(
    ("weights", "field", "said"),
    [
        ({"a": 1.0, "c": 1.0}, "dataset.weights.c", "unknown dataset 'c'"),
        ({"a": 1.0, "bb": 1.0}, "dataset.weights.bb", "did you mean 'b'"),
        ({"a": 1.0}, "dataset.weights", "'b' has no weight"),
        ({"a": 1.0, "b": 0.0}, "dataset.weights.b", "'b' is 0.0"),
        ({"a": -1.0, "b": 1.0}, "dataset.weights.a", "'a' is -1.0"),
        ({"a": 1.0, "b": float("nan")}, "dataset.weights.b", "'b' is nan"),
        ({"a": float("inf"), "b": 1.0}, "dataset.weights.a", "'a' is inf"),
    ],
)
def test_weights_that_do_not_fit(weights: dict[str, float], field: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Mixed({"a": MemoryDataset(), "b": MemoryDataset()}, weights)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("datasets", "said"),
    [
        ({}, "no dataset to mix"),
        ({"a.b": MemoryDataset()}, "'a.b' cannot be the name"),
        ({"a/b": MemoryDataset()}, "'a/b' cannot be the name"),
        ({"": MemoryDataset()}, "'' cannot be the name"),
        ({"a": Mixed({"b": MemoryDataset()})}, "'a' is a mixture itself"),
    ],
)
def test_datasets_that_cannot_be_mixed(datasets: dict[str, Dataset], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Mixed(datasets)


@given(st.permutations(range(8)), st.integers(1, 8))
def test_streams_are_the_rows_of_each_dataset_wherever_they_stand(
    order: list[int], count: int
) -> None:
    mixed = Mixed({"a": MemoryDataset(3), "b": MemoryDataset(5)}, {"a": 1, "b": 0.5})
    everything = mixed.frames("train")
    some = [everything[row] for row in order[:count]]
    if {frame.dataset for frame in some} != {"a", "b"}:
        with pytest.raises(ConfigError, match="has a weight, but no frame"):
            mixed.streams(some)
        return
    streams = mixed.streams(some)
    assert [(stream.name, stream.weight) for stream in streams] == [("a", 1), ("b", 0.5)]
    for stream in streams:
        rows = [row for row, frame in enumerate(some) if frame.dataset == stream.name]
        assert list(stream.frames) == rows


def test_without_weights_there_are_no_streams() -> None:
    assert two().streams(two().frames("train")) == ()


def test_it_has_lidar_where_every_dataset_has() -> None:
    images = MemoryDataset()
    images.lidar = False
    assert Mixed({"a": MemoryDataset(), "b": MemoryDataset()}).lidar
    assert not Mixed({"a": MemoryDataset(), "b": images}).lidar
