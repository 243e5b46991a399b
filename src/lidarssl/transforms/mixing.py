"""Mixing of labelled scans for training: PolarMix and instance CutMix.

Both act on scans as a dataset loads them, before every other transform. What belongs to one place
or one camera (images, pose, boxes, matches, queries) does not survive; of the columns of points
those do that all parts of the mixture have.

Sources: Xiao et al., "PolarMix: A General Data Augmentation Technique for LiDAR Point Clouds",
NeurIPS 2022; Puy et al., "Using a Waffle Iron for Automotive Point Cloud Semantic Segmentation",
ICCV 2023, with its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Frame, FrameId
from lidarssl.geometry.poses import rotation_about_z
from lidarssl.transforms.instance_bank import (
    BankSettings,
    Instances,
    class_ids,
    fingerprint,
    read_bank,
)
from lidarssl.transforms.points import change_lidar_frame
from lidarssl.transforms.thinning import random_of_each_voxel
from lidarssl.wording import counted

OBJECTS = ("bicycle", "motorcycle", "other-vehicle", "person", "bicyclist")
Another = Callable[[np.random.Generator], Frame]


class MixingTransform(Protocol):
    """A transform that may need a second scan: ``another(rng)`` loads one of the same source."""

    def __call__(self, frame: Frame, rng: np.random.Generator, another: Another) -> Frame: ...


def polar_mix(
    frame: Frame,
    other: Frame,
    start: float | None,
    classes: Sequence[int],
    angles: Sequence[float],
) -> Frame:
    """Swap half a turn of a scan, then add objects of the other scan, as they are and turned.

    Args:
        frame, other: labelled scans.
        start: rad; the points of ``frame`` with azimuth in (start, start + pi) give way to those of
            ``other``. None = none do.
        classes: train ids of the objects, all points of which are added.
        angles: rad, about z, of the copies added to the one that is not turned.

    Raises:
        DataError: a scan has no labels.
    """
    frame, other = _scan_alone(frame), _scan_alone(other)
    taken = max(_largest_instance(frame), _largest_instance(other))
    other = _renumber(other, taken)
    parts = [frame]
    if start is not None:
        parts = [
            frame.select(~in_half_turn(frame.points, start)),
            other.select(in_half_turn(other.points, start)),
        ]
    objects = other.select(torch.isin(_labels(other), torch.tensor(classes, dtype=torch.int64)))
    turned = (
        _renumber(change_lidar_frame(objects, rotation_about_z(angle)), number * taken)
        for number, angle in enumerate(angles, 1)
    )
    return _joined([*parts, objects, *turned])


def in_half_turn(points: Tensor, start: float) -> Tensor:
    """Which points have an azimuth in (start, start + pi), (N,) bool."""
    x, y, _ = points.double().unbind(1)
    theta = torch.remainder(torch.atan2(y, x) - start, 2 * math.pi)
    return (theta > 0) & (theta < math.pi)


@dataclass(frozen=True)
class Placements:
    """Where instances are put, K of them.

    Attributes:
        row: (K,) int64 which instance.
        mirror: (K,) int64 the axis that is mirrored first, 0 = x or 1 = y.
        angle: (K,) float64 rad, turn about z.
        scale: (K,) float64 factor on its size.
        position: (K, 3) m, of the middle of its lower side.
    """

    row: Tensor
    mirror: Tensor
    angle: Tensor
    scale: Tensor
    position: Tensor

    def linear(self) -> Tensor:
        """The (K, 3, 3) float64 matrices that mirror, then turn, then scale."""
        cos, sin = torch.cos(self.angle), torch.sin(self.angle)
        sign_x, sign_y = (1 - 2 * (self.mirror == axis).double() for axis in (0, 1))
        zero, one = torch.zeros_like(cos), torch.ones_like(cos)
        rows = ((cos * sign_x, -sin * sign_y, zero), (sin * sign_x, cos * sign_y, zero))
        matrices = torch.stack([torch.stack(row, -1) for row in (*rows, (zero, zero, one))], -2)
        return matrices * self.scale[:, None, None]


def cut_mix(frame: Frame, instances: Instances, placements: Placements) -> Frame:
    """Add instances to a scan, each at its place. Nothing keeps them from overlapping.

    Raises:
        DataError: the scan has no labels.
    """
    frame = _scan_alone(frame)
    rows, owner = instances.rows(placements.row)
    turned = placements.linear()[owner] @ instances.points[rows].double()[:, :, None]
    pasted = Frame(
        frame.id,
        points=(turned[:, :, 0] + placements.position[owner]).to(frame.points.dtype),
        intensity=instances.intensity[rows],
        semantic=instances.label[placements.row][owner],
        instance=_largest_instance(frame) + 1 + owner,
    )
    return _joined([frame, pasted])


def places_on(frame: Frame, ground: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Points of ``ground`` classes to put instances at, (P, 3) float64, shuffled.

    At most one per cubic metre: a random point of each voxel, where that is on the ground.

    Raises:
        DataError: the scan has no labels.
    """
    order = torch.from_numpy(rng.permutation(len(frame)))
    kept = random_of_each_voxel(frame.points, 1.0, order)
    on_ground = torch.isin(_labels(frame)[kept], torch.tensor(ground, dtype=torch.int64))
    positions = frame.points[kept[on_ground]].double()
    return positions[torch.from_numpy(rng.permutation(len(positions)))]


