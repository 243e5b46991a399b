"""What datasets of scans with per-point labels share: folders of .bin and .label files."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.files import POINT_FILE_LIMIT, list_names, read_bytes
from lidarssl.datasets.point_files import (
    PointCloud,
    make_cloud,
    map_labels,
    parse_bin,
    parse_labels,
)
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Field, Frame, FrameId


class ScanFolders(Dataset):
    """``<folder>/<sequence>/{<scans>,labels}``: no cameras, no calibration, no poses.

    Sequences that are not there are left out. Semantic labels are the lower 16 bits of a .label
    entry; an instance id, where a dataset has any, is the whole entry, as in SemanticKITTI's
    panoptic evaluation.

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
        return self._fields(self.frames(split)[0].sequence)

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        if frame.dataset != self.name or not self._may_be(frame):
            raise DataError(
                f"'{frame}' is not the id of a scan",
                path=self.folder,
                field="token",
                remedy="use an id that frames() returned",
            )
        cloud = self._cloud(frame)
        semantic, instance = self._labels(frame, len(cloud.points), fields)
        return Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            ring=cloud.ring,
            semantic=semantic,
            instance=instance,
        )

    def _may_be(self, frame: FrameId) -> bool:
        """Whether ``frames`` can have returned this id; any other might lead anywhere."""
        known = {name for names in self.split_sequences.values() for name in names}
        named = re.fullmatch(r"[^\\/\0.][^\\/\0]{0,199}", frame.token)
        return frame.sequence in known and named is not None

    def _fields(self, sequence: str) -> Field:
        """What the scans of a sequence that is there carry."""
        labelled = next(self._label_folder(sequence).glob("*.label"), None) is not None
        return self._label_fields(sequence) if labelled else Field.NONE

    def _label_folder(self, sequence: str) -> Path:
        return self.folder / sequence / "labels"

    def _label_fields(self, sequence: str) -> Field:
        """What the .label files of a sequence hold."""
        return Field.SEMANTIC

    def _cloud(self, frame: FrameId) -> PointCloud:
        path = self.folder / frame.sequence / self.scans / f"{frame.token}.bin"
        data = read_bytes(path, POINT_FILE_LIMIT)
        return make_cloud(parse_bin(data, path, self.columns), path)

    def _labels(
        self, frame: FrameId, points: int, fields: Field
    ) -> tuple[Tensor | None, Tensor | None]:
        """Semantic and instance labels, (N,) int64 each, as far as asked for and there."""
        held = fields & self._label_fields(frame.sequence)
        folder = self._label_folder(frame.sequence)
        if not held or not folder.is_dir():
            return None, None
        path = folder / f"{frame.token}.label"
        raw = parse_labels(read_bytes(path, POINT_FILE_LIMIT), path, "<u4", points)
        semantic = instance = None
        if Field.SEMANTIC in held:
            semantic = map_labels(raw & 0xFFFF, self._lookup, path)
        if Field.INSTANCE in held:
            # The upper half alone repeats between classes; the whole label names one object.
            instance = torch.from_numpy(np.where(raw >> 16 > 0, raw, 0))
        return semantic, instance

    @cached_property
    def _lookup(self) -> np.ndarray:
        lookup = np.full(1 << 16, 0 if self.ignore_unknown_labels else -1, np.int64)
        lookup[list(self.learning_map)] = list(self.learning_map.values())
        return lookup
