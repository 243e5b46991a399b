"""SemanticSTF: single scans in fog, snow and rain, labelled with the classes of SemanticKITTI.

Lidar (Velodyne HDL-64) frame: as stored, z up, taken as x forward, y left, which was not verified
on real files; intensity 0..255 as stored (SemanticKITTI's is 0..1). Scans are those of Seeing
Through Fog, labels are those of Xiao et al., CVPR 2023. No camera images are released with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lidarssl.datasets import semantic_poss
from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.layout import find_root
from lidarssl.datasets.point_files import NUSCENES_COLUMNS
from lidarssl.datasets.scan_folders import ScanFolders
from lidarssl.datasets.semantic_kitti import SemanticKitti
from lidarssl.errors import unknown_name

SCANS = {"train": 1326, "val": 250, "test": 500}
SEQUENCES = {split: (split,) for split in SCANS}
INVALID = 20
LABELS = ("official", "published")

# Raw labels are train ids already; invalid = points off snow, rain and fog.
LEARNING_MAP = {**{label: label for label in range(INVALID)}, INVALID: 0}
# OLIVINE's code reads these labels by a table that belongs to another dataset.
PUBLISHED_MAP = semantic_poss.LEARNING_MAP


class SemanticStf(ScanFolders):
    """SemanticSTF in its official layout, ``<root>/{train,val,test}/{velodyne,labels}``.

    Splits: train (1326 scans), val (250), test (500).

    Args:
        root: folder that holds ``train``, ``val`` and ``test``.
        labels: ``official`` = the 19 classes of SemanticKITTI; ``published`` = as the code of
            OLIVINE, which reads the labels by the table of SemanticPOSS: cars, bicycles,
            motorcycles, poles and signs are ignored, others share a class, and of 20 ids those
            after 11 never occur.
        ignore_unknown_labels: map raw ids outside the learning map to the ignored class instead
            of refusing the frame.

    Raises:
        ConfigError: unknown labels.
        DataError: no split below ``root``; says which level to give.
    """

    name = "semantic_stf"
    classes = SemanticKitti.classes
    scans = "velodyne"
    columns = NUSCENES_COLUMNS
    learning_map = LEARNING_MAP
    split_sequences = SEQUENCES
    archive = "the SemanticSTF archive"

    def __init__(
        self,
        root: str | Path,
        labels: Literal["official", "published"] = "official",
        ignore_unknown_labels: bool = False,
    ) -> None:
        if labels not in LABELS:
            raise unknown_name("labels", labels, LABELS)
        marks = [f"{split}/{self.scans}" for split in SCANS]
        self.root = find_root(Path(root), marks, f"give the folder that holds {', '.join(marks)}")
        super().__init__(self.root, ignore_unknown_labels)
        self.labels = labels
        if labels == "published":
            self.learning_map = PUBLISHED_MAP
            self.classes = published_classes()

    def absent(self, split: str) -> str:
        missing = SCANS[split] - len(self.frames(split))
        return f"{missing} of the {SCANS[split]} scans of the split" if missing > 0 else ""


def published_classes() -> ClassTable:
    """The 20 ids of ``labels: published``, each named after what it really holds."""
    official = SemanticKitti.classes
    names, colors = [official.names[0]], [official.colors[0]]
    for train in range(1, len(official)):
        held = [raw for raw in range(INVALID) if PUBLISHED_MAP[raw] == train]
        names.append(" or ".join(official.names[raw] for raw in held) or f"unused-{train}")
        colors.append(official.colors[held[0] if held else 0])
    return ClassTable(tuple(names), tuple(colors))