class PolarMix:
    """See :func:`polar_mix`; the half turn is swapped with a probability, objects always come.

    Args:
        classes: train ids of the objects.
        probability: of the swap.
        copies: turned copies of the objects, beside the one that is not turned.

    Raises:
        ConfigError: the other scan is of another dataset.
    """

    def __init__(self, classes: Sequence[int], probability: float = 0.5, copies: int = 2) -> None:
        if not 0 <= probability <= 1:
            raise ConfigError(
                f"{probability} is no probability", field="polar_probability", remedy="0 to 1"
            )
        self.classes, self.probability, self.copies = list(classes), probability, copies

    def __call__(self, frame: Frame, rng: np.random.Generator, another: Another) -> Frame:
        other = another(rng)
        if other.id.dataset != frame.id.dataset:
            raise ConfigError(
                f"a scan of '{frame.id.dataset}' cannot be mixed with one of '{other.id.dataset}': "
                "they have classes and intensities of their own",
                field="mixing",
                remedy="mix the scans of one dataset, or none",
            )
        swapped, start = rng.random() < self.probability, rng.uniform(-math.pi, math.pi)
        angles = rng.uniform(-math.pi, math.pi, self.copies).tolist()
        return polar_mix(frame, other, start if swapped else None, self.classes, angles)


class CutMix:
    """Put random instances of a bank on the ground of a scan; see :func:`cut_mix`.

    Args:
        instances: to choose from.
        classes: train ids of those that are used.
        ground: train ids of the points they are put at.
        most: of each class; how many is uniform in 0..most, as long as there are places left.
        scale: range of the factor on their size.
    """

    def __init__(
        self,
        instances: Instances,
        classes: Sequence[int],
        ground: Sequence[int],
        most: int = 39,
        scale: tuple[float, float] = (0.9, 1.1),
    ) -> None:
        if not 0 < scale[0] <= scale[1] < math.inf:
            raise ConfigError(
                f"{list(scale)} is no range of sizes", field="scale", remedy="e.g. [0.9, 1.1]"
            )
        if most < 0:
            raise ConfigError(f"{most} instances", field="max_instances", remedy="0 or more")
        self.instances, self.ground, self.most, self.scale = instances, list(ground), most, scale
        self.of_class = [(instances.label == label).nonzero()[:, 0] for label in classes]

    def __call__(self, frame: Frame, rng: np.random.Generator, another: Another) -> Frame:
        return cut_mix(frame, self.instances, self.draw(places_on(frame, self.ground, rng), rng))

    def draw(self, places: Tensor, rng: np.random.Generator) -> Placements:
        """Instances and motions, with replacement; every one of ``places`` (P, 3) serves once."""
        chosen, left = [torch.empty(0, dtype=torch.int64)], len(places)
        for rows in self.of_class:
            count = min(int(rng.integers(self.most + 1)), left)
            if len(rows):
                chosen.append(rows[torch.from_numpy(rng.integers(len(rows), size=count))])
                left -= count
        row = torch.cat(chosen)
        return Placements(
            row,
            torch.from_numpy(rng.integers(2, size=len(row))),
            torch.from_numpy(rng.uniform(-math.pi, math.pi, len(row))),
            torch.from_numpy(rng.uniform(*self.scale, len(row))),
            places[: len(row)],
        )


