"""The tables of a folder of shards: ``index.json`` of the dataset, one of every split.

``index.json`` holds the class table and what else a ``Dataset`` says of itself, and for each split
its fields, cameras and sizes. ``<split>.frames.json`` holds where every file of every frame starts,
so that any of them is one read of a range of bytes, on a disk or on a web server.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.shard_files import BLOCK, CHECKSUM, Member, key, member, padded
from lidarssl.frame import Field

INDEX_FILE = "index.json"
INDEX_LIMIT = 64 << 20
FRAMES_LIMIT = 1 << 30
FORMAT = "lidarssl shards 1"


@dataclass(frozen=True)
class SplitEntry:
    """A split in ``index.json``.

    Attributes:
        frames, shards: how many.
        fields: names of what frames carry.
        cameras: names of all.
        superpixels: see ``FrameTable``.
    """

    frames: int
    shards: int
    fields: tuple[str, ...]
    cameras: tuple[str, ...]
    superpixels: dict[str, float] | None = None

    @property
    def provides(self) -> Field:
        found = Field.NONE
        for name in self.fields:
            found |= Field[name.upper()]
        return found


@dataclass(frozen=True)
class ShardsIndex:
    """``index.json``: what a ``Dataset`` says of itself; see there for the attributes."""

    dataset: str
    lidar: bool
    classes: ClassTable
    box_classes: tuple[str, ...]
    forward: tuple[float, float]
    intensity_statistics: tuple[float, float] | None
    splits: dict[str, SplitEntry]

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, allow_nan=False) + "\n"


@dataclass(frozen=True)
class ShardFile:
    """A tar file and how many frames it holds."""

    name: str
    bytes: int
    frames: int


@dataclass(frozen=True)
class Layout:
    """What frames consist of: names of their cameras, and suffixes of their files in order."""

    cameras: tuple[str, ...]
    members: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """The frames of a fraction of the labels; see ``Dataset.label_fraction``.

    Attributes:
        rows: of the split.
        size, note: see ``fraction_size`` and ``fraction_note``.
    """

    rows: tuple[int, ...]
    size: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Where one frame is.

    Attributes:
        offset: of its first file in the tar file.
        sizes: of its files, in the order of the layout.
        checks: checksums of their content, one behind the other.
    """

    sequence: str
    token: str
    layout: int
    offset: int
    sizes: tuple[int, ...]
    checks: str

    def to_list(self) -> list[Any]:
        return [
            self.sequence, self.token, self.layout, self.offset, list(self.sizes), self.checks
        ]  # fmt: skip


@dataclass(frozen=True)
class FrameTable:
    """``<split>.frames.json``.

    Attributes:
        shards: in order.
        layouts: that frames have.
        rows: of every frame, in the order of the split.
        fields: names of what frames carry.
        shares: by skip; None = any share is every skip-th frame.
        conditions: sequence and token of frames, see ``Dataset.conditions``.
        absent: see ``Dataset.absent``.
        superpixels: what they were made with, by name; None = there are none, or nobody noted.
    """

    shards: tuple[ShardFile, ...]
    layouts: tuple[Layout, ...]
    rows: tuple[Row, ...]
    fields: tuple[str, ...] = ()
    shares: dict[int, Share] | None = None
    conditions: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    absent: str = ""
    superpixels: dict[str, float] | None = None

    @property
    def entry(self) -> SplitEntry:
        """What ``index.json`` says of the split."""
        cameras = dict.fromkeys(name for layout in self.layouts for name in layout.cameras)
        return SplitEntry(
            len(self.rows), len(self.shards), self.fields, tuple(cameras), self.superpixels
        )

    @cached_property
    def first_rows(self) -> np.ndarray:
        """(shards,) first row of each shard."""
        counts = [shard.frames for shard in self.shards]
        return np.cumsum([0, *counts[:-1]])

    def shard_of(self, row: int) -> ShardFile:
        return self.shards[int(np.searchsorted(self.first_rows, row, "right")) - 1]

    def places(self, row: int) -> list[Place]:
        """Every file of a frame, in order."""
        frame, offset, found = self.rows[row], self.rows[row].offset, []
        layout = self.layouts[frame.layout]
        for number, (suffix, size) in enumerate(zip(layout.members, frame.sizes, strict=True)):
            check = frame.checks[number * CHECKSUM : (number + 1) * CHECKSUM]
            name = f"{key(row)}.{suffix}"
            found.append(Place(member(suffix, Path(suffix)), name, offset, size, check))
            offset += padded(size)
        return found

    def to_json(self) -> str:
        value = {
            "format": FORMAT,
            "shards": [asdict(shard) for shard in self.shards],
            "layouts": [asdict(layout) for layout in self.layouts],
            "frames": [row.to_list() for row in self.rows],
            "fields": self.fields,
            "shares": None
            if self.shares is None
            else {str(skip): asdict(share) for skip, share in self.shares.items()},
            "conditions": self.conditions,
            "absent": self.absent,
            "superpixels": self.superpixels,
        }
        return json.dumps(value, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Place:
    """A file of a frame in its shard: header at ``offset``, then ``size`` bytes of ``check``."""

    member: Member
    name: str
    offset: int
    size: int
    check: str

    @property
    def end(self) -> int:
        return self.offset + BLOCK + self.size


def frames_file(split: str) -> str:
    """Name of the table of a split."""
    return f"{split}.frames.json"
