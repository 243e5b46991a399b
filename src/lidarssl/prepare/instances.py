"""The objects of a labelled split, cut out once and kept for instance CutMix.

``transforms.instance_bank`` describes the files. The pass can be killed at any moment and started
again, and shared by machines: neither changes a byte.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from lidarssl.datasets.base import Dataset, describe_missing
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.prepare.passes import Outcome, check_same, check_shard, outcomes
from lidarssl.transforms.instance_bank import (
    SCANS_PER_PART,
    SETTINGS_FILE,
    BankSettings,
    Instances,
    class_ids,
    fingerprint,
    join_instances,
    part_path,
    read_part,
    read_settings,
    save_part,
    save_settings,
)
from lidarssl.transforms.mixing import OBJECTS
from lidarssl.wording import counted

# Of WaffleIron's code, which counts the points of a class without an instance as one more.
_PUBLISHED = {
    ("semantic_kitti", "train"): (5083, 3092, 7419, 8084, 1551),
    ("semantic_kitti", "trainval"): (8213, 4169, 10516, 12190, 2943),
}


@dataclass
class InstanceSummary:
    """What a pass did.

    Attributes:
        folder: of the bank.
        settings: of the bank.
        scans: scans of this shard.
        written, kept: parts of this shard that were made, and that were there and whole.
        missing: parts of the whole bank that are not there yet.
        found: instances of each class in the parts of this shard.
        published: instances of each class in WaffleIron's bank of the same scans; empty = unknown.
        seconds: wall clock.
    """

    folder: Path
    settings: BankSettings
    scans: int = 0
    written: int = 0
    kept: int = 0
    missing: int = 0
    found: dict[str, int] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {counted(self.written, 'part')} made, {self.kept} kept, "
            f"{counted(self.scans, 'scan')} in "
            f"{self.seconds:.0f} s"
        ]
        for name, count in self.found.items():
            published = f"   published: {self.published[name]}" if name in self.published else ""
            lines.append(f"  {name:16s} {count:7d} instances{published}")
        if self.missing:
            lines.append(
                f"  {self.missing} of {self.settings.parts} parts are left to other shards"
            )
        return "\n".join(lines)


def prepare_instances(
    dataset: Dataset,
    split: str,
    output: str | Path,
    classes: Sequence[str] = OBJECTS,
    min_points: int = 6,
    unnumbered: bool = False,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    progress: bool = True,
) -> InstanceSummary:
    """Cut the instances of some classes out of every scan of a split.

    Args:
        dataset: with semantic and instance labels.
        split: the one to train on.
        output: folder, made when missing.
        classes: names of the classes.
        min_points: instances with fewer are left out.
        unnumbered: take the points of a class that belong to no instance for one more, as the
            published code of WaffleIron does.
        workers: processes beside this one; 0 = work here.
        shard: (i, n) makes parts i, i + n, i + 2n, ...: one i per machine.
        overwrite: make parts again that are there and whole.
        progress: show a bar on standard error.

    Raises:
        ConfigError: no labels, an unknown class, or a folder with a bank of something else.
        DataError: a scan cannot be read.
    """
    settings = _settings(dataset, split, classes, min_points, unnumbered)
    check_shard(shard)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        _check_same(folder, settings)
    save_settings(folder, settings)
    work = _Work(dataset, folder, settings, shard, overwrite)
    summary, started = InstanceSummary(folder, settings, work.scans), time.monotonic()
    found = Counter[int]()
    for outcome in outcomes(work, len(work), "instances", "part", workers, progress=progress):
        summary.written += outcome.written
        summary.kept += outcome.kept
        found += Counter(outcome.labels)
    ids = class_ids(classes, dataset.classes.names)
    summary.found = {name: found[label] for name, label in zip(settings.classes, ids, strict=True)}
    parts = [part_path(folder, part) for part in range(settings.parts)]
    summary.missing = sum(not path.is_file() for path in parts)
    if min_points == 6 and shard[1] == 1 and not dataset.absent(split):
        published = _PUBLISHED.get((dataset.name, split), ())
        summary.published = dict(zip(OBJECTS, published, strict=False))
    summary.seconds = time.monotonic() - started
    return summary


def instances_of(
    frame: Frame, scan: int, classes: Sequence[int], min_points: int = 6, unnumbered: bool = False
) -> Instances:
    """The instances of a scan, by class and then by id.

    Args:
        frame: with semantic and instance labels.
        scan: its number, for the record.
        classes: train ids.
        min_points, unnumbered: see :func:`prepare_instances`.

    Raises:
        DataError: the scan lacks labels.
    """
    if frame.semantic is None or frame.instance is None:
        raise DataError(
            f"frame {frame.id} has no semantic and instance labels",
            field="instance",
            remedy="complete the label files of the split, or choose another split",
        )
    found = []
    for label in classes:
        rows = (frame.semantic == label).nonzero()[:, 0]
        for number in frame.instance[rows].unique().tolist():
            mine = rows[frame.instance[rows] == number]
            if (number > 0 or unnumbered) and len(mine) >= min_points:
                found.append(_instance(frame, mine, label, scan, number))
    return join_instances(found)


def _instance(frame: Frame, rows: Tensor, label: int, scan: int, number: int) -> Instances:
    points = frame.points[rows].double()
    foot = torch.cat([points[:, :2].mean(0), points[:, 2:].amin(0)])
    size, labels, scans, numbers = (
        torch.tensor([value]) for value in (len(rows), label, scan, number)
    )
    centered = (points - foot).float()
    return Instances(centered, frame.intensity[rows], size, labels, scans, numbers)


def _settings(
    dataset: Dataset, split: str, classes: Sequence[str], min_points: int, unnumbered: bool
) -> BankSettings:
    missing = describe_missing(Field.SEMANTIC | Field.INSTANCE, dataset.provides(split))
    if missing:
        raise ConfigError(
            f"split '{split}' of {dataset.name} has no {' and no '.join(missing)} labels",
            field=missing[0],
            remedy="choose a split with the labels of objects",
        )
    if not classes or min_points < 1:
        raise ConfigError(
            f"no instance can have {min_points} points of {len(classes)} classes",
            field="classes, min_points",
            remedy="name one class or more, and 1 point or more",
        )
    class_ids(classes, dataset.classes.names)
    ids = dataset.frames(split)
    return BankSettings(
        dataset.name,
        split,
        tuple(dataset.classes.names),
        tuple(dict.fromkeys(classes)),
        min_points,
        unnumbered,
        len(ids),
        fingerprint(ids),
    )


def _check_same(folder: Path, settings: BankSettings) -> None:
    """Refuse a folder with a bank that was made otherwise."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return
    stored, asked = asdict(read_settings(folder)), asdict(settings)
    check_same(path, "the bank in this folder was", stored, asked)


