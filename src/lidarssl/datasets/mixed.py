"""Several datasets as one: their frames one after the other, drawn alike or by weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import TypeVar

from lidarssl.datasets.base import ClassTable, Dataset, Stream
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import Field, Frame, FrameId

_LABELS = Field.SEMANTIC | Field.INSTANCE | Field.BOXES | Field.IMAGE_LABELS
_Result = TypeVar("_Result")


class Mixed(Dataset):
    """Any datasets together, for pretraining; each keeps its lidar frame and its intensities.

    Frames carry the name that a dataset has here, so that two may be of the same class. They
    provide what all provide, but never labels, whose classes differ: probe each dataset by itself.

    Args:
        datasets: by name, in the order of their frames.
        weights: share of each dataset in the samples of a training, up to a common factor. Frames
            of a small dataset are then seen more often than once an epoch, those of a large one
            less. Default: every frame once an epoch.

    Raises:
        ConfigError: no dataset, a name that cannot be used, or weights that do not fit.
    """

    name = "mixed"
    classes = ClassTable(("ignored",), ((0, 0, 0),))

    def __init__(
        self, datasets: dict[str, Dataset], weights: dict[str, float] | None = None
    ) -> None:
        _check_datasets(datasets)
        if weights is not None:
            _check_weights(weights, datasets)
        self.datasets, self.weights = dict(datasets), weights
        self.lidar = all(dataset.lidar for dataset in datasets.values())

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that all have, in the order of the first."""
        first, *others = self.datasets.values()
        return tuple(
            split for split in first.splits if all(split in other.splits for other in others)
        )

    def frames(self, split: str) -> list[FrameId]:
        return self._joined(split, lambda dataset: dataset.frames(split))

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        return self._joined(split, lambda dataset: dataset.label_fraction(split, skip))

    def provides(self, split: str) -> Field:
        found = self._each(split, lambda dataset: dataset.provides(split))
        return reduce(and_, found.values()) & ~_LABELS

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        dataset = self.of(frame)
        with _naming(frame.dataset):
            own = replace(frame, dataset=dataset.name)
            return replace(dataset.load(own, fields & ~_LABELS), id=frame)

    def absent(self, split: str) -> str:
        found = self._each(split, lambda dataset: dataset.absent(split))
        return "; ".join(f"{name}: {text}" for name, text in found.items() if text)

    def of(self, frame: FrameId) -> Dataset:
        """The dataset that a frame comes from.

        Raises:
            DataError: there is none of this name.
        """
        if frame.dataset not in self.datasets:
            raise DataError(
                f"frame {frame} is of no dataset here",
                field="frame",
                remedy=f"known: {', '.join(self.datasets)}",
            )
        return self.datasets[frame.dataset]

    def streams(self, frames: Sequence[FrameId]) -> tuple[Stream, ...]:
        if self.weights is None:
            return ()
        rows: dict[str, list[int]] = {name: [] for name in self.datasets}
        for row, frame in enumerate(frames):
            rows[frame.dataset].append(row)
        for name, found in rows.items():
            if not found:
                raise ConfigError(
                    f"dataset '{name}' has a weight, but no frame to train on",
                    field=f"dataset.weights.{name}",
                    remedy="leave the dataset out, or choose a split in which it has frames",
                )
        return tuple(Stream(name, self.weights[name], found) for name, found in rows.items())

    def _joined(self, split: str, ids: Callable[[Dataset], list[FrameId]]) -> list[FrameId]:
        return [
            replace(frame, dataset=name)
            for name, frames in self._each(split, ids).items()
            for frame in frames
        ]

    def _each(self, split: str, ask: Callable[[Dataset], _Result]) -> dict[str, _Result]:
        """An answer of every dataset about a split that all have."""
        self._check_split(split)
        found = {}
        for name, dataset in self.datasets.items():
            with _naming(name):
                found[name] = ask(dataset)
        return found

    def _check_split(self, split: str) -> None:
        lacking = [name for name, one in self.datasets.items() if split not in one.splits]
        if len(lacking) == len(self.datasets):
            raise unknown_name("split", split, self.splits)
        for name in lacking:
            raise ConfigError(
                f"dataset '{name}' has no split '{split}'",
                field="split",
                remedy=f"it has: {', '.join(self.datasets[name].splits)}; "
                f"all have: {', '.join(self.splits) or 'none'}",
            )


def _check_datasets(datasets: dict[str, Dataset]) -> None:
    if not datasets:
        raise ConfigError(
            "there is no dataset to mix",
            field="dataset.datasets",
            remedy="give one or more, {name: {class_path: ..., init_args: {...}}}",
        )
    for name, dataset in datasets.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII):
            raise ConfigError(
                f"'{name}' cannot be the name of a dataset",
                field="dataset.datasets",
                remedy="use letters, digits, _ and -",
            )
        if isinstance(dataset, Mixed):
            raise ConfigError(
                f"dataset '{name}' is a mixture itself",
                field=f"dataset.datasets.{name}",
                remedy="name its datasets here, beside the others",
            )


def _check_weights(weights: dict[str, float], datasets: dict[str, Dataset]) -> None:
    where = "dataset.weights"
    for name, weight in weights.items():
        if name not in datasets:
            close = unknown_name("dataset", name, datasets)
            raise ConfigError(close.problem, field=f"{where}.{name}", remedy=close.remedy)
        if not 0 < weight < 1e100:
            raise ConfigError(
                f"the weight of dataset '{name}' is {weight}",
                field=f"{where}.{name}",
                remedy="give the whole table {name: weight, ...}, numbers above 0; leave out a "
                "dataset without a share",
            )
    missing = [name for name in datasets if name not in weights]
    if missing:
        raise ConfigError(
            f"dataset '{missing[0]}' has no weight",
            field=where,
            remedy="give every dataset one, or none to all",
        )


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Say which dataset an error is of."""
    try:
        yield
    except DataError as error:
        raise type(error)(
            f"{error.problem} (dataset '{name}')",
            path=error.path,
            field=error.field,
            remedy=error.remedy,
        ) from error
