"""The files of a packed split: tar files with a table each, and the tables of split and folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.files import read_bytes, read_json
from lidarssl.datasets.shard_index import (
    FRAMES_LIMIT,
    INDEX_FILE,
    FrameTable,
    Layout,
    ShardsIndex,
    SplitEntry,
    frames_file,
)
from lidarssl.datasets.shard_parsing import parse_frame_table, parse_part
from lidarssl.errors import DataError
from lidarssl.prepare.shard_leftovers import remove_surplus
from lidarssl.prepare.shard_packing import label_shares
from lidarssl.replacing import replacing


@dataclass(frozen=True)
class ShardSettings:
    """What the shards of a split are made of.

    Attributes:
        dataset, split: where the frames come from.
        fields: names of what is packed.
        frames: how many the split has.
        fingerprint: of their ids.
        frames_per_shard: the last shard may have fewer.
        first: digest of calibration and points of the first frame, which the dataset's options
            change, and of its superpixels where nothing says what they were made with.
        superpixels: what they were made with, by name; None = there are none, or nobody noted.
    """

    dataset: str
    split: str
    fields: tuple[str, ...]
    frames: int
    fingerprint: str
    frames_per_shard: int
    first: str
    superpixels: dict[str, Any] | None

    @property
    def shards(self) -> int:
        return -(-self.frames // self.frames_per_shard)

    def rows(self, shard: int) -> range:
        """Frames of a shard."""
        return range(self.frames)[
            shard * self.frames_per_shard : (shard + 1) * self.frames_per_shard
        ]


def part_paths(folder: Path, split: str, shard: int) -> tuple[Path, Path]:
    """A tar file, and the table of its frames."""
    return folder / f"{split}-{shard:06d}.tar", folder / f"{split}-{shard:06d}.json"


def read_part(folder: Path, settings: ShardSettings, shard: int) -> FrameTable | None:
    """The table of a shard that an earlier pass made, where both are whole."""
    tar, path = part_paths(folder, settings.split, shard)
    try:
        value: Any = read_json(path, FRAMES_LIMIT)
        table = parse_part(value, path)
        same = value["settings"] == json.loads(json.dumps(asdict(settings)))
        there = tar.is_file() and tar.stat().st_size == table.shards[0].bytes
    except (DataError, KeyError):
        return None
    whole = [len(table.rows), table.shards[0].name] == [len(settings.rows(shard)), tar.name]
    return table if same and there and whole else None


def write_index(folder: Path, dataset: Dataset, settings: ShardSettings) -> int:
    """The tables of the split and of the folder, when every shard is there; how many are not.

    What an earlier packing of the split had beyond that goes.
    """
    parts = [read_part(folder, settings, shard) for shard in range(settings.shards)]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return len(parts) - len(found)
    remove_surplus(folder, settings.split, settings.shards)
    table = replace(
        _joined(found),
        fields=settings.fields,
        shares=label_shares(dataset, settings.split),
        conditions={
            name: tuple((frame.sequence, frame.token) for frame in frames)
            for name, frames in dataset.conditions(settings.split).items()
        },
        absent=dataset.absent(settings.split),
        superpixels=settings.superpixels,
    )
    with replacing(folder / frames_file(settings.split)) as partial:
        partial.write_text(table.to_json())
    _write_splits(folder, dataset)
    return 0


def _joined(parts: Sequence[FrameTable]) -> FrameTable:
    layouts: dict[Layout, int] = {}
    rows = []
    for part in parts:
        numbers = [layouts.setdefault(layout, len(layouts)) for layout in part.layouts]
        rows += [replace(row, layout=numbers[row.layout]) for row in part.rows]
    shards = tuple(shard for part in parts for shard in part.shards)
    return FrameTable(shards, tuple(layouts), tuple(rows))


def _write_splits(folder: Path, dataset: Dataset) -> None:
    """``index.json``, once more where another process has finished a split meanwhile."""
    suffix = frames_file("")
    paths: list[Path] = []
    while paths != (paths := sorted(folder.glob(f"*{suffix}"))):
        splits = {
            path.name.removesuffix(suffix): parse_frame_table(
                read_bytes(path, FRAMES_LIMIT), path
            ).entry
            for path in paths
        }
        with replacing(folder / INDEX_FILE) as partial:
            partial.write_text(describe_dataset(dataset, splits).to_json())


def describe_dataset(dataset: Dataset, splits: Mapping[str, SplitEntry]) -> ShardsIndex:
    """``index.json`` of a dataset with some splits."""
    return ShardsIndex(
        dataset.name,
        dataset.lidar,
        dataset.classes,
        dataset.box_classes,
        dataset.forward,
        dataset.intensity_statistics,
        dict(splits),
    )
