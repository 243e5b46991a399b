"""SemanticPOSS: scans of a campus full of people, with per-point labels, in KITTI's layout.

Lidar (Hesai Pandora, 40 beams, 10 Hz) frame: x forward, y left, z up, as in SemanticKITTI, whose
layout the release follows; intensity 0..255 as stored (SemanticKITTI's is 0..1). Classes are the
13 that ALSO, BEVContrast and NCLR score; other papers merge them to 11 or split them to 14. Data:
Pan et al., IV 2020. No camera images are released.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.files import MEBIBYTE, read_bytes
from lidarssl.datasets.kitti_sequences import KittiSequences
from lidarssl.datasets.point_files import PointCloud
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import FrameId

BEAMS, AZIMUTHS = 40, 1800

_TRAIN = ("00", "01", "02", "04", "05")
_VAL = ("03",)
SEQUENCES = {"train": _TRAIN, "val": _VAL, "trainval": tuple(sorted(_TRAIN + _VAL))}

# Train class: colour, raw ids. Raw ids 1-3 and 18-20 have no name in the release.
_CLASSES: dict[str, tuple[tuple[int, int, int], tuple[int, ...]]] = {
    "unlabeled": ((0, 0, 0), (0, 1, 2, 3, 18, 19, 20)),
    "person": ((255, 30, 30), (4, 5)),
    "rider": ((255, 40, 200), (6,)),
    "car": ((100, 150, 245), (7,)),
    "trunk": ((135, 60, 0), (8,)),
    "plants": ((0, 175, 0), (9,)),
    "traffic-sign": ((255, 0, 0), (10, 11, 12)),
    "pole": ((255, 240, 150), (13,)),
    "garbage-can": ((125, 255, 0), (14,)),
    "building": ((255, 200, 0), (15,)),
    "cone/stone": ((180, 180, 200), (16,)),
    "fence": ((255, 120, 50), (17,)),
    "bike": ((100, 230, 245), (21,)),
    "ground": ((128, 64, 128), (22,)),
}
LEARNING_MAP = {raw: train for train, (_, ids) in enumerate(_CLASSES.values()) for raw in ids}


class SemanticPoss(KittiSequences):
    """SemanticPOSS in its official layout, ``<root>/dataset/sequences/SS/...``.

    Splits: train (00, 01, 02, 04, 05), val (03), trainval. Sequences that are not there are left
    out.

    Args:
        root: folder that holds ``dataset/sequences``, or ``sequences``.
        tags: read the beam of each point (``Frame.ring``) from ``tag`` where there is such a
            folder: a byte for each cell of the 40 x 1800 grid of a scan, beam after beam, that
            tells whether the cell holds a point.
        ignore_unknown_labels: map raw ids outside the learning map to the ignored class instead
            of refusing the frame.

    Raises:
        DataError: no sequences below ``root``; says which level to give.
    """

    name = "semantic_poss"
    classes = ClassTable(tuple(_CLASSES), tuple(color for color, _ in _CLASSES.values()))
    learning_map = LEARNING_MAP
    split_sequences = SEQUENCES
    # The projections of its calib.txt belong to no image of the release.
    calibration_keys = ("Tr",)
    archive = "the SemanticPOSS archive"
    calibration_archive = archive

    def __init__(
        self, root: str | Path, tags: bool = True, ignore_unknown_labels: bool = False
    ) -> None:
        super().__init__(root, ignore_unknown_labels)
        self.tags = tags

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        """Every skip-th scan of each sequence, starting at its first (ALSO, BEVContrast)."""
        if skip < 1:
            raise ConfigError(f"skip is {skip}", field="skip", remedy="give 1 or more")
        by_sequence: dict[str, list[FrameId]] = {}
        for frame in self.frames(split):
            by_sequence.setdefault(frame.sequence, []).append(frame)
        return [frame for frames in by_sequence.values() for frame in frames[::skip]]

    def _cloud(self, frame: FrameId) -> PointCloud:
        cloud = super()._cloud(frame)
        folder = self.folder / frame.sequence / "tag"
        if not self.tags or not folder.is_dir():
            return cloud
        path = folder / f"{frame.token}.tag"
        ring = parse_tag(read_bytes(path, MEBIBYTE), path, len(cloud.points))
        return PointCloud(cloud.points, cloud.intensity, ring, cloud.kept)

    def _camera0_from_lidar(self, sequence: str) -> Tensor:
        """``Tr`` of calib.txt; without that file, poses.txt is taken as that of the lidar."""
        if not (self.folder / sequence / "calib.txt").is_file():
            return torch.eye(4, dtype=torch.float64)
        calibration, path = self._calibration(sequence)
        if calibration.camera0_from_lidar is None:
            raise DataError(
                "has no line 'Tr:' (lidar to the frame of poses.txt)",
                path=path,
                field="Tr",
                remedy="unpack it again; remove it where poses.txt is that of the lidar",
            )
        return calibration.camera0_from_lidar


def parse_tag(data: bytes, path: Path, points: int) -> Tensor:
    """Beam of each point, (N,) int64 in 0..39, from the cells of the scan that hold one.

    Args:
        data: content of the file, one byte for each cell, beam after beam.
        path: its name, for messages.
        points: of the scan.

    Raises:
        DataError: another number of cells, or of cells that hold a point.
    """
    if len(data) != BEAMS * AZIMUTHS:
        raise DataError(
            f"has {len(data)} bytes, not one for each of the {BEAMS} x {AZIMUTHS} cells",
            path=path,
            field="tag",
            remedy="get the file again, or set tags to false",
        )
    cells = np.flatnonzero(np.frombuffer(data, np.uint8))
    if len(cells) != points:
        raise DataError(
            f"{len(cells)} cells hold a point, but the scan has {points} points",
            path=path,
            field="tag",
            remedy="use the tag file made for this scan, or set tags to false",
        )
    return torch.from_numpy(cells // AZIMUTHS)
