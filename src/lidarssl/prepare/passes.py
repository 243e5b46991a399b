"""What the passes over the images of a dataset have in common."""

from __future__ import annotations

import math
from typing import Literal

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.frame import Field, FrameId

OnError = Literal["raise", "skip"]


def check_on_error(on_error: str) -> None:
    """Raises ConfigError for anything but ``OnError``."""
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"'{on_error}' is neither 'raise' nor 'skip'", field="on_error")


def frames_with_images(dataset: Dataset, split: str, shard: tuple[int, int]) -> list[FrameId]:
    """Frames i, i + n, i + 2n, ... of a split, for shard (i, n).

    Raises:
        ConfigError: the shard does not exist, or the split has no images.
    """
    number, count = shard
    if not 0 <= number < count:
        raise ConfigError(
            f"shard {number}/{count} does not exist",
            field="shard",
            remedy="count shards from 0: 0/4, 1/4, 2/4, 3/4",
        )
    if Field.IMAGES not in dataset.provides(split):
        raise ConfigError(f"split '{split}' of {dataset.name} has no images", field="dataset")
    return dataset.frames(split)[number::count]


def in_words(hours: float) -> str:
    """A duration to read."""
    return f"{hours:.1f} h" if hours >= 1 else f"{math.ceil(hours * 60)} min"
