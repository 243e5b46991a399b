"""DAPS-3D: scans of a cleaning robot in a park, of which DAPS-2, the recorded part, is read.

Lidar (Ouster OS0, 64 beams of 1024 cells) frame: as stored, z up; which way x and y point was not
verified on real files. Intensity as stored. Raw labels are those of SemanticKITTI, merged into
four classes. Data: Klokov et al., IEEE Access 2023. No camera images are released.
"""

from __future__ import annotations

from pathlib import Path

from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.layout import find_root
from lidarssl.datasets.point_files import KITTI_COLUMNS
from lidarssl.datasets.scan_folders import ScanFolders

_FOLDERS = ("DAPS-2/data", "data")

_TRAIN = ("38-18_7_72_90",)
_VAL = ("42-48_10_78_90", "44-18_11_15_32")
SEQUENCES = {"train": _TRAIN, "val": _VAL, "val_published": _TRAIN + _VAL}

# Train class: colour, raw ids. Bicycles are vehicles, their riders humans.
_CLASSES: dict[str, tuple[tuple[int, int, int], tuple[int, ...]]] = {
    "unlabeled": ((0, 0, 0), (0, 1, 52, 99)),
    "vehicle": ((100, 150, 245), (10, 11, 13, 15, 16, 18, 20, 252, 256, 257, 258, 259)),
    "human": ((255, 30, 30), (30, 31, 32, 253, 254, 255)),
    "surface": ((255, 0, 255), (40, 44, 48, 49, 60, 72)),
    "structure/vegetation": ((0, 175, 0), (50, 51, 70, 71, 80, 81)),
}
LEARNING_MAP = {raw: train for train, (_, ids) in enumerate(_CLASSES.values()) for raw in ids}


class Daps3d(ScanFolders):
    """DAPS-2 in its official layout, ``<root>/DAPS-2/data/<sequence>/{clouds,labels}``.

    Splits: train (38-18_7_72_90), val (42-48_10_78_90, 44-18_11_15_32); val_published, all three,
    is what OLIVINE's code validates on: the training sequence is one of them. Sequences that are
    not there are left out.

    Args:
        root: folder that holds ``DAPS-2/data``, or ``data``.
        ignore_unknown_labels: map raw ids outside the learning map to the ignored class instead
            of refusing the frame.

    Raises:
        DataError: no sequences below ``root``; says which level to give.
    """

    name = "daps3d"
    classes = ClassTable(tuple(_CLASSES), tuple(color for color, _ in _CLASSES.values()))
    scans = "clouds"
    columns = KITTI_COLUMNS
    learning_map = LEARNING_MAP
    split_sequences = SEQUENCES
    archive = "the DAPS-2 archive"

    def __init__(self, root: str | Path, ignore_unknown_labels: bool = False) -> None:
        self.root = find_root(
            Path(root), _FOLDERS, f"give the folder that holds DAPS-2/data/{_TRAIN[0]}, ..."
        )
        folder = next(folder for name in _FOLDERS if (folder := self.root / name).is_dir())
        super().__init__(folder, ignore_unknown_labels)
