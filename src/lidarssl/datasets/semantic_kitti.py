"""SemanticKITTI: KITTI odometry scans with per-point labels, and the rectified colour cameras.

Lidar frame: x forward, y left, z up; intensity (remission) 0..1. Labels are those of
Behley et al., ICCV 2019; poses are whatever poses.txt holds (SuMa's in the label download,
KITTI's ground truth in the odometry download). An instance id is the whole 32-bit label, as in
the official panoptic evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal

from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.image_files import check_scale, open_image, with_image
from lidarssl.datasets.kitti_sequences import KittiSequences
from lidarssl.datasets.layout import packaged_table
from lidarssl.errors import ConfigError, unknown_name
from lidarssl.frame import Camera, Field, FrameId

PROJECTIONS = {"image_0": "P0", "image_1": "P1", "image_2": "P2", "image_3": "P3"}

_TRAIN = ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10")
_VAL = ("08",)
SEQUENCES = {
    "train": _TRAIN,
    "val": _VAL,
    "trainval": tuple(sorted(_TRAIN + _VAL)),
    "test": tuple(str(number) for number in range(11, 22)),
    "parametrizing": _TRAIN,
    "verifying": _VAL,
}

# Scans of sequences 00, 01, ...
_SCANS = (
    4541, 1101, 4661, 801, 271, 2761, 1101, 1101, 4071, 1591, 1201,
    921, 1061, 3281, 631, 1901, 1731, 491, 1801, 4981, 831, 2721,
)  # fmt: skip

# Train class: colour, raw ids. Moving objects count as what they are.
_CLASSES: dict[str, tuple[tuple[int, int, int], tuple[int, ...]]] = {
    "unlabeled": ((0, 0, 0), (0, 1, 52, 99)),
    "car": ((100, 150, 245), (10, 252)),
    "bicycle": ((100, 230, 245), (11,)),
    "motorcycle": ((30, 60, 150), (15,)),
    "truck": ((80, 30, 180), (18, 258)),
    "other-vehicle": ((0, 0, 255), (20, 13, 16, 256, 257, 259)),
    "person": ((255, 30, 30), (30, 254)),
    "bicyclist": ((255, 40, 200), (31, 253)),
    "motorcyclist": ((150, 30, 90), (32, 255)),
    "road": ((255, 0, 255), (40, 60)),
    "parking": ((255, 150, 255), (44,)),
    "sidewalk": ((75, 0, 75), (48,)),
    "other-ground": ((175, 0, 75), (49,)),
    "building": ((255, 200, 0), (50,)),
    "fence": ((255, 120, 50), (51,)),
    "vegetation": ((0, 175, 0), (70,)),
    "trunk": ((135, 60, 0), (71,)),
    "terrain": ((150, 240, 80), (72,)),
    "pole": ((255, 240, 150), (80,)),
    "traffic-sign": ((255, 0, 0), (81,)),
}
LEARNING_MAP = {raw: train for train, (_, ids) in enumerate(_CLASSES.values()) for raw in ids}
# For submissions: the raw id of each train class.
INVERSE_LEARNING_MAP = tuple(ids[0] for _, ids in _CLASSES.values())


class SemanticKitti(KittiSequences):
    """SemanticKITTI in its official layout, ``<root>/dataset/sequences/SS/...``.

    Splits: train (00-07, 09, 10), val (08), trainval, test (11-21); SLidR's parametrizing and
    verifying are train and val. Sequences that are not there are left out.

    Args:
        root: folder that holds ``dataset/sequences``, or ``sequences``.
        cameras: any of ``image_2`` (left colour) and ``image_3`` (right colour); the grey
            ``image_0`` and ``image_1`` too.
        image_scale: factor on the size of images, in (0, 1].
        ignore_unknown_labels: as the base.
        fractions: whose shares of the labels: ``slidr`` = every n-th scan; ``segcontrast`` = the
            fixed lists of SegContrast, as ALSO, BEVContrast and NCLR.
        lidar_translation: False drops the translation of ``Tr`` from the cameras, as NCLR's
            published code: they then stand ~0.3 m off, mostly along their view. Poses keep it.

    Raises:
        ConfigError: unknown camera, image scale or fractions.
        DataError: no sequences below ``root``; says which level to give.
    """

    name = "semantic_kitti"
    intensity_statistics = (0.28613698, 0.14090556)
    classes = ClassTable(tuple(_CLASSES), tuple(color for color, _ in _CLASSES.values()))
    learning_map = LEARNING_MAP
    split_sequences = SEQUENCES
    archive = "data_odometry_velodyne.zip"
    calibration_archive = "data_odometry_calib.zip"

    def __init__(
        self,
        root: str | Path,
        cameras: Sequence[str] = ("image_2",),
        image_scale: float = 1.0,
        ignore_unknown_labels: bool = False,
        fractions: Literal["slidr", "segcontrast"] = "slidr",
        lidar_translation: bool = True,
    ) -> None:
        if fractions not in ("slidr", "segcontrast"):
            raise unknown_name("fractions", fractions, ("slidr", "segcontrast"))
        for camera in cameras:
            if camera not in PROJECTIONS:
                raise unknown_name("camera", camera, tuple(PROJECTIONS))
        super().__init__(root, ignore_unknown_labels)
        self.cameras = tuple(cameras)
        self.image_scale = check_scale(image_scale)
        self.fractions = fractions
        self.lidar_translation = lidar_translation

    def absent(self, split: str) -> str:
        listed = sum(_SCANS[int(sequence)] for sequence in SEQUENCES[split])
        missing = listed - len(self.frames(split))
        scans = f"{missing} of the {listed} scans of the split" if missing > 0 else ""
        return super().absent(split) or scans

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        """Every skip-th scan, or those of a fixed list as far as they are on disk.

        ``slidr``: of all scans of the split, starting at the first. ``segcontrast``: the lists of
        SegContrast, which ALSO, BEVContrast and NCLR use: drawn at random from each sequence, for
        1/2, 1/4, 1/10, 1/100, 1/1000 and 1/10000, and not nested.
        """
        if self.fractions == "slidr" or skip == 1:
            return super().label_fraction(split, skip)
        listed = _listed_scans(skip)
        return [f for f in self.frames(split) if f.token in listed.get(f.sequence, ())]

    def fraction_size(self, split: str, skip: int) -> int | None:
        if self.fractions == "slidr" or skip == 1:
            return None
        listed = _listed_scans(skip)
        return sum(len(listed.get(sequence, ())) for sequence in SEQUENCES[split])

    def _fields(self, sequence: str) -> Field:
        folder = self.folder / sequence
        images = self.cameras and all((folder / camera).is_dir() for camera in self.cameras)
        return super()._fields(sequence) | (Field.IMAGES if images else Field.NONE)

    def _cameras(self, frame: FrameId, fields: Field) -> tuple[Camera, ...]:
        folder = self.folder / frame.sequence
        present = [camera for camera in self.cameras if (folder / camera).is_dir()]
        return tuple(self._camera(frame, camera, fields) for camera in present)

    def _camera(self, frame: FrameId, camera: str, fields: Field) -> Camera:
        path = self.folder / frame.sequence / camera / f"{frame.token}.png"
        calibration, calibration_path = self._calibration(frame.sequence)
        intrinsics, camera_from_lidar = calibration.camera(
            PROJECTIONS[camera], calibration_path, self.lidar_translation
        )
        token = f"{frame.sequence}_{camera}_{frame.token}"
        seen = Camera(camera, token, None, intrinsics, camera_from_lidar)
        return with_image(seen, open_image(path, self.image_scale), fields)


def _listed_scans(skip: int) -> dict[str, set[str]]:
    """Scans of SegContrast's list for 1/skip of the labels, by sequence.

    Raises:
        ConfigError: there is no such list.
    """
    # Of each scan, the file holds the distance from the one before.
    steps: dict[str, dict[str, list[int]]] = packaged_table("semantic_kitti_fractions.json")
    if str(skip) not in steps:
        raise ConfigError(
            f"SegContrast has no list for 1/{skip} of the labels",
            field="skip",
            remedy=f"use one of 1, {', '.join(steps)}, or fractions slidr",
        )
    return {
        sequence: {f"{scan:06d}" for scan in accumulate(distances)}
        for sequence, distances in steps[str(skip)].items()
    }
