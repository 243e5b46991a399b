"""Integer keys of lattice sites whose order is that of the (batch, x, y, z) rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST_KEY = 2**63 - 2  # the largest int64 is kept as the sentinel of `find`


@dataclass(frozen=True)
class Box:
    """Smallest and largest value of each coordinate column, both inclusive."""

    low: tuple[int, ...]
    high: tuple[int, ...]

    @classmethod
    def around(cls, coordinates: Tensor) -> Box:
        """Bounds of (N, D) coordinates; of no rows, the origin."""
        if coordinates.shape[0] == 0:
            return cls((0,) * coordinates.shape[1], (0,) * coordinates.shape[1])
        low, high = torch.aminmax(coordinates, dim=0)
        bounds = torch.stack([low, high]).tolist()
        return cls(tuple(bounds[0]), tuple(bounds[1]))

    def join(self, other: Box) -> Box:
        return Box(
            tuple(min(a, b) for a, b in zip(self.low, other.low, strict=True)),
            tuple(max(a, b) for a, b in zip(self.high, other.high, strict=True)),
        )

    def grow(self, before: Sequence[int], after: Sequence[int]) -> Box:
        """Move the lower corner by ``before`` and the upper one by ``after``."""
        return Box(
            tuple(a + b for a, b in zip(self.low, before, strict=True)),
            tuple(a + b for a, b in zip(self.high, after, strict=True)),
        )

    def steps(self) -> tuple[int, ...] | None:
        """How much a key grows with each column; None when keys would not fit 63 bits."""
        steps = [1]
        for low, high in zip(reversed(self.low[1:]), reversed(self.high[1:]), strict=True):
            steps.append(steps[-1] * (high - low + 1))
        if steps[-1] * (self.high[0] - self.low[0] + 1) > _LARGEST_KEY:
            return None
        return tuple(reversed(steps))


def pack(coordinates: Tensor, box: Box, steps: Sequence[int]) -> Tensor:
    """Keys of (..., D) coordinates inside ``box``, (...) int64, in row order."""
    keys = coordinates[..., -1] - box.low[-1]
    for column in range(coordinates.shape[-1] - 1):
        keys = keys + (coordinates[..., column] - box.low[column]) * steps[column]
    return keys


def ranks(coordinates: Tensor) -> Tensor:
    """Keys of (M, D) rows for any extent: what ``pack`` gives, up to gaps.

    Every column is replaced by the rank of its value, and so is the key so far: no product
    exceeds M squared.
    """
    keys = coordinates.new_zeros(coordinates.shape[0])
    if coordinates.shape[0] == 0:
        return keys
    for column in coordinates.unbind(1):
        values, rank = torch.unique(column, return_inverse=True)
        keys = torch.unique(keys, return_inverse=True)[1] * values.shape[0] + rank
    return keys


def site_keys(coordinates: Tensor) -> Tensor:
    """Keys of (M, D) rows: equal rows have equal keys, and keys sort as rows do."""
    box = Box.around(coordinates)
    steps = box.steps()
    return ranks(coordinates) if steps is None else pack(coordinates, box, steps)


def find(keys: Tensor, queries: Tensor, run: int) -> tuple[Tensor, Tensor]:
    """Look up every query and the ``run`` - 1 keys that follow it.

    Keys that follow each other are neighbours in the sorted list, so that a run costs one
    binary search.

    Args:
        keys: (N,) int64, strictly increasing.
        queries: (Q, M) int64.
        run: keys looked up from each query on.

    Returns:
        position in ``keys`` (undefined where not found) and whether found, both (Q * run, M);
        row q * run + j is ``queries[q] + j``.
    """
    padded = torch.cat([keys, keys.new_full((1,), torch.iinfo(torch.int64).max)])
    position = torch.searchsorted(keys, queries)
    positions, found = [], []
    for step in range(run):
        hit = padded[position] == queries + step
        positions.append(position)
        found.append(hit)
        position = position + hit
    shape = (queries.shape[0] * run, queries.shape[1])
    return torch.stack(positions, 1).view(shape), torch.stack(found, 1).view(shape)
