"""Which frames each batch of a run holds: all alike, or fixed shares of several streams.

Shares are dealt as a fair scheduler deals processors: a batch is a time slot, a place in it a
processor, a stream a task. What a stream is due beyond whole samples per batch follows PD2
(Anderson and Srinivasan, Mixed Pfair/ERfair scheduling of asynchronous periodic tasks, 2001), which
never strays from a share by a whole sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate, count, islice
from math import lcm
from operator import mul

import numpy as np
from numpy.typing import NDArray

from lidarssl.datasets.base import Stream

Key = tuple[int, int]

# Samples draw from (seed, epoch, sample): a fourth word keeps the shuffles of streams apart.
_SHUFFLES = 1


def uniform_batches(
    samples: int, batch_size: int, per_epoch: int, seed: int, start: int
) -> Iterator[list[Key]]:
    """Keys (epoch, sample) of the batches from ``start`` on: every epoch in an order of its own."""
    epoch, order = -1, np.empty(0, np.int64)
    for batch in count(start):
        if batch // per_epoch != epoch:
            epoch = batch // per_epoch
            order = np.random.default_rng([seed, epoch]).permutation(samples)
        first = (batch % per_epoch) * batch_size
        yield [(epoch, int(sample)) for sample in order[first : first + batch_size]]


def stream_batches(
    streams: Sequence[Stream], sizes: tuple[int, int], per_epoch: int, seed: int, start: int,
    world: int,
) -> Iterator[list[Key]]:  # fmt: skip
    """Keys (pass, sample) of the batches from ``start`` on.

    A stream takes its frames pass after pass, each in an order of its own, and goes on with its
    pass in the next epoch: at any time no frame has been drawn twice more often than another of
    its stream. A key occurs once, so that a repeated frame is transformed in another way.

    Args:
        streams: what to draw from.
        sizes: samples of a batch, and of the last one of an epoch.
        per_epoch: batches of an epoch.
        seed: of the shuffles.
        start: first batch.
        world: number of equal consecutive parts that each batch is cut into, see ``batch_order``.
    """
    weights = [stream.weight for stream in streams]
    epoch, within = divmod(start, per_epoch)
    size, last = sizes
    # The last batch of an epoch has shares of its own where it is smaller.
    begins = [start] if last == size else [epoch * (per_epoch - 1) + within, epoch]
    shares = [Shares(weights, one) for one in sizes[: len(begins)]]
    dealt = [share.from_batch(begin) for share, begin in zip(shares, begins, strict=True)]
    orders = [batch_order(share.size, world) for share in shares]
    before = [share.before(begin) for share, begin in zip(shares, begins, strict=True)]
    passes = [
        _Passes(stream.frames, seed, number, sum(drawn))
        for number, (stream, *drawn) in enumerate(zip(streams, *before, strict=True))
    ]
    for batch in count(start):
        kind = -1 if (batch + 1) % per_epoch == 0 else 0
        keys = [
            next(frames)
            for frames, many in zip(passes, next(dealt[kind]), strict=True)
            for _ in range(many)
        ]
        yield [keys[place] for place in orders[kind]]


class _Passes(Iterator[Key]):
    """Keys (pass, sample) of one stream from draw ``drawn`` on."""

    def __init__(self, frames: Sequence[int], seed: int, number: int, drawn: int) -> None:
        self.frames, self.seed, self.number = frames, seed, number
        self.turn, self.row = divmod(drawn, len(frames))
        self.order = self._shuffle()

    def __next__(self) -> Key:
        if self.row == len(self.frames):
            self.turn, self.row = self.turn + 1, 0
            self.order = self._shuffle()
        self.row += 1
        return self.turn, self.frames[self.order[self.row - 1]]

    def _shuffle(self) -> NDArray[np.int64]:
        words = [self.seed, self.turn, self.number, _SHUFFLES]
        return np.random.default_rng(words).permutation(len(self.frames))


class Shares:
    """How many samples of each of S streams the batches of one size hold.

    Every batch has the share of a stream, rounded down or up; all batches before any one have it
    with an error below 1. Weights count as the decimals that they are written in.

    Args:
        weights: of the streams, above 0.
        size: samples of a batch.
    """

    def __init__(self, weights: Sequence[float], size: int) -> None:
        exact = [Fraction(str(weight)) for weight in weights]
        due = [size * weight / sum(exact) for weight in exact]
        self.size = size
        self.whole = [int(one) for one in due]
        self.period = lcm(*(one.denominator for one in due))
        self.extra = [int((one - int(one)) * self.period) for one in due]

    def before(self, batch: int) -> list[int]:
        """Samples of each stream in all batches before one, (S,)."""
        periods, slots = divmod(batch, self.period)
        given = [periods * extra for extra in self.extra]
        for chosen in islice(self._chosen(), slots):
            for stream in chosen:
                given[stream] += 1
        return [batch * whole + more for whole, more in zip(self.whole, given, strict=True)]

    def from_batch(self, start: int) -> Iterator[list[int]]:
        """Samples of each stream in one batch after the other, (S,) each."""
        for chosen in islice(self._chosen(), start % self.period, None):
            yield [whole + (stream in chosen) for stream, whole in enumerate(self.whole)]

    def _chosen(self) -> Iterator[list[int]]:
        """Streams that get one sample more, batch after batch from the first."""
        places = self.size - sum(self.whole)
        for batch in count():
            slot = batch % self.period
            if slot == 0:
                given = [0] * len(self.extra)
            waiting = [
                (*_urgency(number + 1, extra, self.period), stream)
                for stream, (number, extra) in enumerate(zip(given, self.extra, strict=True))
                if number * self.period < (slot + 1) * extra
            ]
            chosen = [stream for *_, stream in sorted(waiting)[:places]]
            for stream in chosen:
                given[stream] += 1
            yield chosen


def _urgency(number: int, extra: int, period: int) -> tuple[int, int, int]:
    """Rank of the ``number``-th extra sample, from 1, of a stream with ``extra`` in ``period``.

    Less is more urgent: its deadline; whether its window overlaps the next one; and, of a stream
    with one extra in at least every second batch, the end of the run of windows that a delay
    would push on.
    """
    deadline, overlaps = _ceil(number * period, extra), number * period % extra > 0
    group = 0
    if overlaps and 2 * extra >= period:
        rest = period - extra
        group = _ceil(_ceil(deadline * rest, period) * period, rest)
    return deadline, -overlaps, -group


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)


def batch_order(size: int, world: int) -> NDArray[np.int64]:
    """Where each place of a batch takes its sample from the batch sorted by stream, (size,).

    Cut into ``world`` equal consecutive parts, no part has a stream twice more often than another.
    The order is that of one process where ``world`` is a product of the first prime factors of
    ``size``, such as 2, 4 or 8 of 24.
    """
    factors = _prime_factors(size)
    if world not in accumulate([1, *factors], mul):
        factors = [world, *_prime_factors(size // world)]
    # Reversed digits: the samples with one remainder by the first factor become neighbours, ...
    return np.arange(size).reshape(factors[::-1]).transpose().ravel()


def _prime_factors(number: int) -> list[int]:
    factors, factor = [], 2
    while number > 1:
        while number % factor == 0:
            factors.append(factor)
            number //= factor
        factor += 1
    return factors
