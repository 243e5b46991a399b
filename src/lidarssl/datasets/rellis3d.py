"""RELLIS-3D: scans of trails, meadows and woods with per-point labels, off every road.

Lidar (Ouster OS1, 64 beams, 10 Hz) frame: as stored, z up; intensity as stored. Which way x and y
point and how far the intensity goes has not been verified on real files. The classes are the 19
that OLIVINE and Seal score; the publisher's own benchmark scores 14 of them. Data: Jiang et al.,
ICRA 2021. Images, poses and the second lidar are not read.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.datasets.files import (
    MEBIBYTE,
    POINT_FILE_LIMIT,
    decode_text,
    list_names,
    read_bytes,
)
from lidarssl.datasets.layout import find_root
from lidarssl.datasets.point_files import (
    KITTI_COLUMNS,
    PointCloud,
    make_cloud,
    map_labels,
    parse_bin,
    parse_labels,
)
from lidarssl.errors import DataError, unknown_name
from lidarssl.frame import Field, Frame, FrameId

SPLITS = ("train", "val", "test")
SEQUENCES = ("00000", "00001", "00002", "00003", "00004")
SCANS, LABELS = "os1_cloud_node_kitti_bin", "os1_cloud_node_semantickitti_label_id"

# Train class: colour, raw id.
_CLASSES: dict[str, tuple[tuple[int, int, int], int]] = {
    "void": ((0, 0, 0), 0),
    "dirt": ((108, 64, 20), 1),
    "grass": ((0, 102, 0), 3),
    "tree": ((0, 255, 0), 4),
    "pole": ((0, 153, 153), 5),
    "water": ((0, 128, 255), 6),
    "sky": ((0, 0, 255), 7),
    "vehicle": ((255, 255, 0), 8),
    "object": ((255, 0, 127), 9),
    "asphalt": ((64, 64, 64), 10),
    "building": ((255, 0, 0), 12),
    "log": ((102, 0, 0), 15),
    "person": ((204, 153, 255), 17),
    "fence": ((102, 0, 204), 18),
    "bush": ((255, 153, 204), 19),
    "concrete": ((170, 170, 170), 23),
    "barrier": ((41, 121, 255), 27),
    "puddle": ((134, 255, 239), 31),
    "mud": ((99, 66, 34), 33),
    "rubble": ((110, 22, 138), 34),
}
LEARNING_MAP = {raw: train for train, (_, raw) in enumerate(_CLASSES.values())}
HIGHEST_ID = max(LEARNING_MAP)

_LIST_LIMIT = 16 * MEBIBYTE
_LINE = re.compile(
    rf"([0-9]{{5}})/{SCANS}/([0-9]{{6}})\.bin[ \t]+([0-9]{{5}})/{LABELS}/([0-9]{{6}})\.label",
    re.ASCII,
)


class Rellis3d(Dataset):
    """RELLIS-3D in its official layout, ``<root>/00000/os1_cloud_node_kitti_bin/000000.bin``.

    Splits: train (7800 scans), val (2413) and test (3343), those of ``<root>/pt_train.lst``,
    ``pt_val.lst`` and ``pt_test.lst``, sorted. Scans that are not there are left out. Raw ids
    between 0 and 34 that have no class here are ignored.

    Args:
        root: folder that holds ``00000`` to ``00004`` and the lists.
        empty_returns: keep the points at the origin, which stand for rays that came back from
            nothing, as the published code does.
        ignore_unknown_labels: ignore raw ids above 34 too, instead of refusing the frame.

    Raises:
        DataError: no scans below ``root``; says which level to give.
    """

    name = "rellis3d"
    classes = ClassTable(tuple(_CLASSES), tuple(color for color, _ in _CLASSES.values()))

    def __init__(
        self,
        root: str | Path,
        empty_returns: bool = False,
        ignore_unknown_labels: bool = False,
    ) -> None:
        self.root = find_root(
            Path(root),
            [f"{sequence}/{SCANS}" for sequence in SEQUENCES],
            f"give the folder that holds 00000/{SCANS} and pt_train.lst",
        )
        self.empty_returns = empty_returns
        self.ignore_unknown_labels = ignore_unknown_labels

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def frames(self, split: str) -> list[FrameId]:
        listed = self._listed(split)
        found = self._there(listed)
        if not found:
            raise DataError(
                f"none of the {len(listed)} scans of split '{split}' is here",
                path=self.root,
                field=SCANS,
                remedy="unpack Rellis_3D_os1_cloud_node_kitti_bin.zip here",
            )
        return found

    def absent(self, split: str) -> str:
        listed = self._listed(split)
        missing = len(listed) - len(self._there(listed))
        return f"{missing} of the {len(listed)} scans of the split" if missing else ""

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        """Every skip-th scan of the sorted list, from the first on, of which those on disk."""
        return self._there(self._listed(split)[::skip])

    def fraction_size(self, split: str, skip: int) -> int:
        return len(self._listed(split)[::skip])

    def _listed(self, split: str) -> list[FrameId]:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        path = self.root / f"pt_{split}.lst"
        data = read_bytes(path, _LIST_LIMIT, "unpack the LiDAR Split File of RELLIS-3D here")
        return [FrameId(self.name, *scan) for scan in parse_list(data, path)]

    def _there(self, listed: list[FrameId]) -> list[FrameId]:
        folders = {frame.sequence: self.root / frame.sequence / SCANS for frame in listed}
        names = {key: set(list_names(folder, [".bin"])) for key, folder in folders.items()}
        return [frame for frame in listed if f"{frame.token}.bin" in names[frame.sequence]]

    def provides(self, split: str) -> Field:
        folder = self.root / self.frames(split)[0].sequence / LABELS
        labelled = next(folder.glob("*.label"), None) is not None
        return Field.SEMANTIC if labelled else Field.NONE

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        if frame.dataset != self.name or not re.fullmatch(
            r"[0-9]{5}/[0-9]{6}", f"{frame.sequence}/{frame.token}", re.ASCII
        ):
            raise DataError(
                f"'{frame}' is not the id of a scan",
                path=self.root,
                field="token",
                remedy="use an id that frames() returned",
            )
        cloud = self._cloud(frame)
        return Frame(
            id=frame,
            intensity_statistics=self.intensity_statistics,
            points=cloud.points,
            intensity=cloud.intensity,
            semantic=self._semantic(frame, cloud.kept) if Field.SEMANTIC in fields else None,
        )

    def _cloud(self, frame: FrameId) -> PointCloud:
        path = self.root / frame.sequence / SCANS / f"{frame.token}.bin"
        data = read_bytes(path, POINT_FILE_LIMIT)
        cloud = make_cloud(parse_bin(data, path, KITTI_COLUMNS), path)
        return cloud if self.empty_returns else drop_empty_returns(cloud, path)

    def _semantic(self, frame: FrameId, kept: Tensor) -> Tensor | None:
        """Train ids of the rows that are kept; None where the sequence has no labels."""
        folder = self.root / frame.sequence / LABELS
        if not folder.is_dir():
            return None
        path = folder / f"{frame.token}.label"
        raw = parse_labels(read_bytes(path, POINT_FILE_LIMIT), path, "<u4", len(kept))
        return map_labels(raw & 0xFFFF, self._lookup, path)[kept]

    @cached_property
    def _lookup(self) -> np.ndarray:
        highest = 0xFFFF if self.ignore_unknown_labels else HIGHEST_ID
        lookup = np.zeros(highest + 1, np.int64)
        lookup[list(LEARNING_MAP)] = list(LEARNING_MAP.values())
        return lookup


def drop_empty_returns(cloud: PointCloud, path: Path) -> PointCloud:
    """The points that are not at the origin.

    Raises:
        DataError: all are.
    """
    returned = (cloud.points != 0).any(dim=1)
    if not bool(returned.any()):
        raise DataError(
            f"all {len(returned)} points are at the origin: no ray came back",
            path=path,
            field="points",
            remedy="get the file again, or take this scan out of the list",
        )
    kept = cloud.kept.clone()
    kept[cloud.kept] = returned
    ring = None if cloud.ring is None else cloud.ring[returned]
    return PointCloud(cloud.points[returned], cloud.intensity[returned], ring, kept)


def parse_list(data: bytes, path: Path) -> list[tuple[str, str]]:
    """Sequence and scan of each line of a pt_*.lst, sorted.

    A line is the file of a scan and that of its labels. No other paths are taken, so that a list
    reaches nothing but scans of its dataset.

    Raises:
        DataError: a line is something else, a scan has the labels of another or stands twice, or
            there is none.
    """
    found = []
    for number, line in enumerate(decode_text(data, path).splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match.group(1, 2) != match.group(3, 4):
            raise DataError(
                f"line {number} is not a scan and its labels: {line.strip()[:120]!r}",
                path=path,
                field="split",
                remedy=f"write '00000/{SCANS}/000000.bin 00000/{LABELS}/000000.label'",
            )
        found.append((match[1], match[2]))
    if not found or len(set(found)) != len(found):
        problem = "a scan stands twice" if found else "names no scan"
        raise DataError(problem, path=path, field="split", remedy="get this list again")
    return sorted(found)
