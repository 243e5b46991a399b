"""Labelled scans with numbered objects, in memory: a street, people and bicycles on it, a wall."""

from __future__ import annotations

import torch
from torch import Tensor

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.frame import Field, Frame, FrameId

NAMES = ("ignored", "road", "person", "bicycle", "wall")
ROAD, PERSON, BICYCLE, WALL = 1, 2, 3, 4


class ObjectScans(Dataset):
    """Objects of 1 to 12 points with ids from 1 in every scan, and some without an id.

    Intensities tell all points of all scans apart.

    Args:
        scans: of each split.
        objects: of each class in each scan.
        carried: what frames have.
    """

    name = "objects"
    classes = ClassTable(NAMES, tuple((40 * i, 0, 0) for i in range(len(NAMES))))
    splits = ("train", "val")

    def __init__(
        self, scans: int = 5, objects: int = 4, carried: Field = Field.SEMANTIC | Field.INSTANCE
    ) -> None:
        self.scans, self.objects, self.carried = scans, objects, carried

    def frames(self, split: str) -> list[FrameId]:
        first = 0 if split == "train" else self.scans
        return [FrameId(self.name, split, f"{first + i:04d}") for i in range(self.scans)]

    def provides(self, split: str) -> Field:
        return self.carried

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        number = int(frame.token)
        generator = torch.Generator().manual_seed(number)
        points, semantic, instance = _street(self.objects, generator)
        order = torch.randperm(len(points), generator=generator)
        return Frame(
            id=frame,
            points=points[order],
            intensity=1000.0 * number + torch.arange(len(points)),
            semantic=semantic[order] if Field.SEMANTIC in fields else None,
            instance=instance[order] if Field.INSTANCE in fields else None,
        )


def _street(objects: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    def cloud(count: int, low: tuple[float, ...], high: tuple[float, ...]) -> Tensor:
        lowest, highest = torch.tensor(low), torch.tensor(high)
        return lowest + torch.rand((count, 3), generator=generator) * (highest - lowest)

    parts = [
        (cloud(80, (-12, -8, -1.8), (12, 8, -1.6)), ROAD, 0),
        (cloud(30, (-12, 9, -1.8), (12, 10, 2.0)), WALL, 0),
        (cloud(5, (-12, -8, -1.8), (12, 8, 2.0)), 0, 0),
        (cloud(7, (-3, -3, -1.7), (3, 3, 0.0)), PERSON, 0),
    ]
    for number in range(2 * objects):
        size = int(torch.randint(1, 13, (1,), generator=generator))
        x, y, _ = cloud(1, (-10, -7, 0), (10, 7, 0))[0].tolist()
        body = cloud(size, (x, y, -1.7), (x + 0.6, y + 0.6, 0.1))
        parts.append((body, (PERSON, BICYCLE)[number % 2], 1 + number))
    return (
        torch.cat([points for points, _, _ in parts]),
        torch.cat([torch.full((len(points),), label) for points, label, _ in parts]),
        torch.cat([torch.full((len(points),), instance) for points, _, instance in parts]),
    )
