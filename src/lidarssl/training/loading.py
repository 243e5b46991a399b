"""From frame ids to batches: the same batches whatever the workers, the ranks or the restarts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from lidarssl.batching import collate
from lidarssl.datasets.base import Dataset, Stream
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, Field, Frame, FrameId, PointBatch
from lidarssl.training.memory import keep_freed_memory
from lidarssl.training.packing import packed
from lidarssl.training.sampling import stream_batches, uniform_batches
from lidarssl.transforms.base import Compose, Transform, sample_generator
from lidarssl.transforms.images import decoded
from lidarssl.transforms.mixing import MixingTransform
from lidarssl.wording import counted

BadSamples = Literal["raise", "skip"]
Prepare = Callable[[PointBatch], PointBatch]


@dataclass
class LoadedBatch:
    """What a worker hands over: the batch, or the error that stopped it.

    Attributes:
        batch: None when ``error`` is set.
        skipped: messages of bad samples that were replaced by the next good one.
        error: raised in the main process, where its message is not buried in a traceback.
    """

    batch: Batch | None
    skipped: tuple[str, ...] = ()
    error: DataError | None = None

    def pin_memory(self) -> LoadedBatch:
        batch = None if self.batch is None else self.batch.pin_memory()
        return LoadedBatch(batch, self.skipped, self.error)


@dataclass
class _Loaded:
    frame: Frame | None
    skipped: tuple[str, ...] = ()
    error: DataError | None = None


class FrameSource(TorchDataset[_Loaded]):
    """Frames of a list of ids, transformed with the generator of (seed, epoch, sample).

    Args:
        dataset: where frames come from.
        ids: the frames.
        fields: what to read of each.
        transforms: applied in order.
        seed: of every random draw.
        bad_samples: ``raise``, or ``skip`` to take the next good frame instead.
        max_tries: bad frames in a row after which ``skip`` gives up.
        mixing: applied before the transforms, with other frames of ``ids`` as they are loaded.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: Sequence[FrameId],
        fields: Field,
        transforms: Sequence[Transform],
        seed: int,
        bad_samples: BadSamples = "raise",
        max_tries: int = 16,
        mixing: Sequence[MixingTransform] = (),
    ) -> None:
        self.dataset, self.ids, self.fields = dataset, list(ids), fields | Field.UNDECODED
        self.transforms, self.seed, self.mixing = Compose(transforms), seed, tuple(mixing)
        self.tries = max_tries if bad_samples == "skip" else 1

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, epoch: int, sample: int) -> Frame:
        frame = self.dataset.load(self.ids[sample], self.fields)
        rng = sample_generator(self.seed, epoch, sample)
        for mix in self.mixing:
            frame = mix(frame, rng, self._another)
        return decoded(self.transforms(frame, rng))

    def _another(self, rng: np.random.Generator) -> Frame:
        return self.dataset.load(self.ids[int(rng.integers(len(self.ids)))], self.fields)

    def __getitem__(self, key: tuple[int, int]) -> _Loaded:
        epoch, first = key
        skipped: list[str] = []
        for offset in range(self.tries):
            try:
                frame = self.load(epoch, (first + offset) % len(self.ids))
                return _Loaded(frame, tuple(skipped))
            # Not of this frame: no other would do better.
            except ConfigError as error:
                return _Loaded(None, tuple(skipped), error)
            except DataError as error:
                skipped.append(str(error))
                last = error
        return _Loaded(None, tuple(skipped), last)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Keys (epoch, sample) of every batch of a run: a function of (seed, epoch) alone.

    Each global batch is split into equal consecutive parts, one per rank. With streams an epoch is
    as long, but holds a fixed share of each; a key then counts the passes over its stream.

    Args:
        samples: number of frames.
        batch_size: frames of a global batch, a multiple of ``world``.
        batches: number of batches of the whole run.
        seed: of the shuffles.
        rank, world: this process and how many there are.
        drop_last: leave out the frames of an epoch that do not fill a batch; False = they are a
            smaller one.
        streams: see ``Dataset.streams``; none = all frames alike.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        batches: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
        streams: Sequence[Stream] = (),
    ) -> None:
        if samples < (batch_size if drop_last else 1):
            raise ConfigError(
                f"{counted(samples, 'frame')} cannot fill a batch of {batch_size}",
                field="training.batch_size",
                remedy=f"use {samples} or less, or more frames, or training.drop_last false",
            )
        self.samples, self.batch_size, self.batches = samples, batch_size, batches
        self.seed, self.start, self.drop_last = seed, 0, drop_last
        self.streams = tuple(streams)
        self.split(rank, world)

    def split(self, rank: int, world: int) -> None:
        """Become the part of one of ``world`` processes.

        Raises:
            ConfigError: a batch cannot be shared equally.
        """
        if self.batch_size % world:
            raise ConfigError(
                f"a global batch of {counted(self.batch_size, 'frame')} cannot be split over "
                f"{world} processes",
                field="training.batch_size",
                remedy=f"use a multiple of {world}",
            )
        left = self.samples % self.batch_size
        if not self.drop_last and left % world:
            raise ConfigError(
                f"the last batch of an epoch, of {counted(left, 'frame')}, cannot be split over "
                f"{world} processes",
                field="training.drop_last",
                remedy="set it to true, or use another training.batch_size",
            )
        self.rank, self.world = rank, world

    @property
    def per_epoch(self) -> int:
        """Batches of one pass over the frames."""
        return batches_per_epoch(self.samples, self.batch_size, self.drop_last)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for together in islice(self._together(), max(0, self.batches - self.start)):
            share = len(together) // self.world
            yield together[self.rank * share : (self.rank + 1) * share]

    def _together(self) -> Iterator[list[tuple[int, int]]]:
        """Global batches from ``start`` on, without end."""
        size, per_epoch = self.batch_size, self.per_epoch
        if not self.streams:
            return uniform_batches(self.samples, size, per_epoch, self.seed, self.start)
        last = size if self.drop_last else self.samples - (per_epoch - 1) * size
        return stream_batches(
            self.streams, (size, last), per_epoch, self.seed, self.start, self.world
        )


