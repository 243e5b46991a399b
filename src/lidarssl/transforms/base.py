"""The contract of a transform: Frame -> Frame, random draws from the generator it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lidarssl.frame import Frame


class Transform(Protocol):
    """Never changes its input; never draws from anywhere but ``rng``."""

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame: ...


class Compose:
    """Apply transforms in order."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        for transform in self.transforms:
            frame = transform(frame, rng)
        return frame


def sample_generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The generator of one sample: the same whatever the worker, rank or restart."""
    return np.random.default_rng([seed, epoch, sample])
