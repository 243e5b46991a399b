"""The 19 classes of Cityscapes (Cordts et al., CVPR 2016), which ACDC shares, and its two ids.

A label id says what was annotated (0..33), a train id what is learned (0..18, 255 = nothing); the
classes of this library are train ids + 1, 0 = ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from lidarssl.datasets.base import ClassTable

HIGHEST_LABEL_ID = 33
UNLABELLED_TRAIN_ID = 255
# Official name, colour and label id of each class; train id = place in this table.
_CLASSES: tuple[tuple[str, tuple[int, int, int], int], ...] = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)
CITYSCAPES_CLASSES = ClassTable(
    ("ignored", *(name for name, _, _ in _CLASSES)),
    ((0, 0, 0), *(color for _, color, _ in _CLASSES)),
)


def _lookup(known: Iterable[int], classes: Mapping[int, int]) -> np.ndarray:
    """(256,) int64: the class of each raw id, 0 of the ``known`` without one, -1 of others."""
    lookup = np.full(256, -1, np.int64)
    lookup[list(known)] = 0
    lookup[list(classes)] = list(classes.values())
    return lookup


OF_LABEL_ID = _lookup(
    range(HIGHEST_LABEL_ID + 1), {raw: train + 1 for train, (*_, raw) in enumerate(_CLASSES)}
)
OF_TRAIN_ID = _lookup([UNLABELLED_TRAIN_ID], {train: train + 1 for train in range(len(_CLASSES))})
# By the end of the name of a label file, in the order in which they are looked for.
LOOKUPS = {"labelTrainIds": OF_TRAIN_ID, "labelIds": OF_LABEL_ID}
