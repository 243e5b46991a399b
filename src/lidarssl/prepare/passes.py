"""What the passes over a dataset have in common: the loop, its resumption, and what is told of it.

A pass can be killed at any moment and started again: a file appears under its name only when it
is whole, and whole files are not made twice.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Field, FrameId
from lidarssl.wording import counted

OnError = Literal["raise", "skip"]
Image = tuple[Path, Tensor]


@dataclass
class Summary:
    """What a pass over images did.

    Attributes:
        folder: where the files are.
        done: what was done to an image, e.g. ``segmented``.
        frames: frames of this shard.
        written: images that it was done to.
        kept: images whose file was there and whole.
        failures: one message per frame or image that could not be done.
        seconds: wall clock.
    """

    folder: Path
    done: str
    frames: int = 0
    written: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {counted(self.written, 'image')} {self.done}, {self.kept} kept, "
            f"{len(self.failures)} failed, {counted(self.frames, 'frame')} in {self.seconds:.0f} s"
        )
        return "\n  ".join([text, *self.failures])


@dataclass
class Outcome:
    """What was done for one item of a pass; ``error`` ended it.

    Attributes:
        written, kept: files that were made, and that were there and whole.
        images: file and image of what the process of the pass itself has to make.
        error: what it failed with.
    """

    written: int = 0
    kept: int = 0
    images: list[Image] = field(default_factory=list)
    error: DataError | None = None


_Outcome = TypeVar("_Outcome", bound=Outcome)
_Item = TypeVar("_Item")
_Settings = TypeVar("_Settings")


class ImageWork(TorchDataset[Outcome], Generic[_Settings]):
    """Item i is what is left to do for the images of frame i; runs in the workers of a loader.

    Args:
        dataset: with images.
        frames: of it.
        folder: of the files.
        settings: that the files are made with.
        overwrite: make files again that are there and whole.
    """

    def __init__(
        self,
        dataset: Dataset,
        frames: Sequence[FrameId],
        folder: Path,
        settings: _Settings,
        overwrite: bool,
    ) -> None:
        self.dataset, self.frames, self.folder = dataset, frames, folder
        self.settings, self.overwrite = settings, overwrite

    @abstractmethod
    def path(self, camera: Camera) -> Path:
        """The file that belongs to a camera's image."""

    @abstractmethod
    def check(self, path: Path, camera: Camera) -> None:
        """Raises DataError unless the file is whole."""

    @abstractmethod
    def make(self, path: Path, camera: Camera) -> Tensor | None:
        """Makes the file; or returns the image that the pass has to make it of."""

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Outcome:
        outcome = Outcome()
        try:
            for camera in self.cameras(index):
                path = self.path(camera)
                if not self.overwrite and self._is_whole(path, camera):
                    outcome.kept += 1
                elif (image := self.make(path, camera)) is None:
                    outcome.written += 1
                else:
                    outcome.images.append((path, image))
        except ConfigError:
            raise
        except DataError as error:
            outcome.error = error
        return outcome

    def cameras(self, index: int) -> tuple[Camera, ...]:
        """Those of a frame; their images need not be decoded."""
        return self.dataset.load(self.frames[index], Field.IMAGES | Field.UNDECODED).cameras

    def first_cameras(self) -> tuple[Camera, ...]:
        """Cameras of the first frame, to estimate with; none where it cannot be read."""
        try:
            return self.dataset.load(self.frames[0], Field.IMAGES).cameras if len(self) else ()
        except DataError:
            return ()

    def _is_whole(self, path: Path, camera: Camera) -> bool:
        if not path.is_file():
            return False
        try:
            self.check(path, camera)
        except DataError:
            return False
        return True


def outcomes(
    work: TorchDataset[_Outcome],
    length: int,
    title: str,
    unit: str = "frame",
    workers: int = 0,
    on_error: OnError = "raise",
    progress: bool = True,
) -> Iterator[_Outcome]:
    """Do the work, and show how far it is.

    Args:
        work: items.
        length: how many.
        title, unit: of the bar on standard error.
        workers: processes beside this one; 0 = none.
        on_error: ``raise`` the first error.
        progress: show the bar.
    """
    loader = DataLoader(work, batch_size=None, num_workers=min(workers, length))
    for outcome in tqdm(loader, title, unit=unit, disable=not progress):
        if outcome.error is not None and on_error == "raise":
            raise outcome.error
        yield outcome


def run_pass(
    work: ImageWork,
    summary: Summary,
    title: str,
    workers: int,
    on_error: OnError,
    progress: bool,
) -> Iterator[Image]:
    """Do the work of a pass over images, and count it.

    Yields:
        File and image of what is left to the caller, who counts it.
    """
    started = time.monotonic()
    for outcome in outcomes(work, len(work), title, "frame", workers, on_error, progress):
        summary.written += outcome.written
        summary.kept += outcome.kept
        if outcome.error is not None:
            summary.failures.append(str(outcome.error))
        yield from outcome.images
        summary.seconds = time.monotonic() - started


def in_batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """``size`` items at a time; the last batch is what is left."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def check_options(on_error: str, batch_size: int = 1) -> None:
    """Raises ConfigError for anything but ``OnError``, and for batches of nothing."""
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"'{on_error}' is neither 'raise' nor 'skip'", field="on_error")
    if batch_size < 1:
        raise ConfigError(f"batches of {batch_size} images", field="batch_size", remedy="try 8")


def check_shard(shard: tuple[int, int]) -> None:
    """Raises ConfigError for shard (i, n) without 0 <= i < n."""
    if not 0 <= shard[0] < shard[1]:
        raise ConfigError(
            f"shard {shard[0]}/{shard[1]} does not exist",
            field="shard",
            remedy="count shards from 0: 0/4, 1/4, 2/4, 3/4",
        )


def frames_with_images(dataset: Dataset, split: str, shard: tuple[int, int]) -> list[FrameId]:
    """Frames i, i + n, i + 2n, ... of a split, for shard (i, n).

    Raises:
        ConfigError: the shard does not exist, or the split has no images.
    """
    check_shard(shard)
    if Field.IMAGES not in dataset.provides(split):
        raise ConfigError(f"split '{split}' of {dataset.name} has no images", field="dataset")
    number, count = shard
    return dataset.frames(split)[number::count]


def check_same(path: Path, what: str, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Compare the settings of a folder with those that are asked for.

    Args:
        path: the file of the stored ones.
        what: is in the folder, with its verb: ``the image features in this folder were``.
        stored, asked: plain values by name.

    Raises:
        ConfigError: they differ.
    """
    differs = [name for name in {**stored, **asked} if stored.get(name) != asked.get(name)]
    if differs:
        told = (
            f"{name} {_short(stored.get(name))}, not {_short(asked.get(name))}" for name in differs
        )
        raise ConfigError(
            f"{what} made with other settings: {'; '.join(told)}",
            path=path,
            field=", ".join(differs),
            remedy="choose another folder, or --overwrite",
        )


def _short(value: object) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))[:80]
    return str(value)[:200]


def announce(message: str, progress: bool) -> None:
    """Tell what the pass will take, in the log and, with ``progress``, on standard error."""
    logging.getLogger(__name__).info(message)
    if progress:
        tqdm.write(message, file=sys.stderr)


def in_words(hours: float) -> str:
    """A duration to read."""
    return f"{hours:.1f} h" if hours >= 1 else f"{math.ceil(hours * 60)} min"