def batches_per_epoch(samples: int, batch_size: int, drop_last: bool) -> int:
    """Batches of one pass over ``samples`` frames, with or without an incomplete last one."""
    return samples // batch_size if drop_last else -(-samples // batch_size)


class ResumableLoader(DataLoader[Any]):
    """Knows how many batches it handed out, and starts there after ``load_state_dict``."""

    consumed = 0

    def __iter__(self) -> Any:
        self.consumed = getattr(self.batch_sampler, "start", 0)
        for batch in super().__iter__():
            self.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert isinstance(self.batch_sampler, EpochBatches)
        self.batch_sampler.start = state["consumed"]


def training_loader(
    source: FrameSource,
    batches: EpochBatches,
    workers: int,
    prepare: Prepare | None,
    pin_memory: bool = False,
    prefetch: int = 2,
) -> ResumableLoader:
    """Batches of a training run, prepared for the backbone in the workers.

    Args:
        source, batches: the frames, and which of them make a batch.
        workers: processes; 0 = none but this one.
        prepare: of the backbone.
        pin_memory: for a GPU, to which batches then travel while it computes.
        prefetch: batches that each worker makes ahead.
    """
    return ResumableLoader(
        source,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_Collate(prepare),
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_start_worker,
    )


def evaluation_batches(
    source: FrameSource, batch_size: int, workers: int, prepare: Prepare | None
) -> Iterator[Batch]:
    """Every frame once, in order, with the draws of epoch 0.

    Raises:
        DataError: a frame is bad.
    """
    starts = range(0, len(source), batch_size)
    parts = [range(first, min(first + batch_size, len(source))) for first in starts]
    return _batches_of(source, parts, workers, prepare)


def held_out_batches(
    source: FrameSource,
    batch_size: int,
    workers: int,
    prepare: Prepare | None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """This process's part of every batch of a validation: in order, with the draws of epoch 0.

    All batches are of one size, because a contrastive loss depends on it: ``batch_size``, or all
    frames where there are fewer; those that do not fill a batch are left out.

    Raises:
        ConfigError: fewer frames than processes.
        DataError: a frame is bad.
    """
    size = min(batch_size, len(source) - len(source) % world)
    if size == 0:
        raise ConfigError(
            f"{counted(len(source), 'held-out frame')} cannot be shared by {world} processes",
            field="training.validate_every",
            remedy="validate on a split with more frames, or set it to 0",
        )
    share = size // world
    starts = range(rank * share, len(source) - size + rank * share + 1, size)
    parts = [range(first, first + share) for first in starts]
    return _batches_of(source, parts, workers, prepare)


def _batches_of(
    source: FrameSource, parts: Sequence[range], workers: int, prepare: Prepare | None
) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_sampler=[[(0, sample) for sample in part] for part in parts],
        num_workers=workers,
        collate_fn=_Collate(prepare),
        worker_init_fn=_start_worker,
        # Else every pass would advance the global generator.
        generator=torch.Generator(),
    )
    return (good_batch(loaded) for loaded in loader)


def _start_worker(worker: int) -> None:
    """Ctrl-C and SIGTERM for the group are for the main process, which ends its workers."""
    os.setpgrp()
    keep_freed_memory()


def good_batch(loaded: LoadedBatch) -> Batch:
    """The batch, or the error of the worker that should have made it."""
    if loaded.error is not None:
        try:
            raise loaded.error
        finally:
            # Else the error, through its traceback, holds itself and the loader's workers.
            loaded.error = None
    assert loaded.batch is not None
    return loaded.batch


class _Collate:
    def __init__(self, prepare: Prepare | None) -> None:
        self.prepare = prepare

    def __call__(self, samples: list[_Loaded]) -> LoadedBatch:
        skipped = tuple(message for sample in samples for message in sample.skipped)
        for sample in samples:
            if sample.error is not None:
                return LoadedBatch(None, skipped, sample.error)
        try:
            batch = collate([sample.frame for sample in samples if sample.frame is not None])
            if self.prepare is not None:
                with torch.no_grad():
                    batch.points = self.prepare(batch.points)
        except DataError as error:
            return LoadedBatch(None, skipped, error)
        return LoadedBatch(batch if get_worker_info() is None else packed(batch), skipped)
