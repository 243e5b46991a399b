"""What a run folder says about itself: the records that the report is computed from.

``runs/<name>/`` holds ``run.json`` (a :class:`RunRecord`), ``results.json`` (a :class:`Results`),
``metrics.jsonl`` (see :mod:`lidarssl.report.training_log`) and ``figures/``.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lidarssl.errors import DataError
from lidarssl.report import strict_json

RUN_FILE = "run.json"
RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.jsonl"

RANDOM_INIT = "random init"
"""Method name of the baseline that pretraining must beat: same network, random weights."""

LOOK_UP = "look-up"
"""Method name of the baseline without a network: class by height, range and intensity."""

PIXEL_POSITION = "pixel position"
"""Method name of the baseline without a network on images: class by the place in the image."""

LOOK_UPS = {LOOK_UP: "height, range and intensity", PIXEL_POSITION: "the place in the image"}
"""What each baseline without a network looks at."""

MIOU_NAN = "mIoU ('nan' variant: a class with neither truth nor prediction is left out)"


class Protocol(enum.StrEnum):
    """How a representation is judged."""

    PROBE = "probe"
    FINETUNE = "finetune"
    LOOKUP = "look-up"


class Section(enum.StrEnum):
    """The part of the report that shows a picture."""

    INPUT = "input"
    FEATURES = "features"
    PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Stage:
    """One step of a run, e.g. "pretrain/slidr", and what it took."""

    name: str
    seconds: float
    description: str

    def __post_init__(self) -> None:
        _check(self.seconds >= 0, "must not be negative", "seconds")


@dataclass(frozen=True)
class RunRecord:
    """Identity of a run.

    Attributes:
        name: folder name.
        title: one line a reader understands.
        command: the shell command that repeats the run.
        created: ISO 8601 date and time.
        version: of lidarssl.
        versions: of the packages that decide the numbers, torch first.
        recipe: the resolved recipe, YAML text.
        device: e.g. "cpu (2 threads)".
        wall_seconds: of the whole run.
        notes: sentences for the reader, e.g. a known limit of the experiment.
        stages: in the order they ran.
    """

    name: str
    title: str
    command: str
    created: str
    version: str
    versions: dict[str, str]
    seed: int
    recipe: str
    device: str
    wall_seconds: float
    notes: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        _check(self.wall_seconds >= 0, "must not be negative", "wall_seconds")

    def save(self, run: Path) -> None:
        """Write ``run.json`` into the run folder."""
        strict_json.write(run / RUN_FILE, self)

    @classmethod
    def load(cls, run: Path) -> RunRecord:
        """Read ``run.json`` of a run folder.

        Raises:
            DataError: missing or not exactly this schema; names path and field.
        """
        return strict_json.read(run / RUN_FILE, cls)


@dataclass(frozen=True)
class EfficiencyRow:
    """Scores of one method under one protocol with one share of the labels.

    Attributes:
        method: shown to the reader; the baselines are ``RANDOM_INIT`` and ``LOOK_UP``.
        fraction: share of the label pool, (0, 1].
        seeds: mIoU in [0, 1] of each seed; None for a seed that failed or diverged.
        labelled_frames: number of frames in that share, or None when not known.
    """

    method: str
    protocol: Protocol
    fraction: float
    seeds: tuple[float | None, ...]
    labelled_frames: int | None = None

    def __post_init__(self) -> None:
        _check(bool(self.method), "must not be empty", "method")
        _check_fraction(self.fraction)
        for index, score in enumerate(self.seeds):
            _check_score(score, f"seeds[{index}]")
        _check((self.labelled_frames or 0) >= 0, "must not be negative", "labelled_frames")


@dataclass(frozen=True)
class ClassTableRow:
    """Scores of one method per class, pooled over the seeds or of the first one.

    Attributes:
        names: classes in the order of the dataset, without the ignored one.
        iou: (C,) in [0, 1]; None for a class with neither truth nor prediction.
        gt_points: (C,) labelled points of the test set.
        confusion: (C, C) point counts, [truth][prediction], or None.
    """

    method: str
    protocol: Protocol
    fraction: float
    names: tuple[str, ...]
    iou: tuple[float | None, ...]
    gt_points: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        _check_fraction(self.fraction)
        count = len(self.names)
        _check(len(set(self.names)) == count, "names a class twice", "names")
        _check(len(self.iou) == count, f"has {len(self.iou)} values for {count} names", "iou")
        _check(
            len(self.gt_points) == count,
            f"has {len(self.gt_points)} values for {count} names",
            "gt_points",
        )
        _check(all(points >= 0 for points in self.gt_points), "must not be negative", "gt_points")
        for index, score in enumerate(self.iou):
            _check_score(score, f"iou[{index}]")
        if self.confusion is not None:
            square = len(self.confusion) == count and all(len(r) == count for r in self.confusion)
            _check(square, f"must be {count} x {count}", "confusion")
            counts = (value for row in self.confusion for value in row)
            _check(all(value >= 0 for value in counts), "must not be negative", "confusion")


@dataclass(frozen=True)
class PictureRecord:
    """One picture of the report.

    Attributes:
        file: path inside the run folder, ``figures/<name>.npz`` (raw data, drawn by the report;
            see :mod:`lidarssl.report.figures`) or ``figures/<name>.png`` (shown as it is).
        title: a few words.
        caption: what to look for.
    """

    file: str
    title: str
    caption: str
    section: Section

    def __post_init__(self) -> None:
        path = PurePosixPath(self.file)
        inside = not path.is_absolute() and ".." not in path.parts and "\\" not in self.file
        _check(inside, "must be a path inside the run folder", "file")
        _check(path.suffix in (".npz", ".png"), "must be a .npz or .png file", "file")


@dataclass(frozen=True)
class ProtocolNote:
    """What a protocol did here, in a sentence, and the command that repeats it."""

    protocol: Protocol
    description: str
    command: str


@dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        evaluated_on: the test set, e.g. "40 held-out frames of 40 scenes, 13 classes".
        metric: the definition of every score.
    """

    evaluated_on: str
    metric: str = MIOU_NAN
    protocols: tuple[ProtocolNote, ...] = ()
    efficiency: tuple[EfficiencyRow, ...] = ()
    classes: tuple[ClassTableRow, ...] = ()
    pictures: tuple[PictureRecord, ...] = field(default=())

    def __post_init__(self) -> None:
        keys = [(row.method, row.protocol, row.fraction) for row in self.efficiency]
        for key in keys:
            _check(keys.count(key) == 1, f"has two rows of {key}", "efficiency")

    def save(self, run: Path) -> None:
        """Write ``results.json`` into the run folder."""
        strict_json.write(run / RESULTS_FILE, self)

    @classmethod
    def load(cls, run: Path) -> Results:
        """Read ``results.json`` of a run folder.

        Raises:
            DataError: missing or not exactly this schema; names path and field.
        """
        return strict_json.read(run / RESULTS_FILE, cls)


def _check_fraction(fraction: float) -> None:
    _check(0 < fraction <= 1, f"is {fraction}, not in (0, 1]", "fraction")


def _check_score(score: float | None, field_name: str) -> None:
    if score is not None:
        _check(
            math.isfinite(score) and 0 <= score <= 1,
            f"is {score}, not in [0, 1]",
            field_name,
            "scores are fractions, not per cent; use None for a seed or class without one",
        )


def _check(condition: bool, problem: str, field_name: str, remedy: str | None = None) -> None:
    if not condition:
        raise DataError(problem, field=field_name, remedy=remedy)
