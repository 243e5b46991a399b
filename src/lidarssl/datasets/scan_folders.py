"""What datasets of scans and labels alone share: folders of .bin and .label files."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.files import POINT_FILE_LIMIT, list_names, read_bytes
from lidarssl.datasets.point_files import make_cloud, map_labels, parse_bin, parse_labels
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Field, Frame, FrameId


class ScanFolders(Dataset):
    """``<folder>/<sequence>/{<scans>,labels}``: no cameras, no calibration, no poses.

    Sequences that are not there are left out. Labels are the lower 16 bits of a .label entry.

    Attributes:
        scans: folder of the .bin files of a sequence.
        columns: of a .bin file.
        learning_map: train id of each raw label.
        archive: download that holds the scans, for messages.

    Args:
        folder: holds the folders of the sequences.
        ignore_unknown_labels: map raw ids outside the learning map to the ignored class instead
            of refusing the frame.
    """

    scans: str
    columns: tuple[str, ...]
    learning_map: Mapping[int, int]
    archive: str

    def __init__(self, folder: Path, ignore_unknown_labels: bool = False) -> None:
        self.folder = folder
        self.ignore_unknown_labels = ignore_unknown_labels

    @property
    @abstractmethod
    def split_sequences(self) -> Mapping[str, tuple[str, ...]]:
        """Sequences of each split, sorted."""

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.split_sequences)

    def frames(self, split: str) -> list[FrameId]:
        """Scans of a split, sorted by their paths."""
        if split not in self.split_sequences:
            raise unknown_name("split", split, self.splits)
        sequences = self.split_sequences[split]
        found = [
            FrameId(self.name, sequence, name.removesuffix(".bin"))
            for sequence in sequences
            for name in list_names(self.folder / sequence / self.scans, [".bin"])
        ]
        if not found:
            raise DataError(
                f"no scan of split '{split}' (folders {', '.join(sequences)})",
                path=self.folder,
                field=self.scans,
                remedy=f"unpack {self.archive} here",
            )
        return found

    def absent(self, split: str) -> str:
        there = self.sequences(split)
        gone = [name for name in self.split_sequences[split] if name not in there]
        return f"sequences {', '.join(gone)}" if gone else ""

    def provides(self, split: str) -> Field:
        labels = self.folder / self.frames(split)[0].sequence / "labels"
        labelled = next(labels.glob("*.label"), None) is not None
        return Field.SEMANTIC if labelled else Field.NONE

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        self._check(frame)
        path = self.folder / frame.sequence / self.scans / f"{frame.token}.bin"
        data = read_bytes(path, POINT_FILE_LIMIT)
        cloud = make_cloud(parse_bin(data, path, self.columns), path)
        return Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            ring=cloud.ring,
            semantic=self._labels(frame, len(cloud.points)) if Field.SEMANTIC in fields else None,
        )

    def _check(self, frame: FrameId) -> None:
        """Refuse an id that ``frames`` cannot have returned, which might lead anywhere."""
        known = {name for names in self.split_sequences.values() for name in names}
        named = re.fullmatch(r"[^\\/\0.][^\\/\0]{0,199}", frame.token)
        if frame.dataset != self.name or frame.sequence not in known or not named:
            raise DataError(
                f"'{frame}' is not the id of a scan",
                path=self.folder,
                field="token",
                remedy="use an id that frames() returned",
            )

    def _labels(self, frame: FrameId, points: int) -> Tensor | None:
        folder = self.folder / frame.sequence / "labels"
        if not folder.is_dir():
            return None
        path = folder / f"{frame.token}.label"
        raw = parse_labels(read_bytes(path, POINT_FILE_LIMIT), path, "<u4", points)
        return map_labels(raw & 0xFFFF, self._lookup, path)

    @cached_property
    def _lookup(self) -> np.ndarray:
        lookup = np.full(1 << 16, 0 if self.ignore_unknown_labels else -1, np.int64)
        lookup[list(self.learning_map)] = list(self.learning_map.values())
        return lookup
