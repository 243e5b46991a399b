"""Scores of segmentations under other weather and light than they were trained in.

``lidarssl evaluate RUN [RUN ...] --shift NAME`` writes ``shift.json`` (a :class:`ShiftResults`)
into every run folder; the report shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lidarssl.errors import DataError
from lidarssl.report import strict_json
from lidarssl.report.schema import PictureRecord

SHIFT_FILE = "shift.json"

POOLED = "all"
"""Name of all conditions but the source together."""


@dataclass(frozen=True)
class Estimate:
    """A number with what is known of its uncertainty.

    Attributes:
        value: of the one run, or mean over runs; None where undefined.
        low, high: ends of the interval; None where there is none.
        spread: sample standard deviation over runs; None for one run.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        for name in ("value", "low", "high", "spread"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise DataError(f"is {number}", field=name, remedy="use None for no number")


@dataclass(frozen=True)
class ConditionScore:
    """One method in one condition.

    Attributes:
        condition: its name; the first one of a method is the source.
        frames: that were judged.
        miou: in [0, 1].
        relative: mIoU divided by that of the source; None for the source itself.
        runs: mIoU of each run.
        iou: of every class, over the frames of all runs; None for an absent class.
    """

    condition: str
    frames: int
    miou: Estimate
    relative: Estimate | None
    runs: tuple[float | None, ...]
    iou: tuple[float | None, ...]


@dataclass(frozen=True)
class MethodScores:
    """The runs of one method.

    Attributes:
        method: how the encoder was pretrained.
        runs: names of the run folders.
        seeds: of their training.
        conditions: the source first.
    """

    method: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    conditions: tuple[ConditionScore, ...]


@dataclass(frozen=True)
class ConditionGain:
    """Difference between two methods in one condition, of mIoU and of relative performance."""

    condition: str
    miou: Estimate
    relative: Estimate | None


@dataclass(frozen=True)
class MethodGain:
    """A method beside the one without pretraining, pair by pair.

    Attributes:
        pairs: what was paired, in words.
    """

    method: str
    baseline: str
    pairs: str
    conditions: tuple[ConditionGain, ...]


@dataclass(frozen=True)
class ShiftResults:
    """What a change of weather and light costs.

    Attributes:
        source: where the methods were trained and are measured first, e.g. "cityscapes/val".
        target: where the conditions are, e.g. "acdc/val".
        metric: definition of the scores.
        command: what repeats the table.
        classes: names, without the ignored one.
        notes: sentences on how intervals were made and what to be careful with.
        methods: in the order of the table.
        gains: over the method without pretraining, where pairs exist.
        pictures: of this run.
    """

    source: str
    target: str
    metric: str
    command: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    methods: tuple[MethodScores, ...]
    gains: tuple[MethodGain, ...] = ()
    pictures: tuple[PictureRecord, ...] = ()

    def __post_init__(self) -> None:
        if not self.methods:
            raise DataError("holds no method", field="methods")
        first = [score.condition for score in self.methods[0].conditions]
        for method in self.methods:
            if not first or [score.condition for score in method.conditions] != first:
                raise DataError("methods differ in their conditions", field="methods")

    def save(self, run: Path) -> None:
        """Write ``shift.json`` into the run folder."""
        strict_json.write(run / SHIFT_FILE, self)

    @classmethod
    def load(cls, run: Path) -> ShiftResults:
        """Read ``shift.json`` of a run folder.

        Raises:
            DataError: missing or not exactly this schema; names path and field.
        """
        return strict_json.read(run / SHIFT_FILE, cls)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions, the source first."""
        return tuple(score.condition for score in self.methods[0].conditions)