@dataclass
class _Outcome(Outcome):
    """What became of one part.

    Attributes:
        labels: instances of each class in it.
    """

    labels: dict[int, int] = field(default_factory=dict)


class _Work(TorchDataset[_Outcome]):
    """Item i makes the i-th part of a shard: a loader's workers are the processes of the pass."""

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        settings: BankSettings,
        shard: tuple[int, int],
        overwrite: bool,
    ) -> None:
        self.dataset, self.folder, self.settings = dataset, folder, settings
        self.ids: list[FrameId] = dataset.frames(settings.split)
        self.parts = range(settings.parts)[shard[0] :: shard[1]]
        self.overwrite = overwrite

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def scans(self) -> int:
        return sum(len(self.scans_of(part)) for part in self.parts)

    def scans_of(self, part: int) -> range:
        return range(len(self.ids))[part * SCANS_PER_PART : (part + 1) * SCANS_PER_PART]

    def __getitem__(self, index: int) -> _Outcome:
        path = part_path(self.folder, self.parts[index])
        try:
            instances = None if self.overwrite else self.kept(path)
            written = int(instances is None)
            if instances is None:
                instances = self.cut(self.parts[index])
                save_part(path, instances, self.settings)
        except DataError as error:
            return _Outcome(error=error)
        counts = dict(Counter(instances.label.tolist()))
        return _Outcome(written, kept=1 - written, labels=counts)

    def kept(self, path: Path) -> Instances | None:
        """A part that an earlier pass made, where it is whole."""
        try:
            return read_part(path, self.settings)
        except DataError:
            return None

    def cut(self, part: int) -> Instances:
        fields = Field.SEMANTIC | Field.INSTANCE
        labels = class_ids(self.settings.classes, self.settings.class_table)
        return join_instances(
            [
                instances_of(
                    self.dataset.load(self.ids[scan], fields), scan, labels,
                    self.settings.min_points, self.settings.unnumbered,
                )
                for scan in self.scans_of(part)
            ]
        )  # fmt: skip
