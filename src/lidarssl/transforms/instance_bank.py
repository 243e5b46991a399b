"""Objects cut out of labelled scans, and the files in which an offline pass keeps them.

A bank is a folder:

- ``instances.json``: the ``BankSettings`` it was made with;
- ``part-00000.safetensors``, ``part-00001.safetensors``, ...: the instances of ``SCANS_PER_PART``
  consecutive scans of the split each, instance after instance:

=============  ================  ==============================================================
``points``     (P, 3) float32    m; x and y from the mean of the instance, z from its lowest point
``intensity``  (P,) float32      in the units of the dataset
``size``       (I,) int64        points of each instance
``label``      (I,) int64        its train id
``scan``       (I,) int64        number of its scan in the split
``instance``   (I,) int64        its id in that scan
=============  ================  ==============================================================

The header of a part holds ``bank``, the digest of the settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl.datasets.files import read_json
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import FrameId
from lidarssl.replacing import replacing
from lidarssl.weights import read_safetensors

SETTINGS_FILE = "instances.json"
SCANS_PER_PART = 64
_SETTINGS_LIMIT = 1 << 20
_PREPARE = "run `lidarssl prepare instances` on this folder, with the options that made it"


@dataclass(frozen=True)
class BankSettings:
    """What a bank was made of.

    Attributes:
        dataset: its short name.
        split: of it.
        class_table: names of all its train classes, the ignored one first.
        classes: names of the classes whose instances are kept.
        min_points: smaller instances are left out.
        unnumbered: whether the points of a class without an instance count as one.
        scans: how many the split has.
        fingerprint: of their ids.
    """

    dataset: str
    split: str
    class_table: tuple[str, ...]
    classes: tuple[str, ...]
    min_points: int
    unnumbered: bool
    scans: int
    fingerprint: str

    @property
    def parts(self) -> int:
        """Number of files of the whole bank."""
        return -(-self.scans // SCANS_PER_PART)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @property
    def digest(self) -> str:
        """What tells the parts of this bank from those of another."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Instances:
    """Instances, point after point; see the module for the meaning of each column."""

    points: Tensor
    intensity: Tensor
    size: Tensor
    label: Tensor
    scan: Tensor
    instance: Tensor

    def __len__(self) -> int:
        return self.size.shape[0]

    def rows(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Points of the instances ``chosen`` (K,), which may repeat.

        Returns:
            (M,) int64 rows of ``points``, and (M,) int64 which of ``chosen`` each belongs to.
        """
        size = self.size[chosen]
        owner = torch.repeat_interleave(torch.arange(len(chosen)), size)
        first = (self.size.cumsum(0) - self.size)[chosen]
        within = torch.arange(len(owner)) - (size.cumsum(0) - size)[owner]
        return first[owner] + within, owner

    def of_scans(self, scans: Sequence[int]) -> Instances:
        """The instances of some scans."""
        chosen = torch.isin(self.scan, torch.tensor(scans, dtype=torch.int64)).nonzero()[:, 0]
        rows, _ = self.rows(chosen)
        each = {name: getattr(self, name)[chosen] for name in ("size", "label", "scan", "instance")}
        return Instances(self.points[rows], self.intensity[rows], **each)


def join_instances(several: Sequence[Instances]) -> Instances:
    """All instances of all of them, in order."""
    names = [field.name for field in fields(Instances)]
    columns: dict[str, Tensor] = {
        name: torch.cat([_EMPTY[name], *(getattr(one, name) for one in several)]) for name in names
    }
    return Instances(**columns)


def fingerprint(scans: Sequence[FrameId]) -> str:
    """What tells a list of scans from another."""
    return hashlib.sha256("\n".join(map(str, scans)).encode()).hexdigest()[:16]


def class_ids(names: Sequence[str], table: Sequence[str], field: str = "classes") -> list[int]:
    """Train ids of classes.

    Args:
        names: of the classes.
        table: names of all train classes, the ignored one first.
        field: the option that names them, for messages.

    Raises:
        ConfigError: an unknown name, or that of the ignored class; names the closest.
    """
    for name in names:
        if name not in table[1:]:
            error = unknown_name("class", name, table[1:])
            raise ConfigError(error.problem, field=field, remedy=error.remedy)
    return [table.index(name) for name in dict.fromkeys(names)]


def part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.safetensors"


def save_part(path: Path, instances: Instances, settings: BankSettings) -> None:
    """Write a part of a bank, all or nothing."""
    from safetensors.torch import save

    columns = {name: value.contiguous() for name, value in vars(instances).items()}
    # One entry: the order of several is that of a hash map, and so are the bytes.
    content = save(columns, metadata={"bank": settings.digest})
    with replacing(path) as partial:
        partial.write_bytes(content)


def read_part(path: Path, settings: BankSettings) -> Instances:
    """Instances of a part.

    Raises:
        DataError: missing, damaged, or not a part of this bank.
    """
    tensors, texts = read_safetensors(path)
    if texts.get("bank") != settings.digest:
        problem = "belongs to another bank"
    else:
        problem = _problem(tensors, settings)
    if problem:
        raise DataError(problem, path=path, remedy=_PREPARE)
    return Instances(**tensors)


def save_settings(folder: Path, settings: BankSettings) -> None:
    with replacing(folder / SETTINGS_FILE) as partial:
        partial.write_text(settings.to_json())


def read_settings(folder: Path) -> BankSettings:
    """What the bank in ``folder`` was made of.

    Raises:
        DataError: there is none, or its ``instances.json`` is damaged.
    """
    path = folder / SETTINGS_FILE
    stored = read_json(path, _SETTINGS_LIMIT, "make the bank: `lidarssl prepare instances`")
    if not isinstance(stored, dict):
        stored = {}
    for name, fits in _STORED.items():
        if not fits(stored.get(name)):
            raise DataError(
                f"'{name}' is {str(stored.get(name))[:60]}", path=path, field=name, remedy=_PREPARE
            )
    texts = {name: tuple(stored[name]) for name in ("class_table", "classes")}
    if not set(texts["classes"]) <= set(texts["class_table"][1:]):
        raise DataError(
            "classes are not in the class table", path=path, field="classes", remedy=_PREPARE
        )
    return BankSettings(**{name: stored[name] for name in _STORED} | texts)


def read_bank(folder: Path) -> tuple[BankSettings, Instances]:
    """A whole bank, in memory.

    Raises:
        DataError: there is none, a part is missing or damaged, or it holds no instance.
    """
    settings = read_settings(folder)
    paths = [part_path(folder, part) for part in range(settings.parts)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the {len(paths)} parts of the bank are missing",
            path=missing[0],
            remedy=f"{_PREPARE}; every shard of it",
        )
    instances = join_instances([read_part(path, settings) for path in paths])
    if not len(instances):
        raise DataError(
            f"the bank holds no instance of {', '.join(settings.classes)}",
            path=folder / SETTINGS_FILE,
            remedy="make it of classes and a split that have some",
        )
    return settings, instances


_EMPTY = {
    "points": torch.empty((0, 3)),
    "intensity": torch.empty(0),
    **{name: torch.empty(0, dtype=torch.int64) for name in ("size", "label", "scan", "instance")},
}


def _problem(tensors: dict[str, Tensor], settings: BankSettings) -> str:
    """What is wrong with the content of a part; empty = nothing."""
    if set(tensors) != set(_EMPTY):
        return f"holds {', '.join(sorted(tensors))[:100]}, not the columns of instances"
    for name, like in _EMPTY.items():
        found = tensors[name]
        if (
            found.dtype != like.dtype
            or found.ndim != like.ndim
            or found.shape[1:] != like.shape[1:]
        ):
            return f"'{name}' is {found.dtype} of shape {tuple(found.shape)}"
    points, size, label = (tensors[name] for name in ("points", "size", "label"))
    counts = {len(tensors[name]) for name in ("size", "label", "scan", "instance")}
    if len(counts) > 1 or len(tensors["intensity"]) != len(points):
        return "columns have different lengths"
    if len(size) and (int(size.min()) < 1 or int(size.max()) > len(points)):
        return "an instance has an impossible size"
    if int(size.sum()) != len(points):
        return f"instances of {int(size.sum())} points in all, but {len(points)} points"
    if not bool(
        torch.isin(label, torch.tensor(class_ids(settings.classes, settings.class_table))).all()
    ):
        return f"an instance is none of {', '.join(settings.classes)}"
    if not bool(torch.isfinite(points).all() & torch.isfinite(tensors["intensity"]).all()):
        return "points are not finite"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 10_000 and all(map(_is_text, value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


_STORED = {
    "dataset": _is_text,
    "split": _is_text,
    "class_table": _are_texts,
    "classes": _are_texts,
    "min_points": _is_count,
    "unnumbered": lambda value: isinstance(value, bool),
    "scans": _is_count,
    "fingerprint": _is_text,
}
