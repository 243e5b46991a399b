"""Shares of streams are exact, everywhere; frames of a stream are seen equally often."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lidarssl.datasets.base import Stream
from lidarssl.datasets.mixed import Mixed
from lidarssl.frame import Field, Frame
from lidarssl.training.loading import EpochBatches, FrameSource, good_batch, training_loader
from lidarssl.training.sampling import Shares, batch_order
from toys import MemoryDataset

Key = tuple[int, int]
WEIGHTS = st.one_of(
    st.integers(1, 12), st.decimals(0.01, 3, places=2).map(float), st.floats(1e-3, 1e3)
)


def shares_of(weights: list[float], size: int) -> list[Fraction]:
    exact = [Fraction(str(weight)) for weight in weights]
    return [size * weight / sum(exact) for weight in exact]


@given(st.lists(WEIGHTS, min_size=1, max_size=8), st.integers(1, 20))
# Deadlines alone fail the first two; deadlines and overlaps, without groups, the others.
@example([8, 5, 10, 6, 8, 4, 11, 9, 7, 4], 6)
@example([14, 8, 6, 12, 15, 19, 6], 4)
@example([17, 22, 18, 17, 23, 23], 5)
@example([14, 12, 18, 17, 19], 4)
def test_every_batch_and_every_window_of_batches_has_the_shares(
    weights: list[float], size: int
) -> None:
    """A batch: rounded down or up. The first n batches: within 1. A window: so within 2."""
    due, total = shares_of(weights, size), [0] * len(weights)
    for batch, counts in enumerate(islice(Shares(weights, size).from_batch(0), 120), 1):
        assert sum(counts) == size
        for stream, many in enumerate(counts):
            assert math.floor(due[stream]) <= many <= math.ceil(due[stream])
            total[stream] += many
            assert abs(total[stream] - batch * due[stream]) < 1


@given(
    st.lists(WEIGHTS, min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 90),
)  # fmt: skip
def test_shares_can_be_entered_anywhere(weights: list[float], size: int, start: int) -> None:
    shares = Shares(weights, size)
    counts = list(islice(shares.from_batch(0), start + 7))
    assert list(islice(shares.from_batch(start), 7)) == counts[start:]
    assert shares.before(start) == [
        sum(row[s] for row in counts[:start]) for s in range(len(weights))
    ]


def test_equal_weights_as_decimals_are_equal() -> None:
    """0.1 + 0.2 is 0.3: the binary numbers would repeat only after 10^17 batches."""
    assert Shares([0.1, 0.2, 0.3], 6).period == 1
    assert next(Shares([0.1, 0.2, 0.3], 6).from_batch(0)) == [1, 2, 3]


@given(st.integers(1, 48), st.lists(st.integers(0, 12), min_size=1, max_size=6), st.data())
def test_ranks_differ_by_at_most_one_sample_of_a_stream(
    size: int, counts: list[int], data: st.DataObject
) -> None:
    world = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
    owners = np.repeat(np.arange(len(counts) + 1), [*counts, size])[:size]
    order = batch_order(size, world)
    assert sorted(order) == list(range(size))
    parts = owners[order].reshape(world, -1)
    for stream in range(len(counts) + 1):
        of_ranks = (parts == stream).sum(1)
        assert of_ranks.max() - of_ranks.min() <= 1


@pytest.mark.parametrize("size", [8, 12, 24, 32])
def test_powers_of_two_keep_the_order_of_one_process(size: int) -> None:
    for world in (2, 4):
        assert (batch_order(size, world) == batch_order(size, 1)).all()


@st.composite
def streams_of(draw: st.DrawFn) -> list[Stream]:
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    rows = draw(st.permutations(range(sum(sizes))))
    ends = np.cumsum(sizes)
    return [
        Stream(str(number), draw(WEIGHTS), rows[end - size : end])
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def samples_of(streams: list[Stream]) -> int:
    return sum(len(stream.frames) for stream in streams)


def batches_of(
    streams: list[Stream], size: int, batches: int, drop_last: bool = True, start: int = 0,
    rank: int = 0, world: int = 1, seed: int = 3,
) -> list[list[Key]]:  # fmt: skip
    found = EpochBatches(
        samples_of(streams), size, batches, seed, rank, world, drop_last, streams
    )  # fmt: skip
    found.start = start
    return list(found)


@given(streams_of(), st.integers(1, 12), st.booleans())
def test_frames_of_a_stream_are_seen_equally_often_at_any_time(
    streams: list[Stream], size: int, drop_last: bool
) -> None:
    if drop_last and samples_of(streams) < size:
        return
    seen: Counter[int] = Counter()
    keys: set[Key] = set()
    for batch in batches_of(streams, size, 60, drop_last):
        seen.update(sample for _, sample in batch)
        assert not keys & set(batch), "a repeated frame must get other draws"
        keys |= set(batch)
        for stream in streams:
            times = [seen[sample] for sample in stream.frames]
            assert max(times) - min(times) <= 1


@given(streams_of(), st.integers(1, 12), st.booleans())
def test_an_epoch_is_as_long_as_the_frames_and_has_the_shares(
    streams: list[Stream], size: int, drop_last: bool
) -> None:
    samples = samples_of(streams)
    if drop_last and samples < size:
        return
    per_epoch = EpochBatches(
        samples, size, 0, 0, drop_last=drop_last, streams=streams
    ).per_epoch  # fmt: skip
    found = batches_of(streams, size, 4 * per_epoch, drop_last)
    expected = [min(size, samples - first) for first in range(0, samples, size)][:per_epoch] * 4
    assert [len(batch) for batch in found] == expected
    shares, drawn = shares_of([stream.weight for stream in streams], 1), 0
    seen: Counter[int] = Counter()
    for batch in found:
        drawn += len(batch)
        seen.update(sample for _, sample in batch)
        for stream, share in zip(streams, shares, strict=True):
            many = sum(seen[sample] for sample in stream.frames)
            # Smaller last batches have shares of their own, each within 1.
            assert abs(many - drawn * share) < (1 if samples % size == 0 or drop_last else 2)


@given(streams_of(), st.integers(1, 6), st.integers(1, 4), st.integers(0, 30), st.booleans())
def test_restarts_and_ranks_change_nothing(
    streams: list[Stream], share: int, world: int, start: int, drop_last: bool
) -> None:
    size, samples = share * world, samples_of(streams)
    if samples < size or (not drop_last and samples % size % world):
        return
    whole = batches_of(streams, size, 30, drop_last)
    assert batches_of(streams, size, 30, drop_last, start) == whole[start:]
    parts = [batches_of(streams, size, 30, drop_last, start, rank, world) for rank in range(world)]
    for batch, *mine in zip(whole[start:], *parts, strict=True):
        together = [key for part in mine for key in part]
        assert sorted(together) == sorted(batch)
        assert len({len(part) for part in mine}) == 1
        if world in (1, 2, 4) and len(batch) % 4 == 0:
            assert together == batch
        for stream in streams:
            of_ranks = [sum(sample in stream.frames for _, sample in part) for part in mine]
            assert max(of_ranks) - min(of_ranks) <= 1


def test_seeds_and_passes_and_streams_have_shuffles_of_their_own() -> None:
    streams = [Stream("a", 1, range(20)), Stream("b", 1, range(20, 40))]

    def order(seed: int, stream: int, turn: int) -> list[int]:
        keys = [key for batch in batches_of(streams, 4, 30, seed=seed) for key in batch]
        rows = [sample - 20 * stream for passed, sample in keys if passed == turn]
        return [row for row in rows if 0 <= row < 20]

    orders = [order(*which) for which in ((3, 0, 0), (4, 0, 0), (3, 1, 0), (3, 0, 1))]
    assert all(sorted(rows) == list(range(20)) for rows in orders)
    assert len({tuple(rows) for rows in orders}) == 4


def test_without_streams_the_order_is_the_shuffle_of_each_epoch() -> None:
    found = [[sample for _, sample in batch] for batch in EpochBatches(10, 4, 6, 7)]
    for epoch in range(3):
        order = np.random.default_rng([7, epoch]).permutation(10).tolist()
        assert found[2 * epoch : 2 * epoch + 2] == [order[:4], order[4:8]]


def shake(frame: Frame, rng: np.random.Generator) -> Frame:
    return Frame(frame.id, frame.points + float(rng.random()), frame.intensity)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_change_nothing_and_a_repeated_frame_is_drawn_anew() -> None:
    mixed = Mixed({"few": MemoryDataset(2), "many": MemoryDataset(20)}, {"few": 1, "many": 1})
    ids = mixed.frames("train")

    def loaded(workers: int) -> list[tuple[str, float]]:
        source = FrameSource(mixed, ids, Field.NONE, [shake], 7)
        batches = EpochBatches(22, 4, 5, 7, streams=mixed.streams(ids))
        return [
            (str(frame), float(found.points.points[found.points.batch == number][0, 0]))
            for item in training_loader(source, batches, workers, None)
            for found in [good_batch(item)]
            for number, frame in enumerate(found.ids)
        ]

    alone = loaded(0)
    assert alone == loaded(2)
    few = [value for frame, value in alone if frame == "few/train/0000"]
    assert len(few) == len(set(few)) == 5