@dataclass
class ScanMixing:
    """Mix every training scan with another one, and with objects of a bank. Classes by name.

    Of the bank only the objects of the scans that are trained on are used: a share of the labels
    does not see the others.

    Args:
        bank: folder of `lidarssl prepare instances`, of the training split.
        cut_classes: objects of the bank to put into a scan; none = no bank is read.
        paste_on: classes on whose points they stand.
        max_instances: the most of each class that are put into a scan.
        scale: range of the factor on their size.
        polar_classes: objects of the other scan to add, as they are and turned twice; none and a
            ``polar_probability`` of 0 = no other scan is read.
        polar_probability: of replacing half a turn of the scan by that of the other.
    """

    bank: str | Path | None = None
    cut_classes: tuple[str, ...] = OBJECTS
    paste_on: tuple[str, ...] = ("road", "parking", "sidewalk")
    max_instances: int = 39
    scale: tuple[float, float] = (0.9, 1.1)
    polar_classes: tuple[str, ...] = OBJECTS
    polar_probability: float = 0.5

    def transforms(self, dataset: Dataset, ids: Sequence[FrameId]) -> list[MixingTransform]:
        """PolarMix and then CutMix, for the scans ``ids`` of ``dataset``.

        Raises:
            ConfigError: a class that the dataset or the bank does not have, no bank, or a bank of
                another dataset or of other scans.
            DataError: the bank is missing, incomplete or damaged.
        """
        steps: list[MixingTransform] = []
        if self.polar_classes or self.polar_probability:
            objects = class_ids(self.polar_classes, dataset.classes.names, "mixing.polar_classes")
            steps.append(PolarMix(objects, self.polar_probability))
        if self.cut_classes:
            steps.append(self._cut_mix(dataset, ids))
        return steps

    def _cut_mix(self, dataset: Dataset, ids: Sequence[FrameId]) -> CutMix:
        table = dataset.classes.names
        classes = class_ids(self.cut_classes, table, "mixing.cut_classes")
        ground = class_ids(self.paste_on, table, "mixing.paste_on")
        if self.bank is None:
            raise ConfigError(
                "instances are to be put into scans, but there is no bank of them",
                field="mixing.bank",
                remedy="make one with `lidarssl prepare instances` and give its folder, "
                "or set mixing.cut_classes to []",
            )
        folder = Path(self.bank)
        settings, instances = read_bank(folder)
        if (settings.dataset, settings.class_table) != (dataset.name, table):
            raise ConfigError(
                f"the instances are of '{settings.dataset}' with {len(settings.class_table)} "
                f"classes, the scans of '{dataset.name}' with {len(table)}",
                path=self.bank,
                field="mixing.bank",
                remedy=f"give a bank of {dataset.name}",
            )
        absent = [name for name in self.cut_classes if name not in settings.classes]
        if absent:
            raise ConfigError(
                f"the bank was made without {', '.join(absent)}",
                path=self.bank,
                field="mixing.cut_classes",
                remedy=f"use some of {', '.join(settings.classes)}, or make a bank with all",
            )
        instances = _of_scans_in(ids, dataset, folder, settings, instances)
        return CutMix(instances, classes, ground, self.max_instances, self.scale)


def _of_scans_in(
    ids: Sequence[FrameId],
    dataset: Dataset,
    folder: Path,
    settings: BankSettings,
    instances: Instances,
) -> Instances:
    """The instances of a bank that were cut out of the scans ``ids``."""
    listed, wanted = dataset.frames(settings.split), set(ids)
    if fingerprint(listed) != settings.fingerprint:
        raise ConfigError(
            f"the bank was made of {counted(settings.scans, 'scan')} of split "
            f"'{settings.split}', not of the {len(listed)} that are there now",
            path=folder,
            field="mixing.bank",
            remedy="make it again, of this copy of the dataset",
        )
    kept = instances.of_scans([scan for scan, frame in enumerate(listed) if frame in wanted])
    if not len(kept):
        raise ConfigError(
            f"the bank, of split '{settings.split}', has no instance of what is trained on, "
            f"{counted(len(ids), 'scan')}",
            path=folder,
            field="mixing.bank",
            remedy="make a bank of the training split, or set mixing.cut_classes to []",
        )
    return kept


def _scan_alone(frame: Frame) -> Frame:
    """The points of a scan, without what a mixture invalidates."""
    _labels(frame)
    return replace(
        frame, cameras=(), pose=None, boxes=None, matches=None, queries=None, input_points=None,
        thinned_to=None,
    )  # fmt: skip


def _labels(frame: Frame) -> Tensor:
    if frame.semantic is None:
        raise DataError(
            f"frame {frame.id} has no labels, and only labelled scans can be mixed",
            field="semantic",
            remedy="train on a labelled split, or without mixing",
        )
    return frame.semantic


def _largest_instance(frame: Frame) -> int:
    if frame.instance is None or not len(frame):
        return 0
    return int(frame.instance.max())


def _renumber(frame: Frame, offset: int) -> Frame:
    """Objects under ids of their own: two scans may use one id for different objects."""
    if frame.instance is None:
        return frame
    ids = frame.instance
    return replace(frame, instance=torch.where(ids > 0, ids + offset, ids))


def _joined(parts: Sequence[Frame]) -> Frame:
    """All points of all parts, with the columns that every part has."""
    columns: dict[str, Any] = {}
    for name in Frame.POINT_COLUMNS:
        values = [getattr(part, name) for part in parts]
        columns[name] = None if any(value is None for value in values) else torch.cat(values)
    return replace(parts[0], **columns)
