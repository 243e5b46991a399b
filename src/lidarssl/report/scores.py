"""From the scores of seeds to what may be claimed: means, spreads and evidence."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lidarssl.report.schema import LOOK_UP, LOOK_UPS, RANDOM_INIT, EfficiencyRow, Protocol


@dataclass(frozen=True)
class Score:
    """Scores of several seeds, in mIoU points (0..100).

    Attributes:
        mean, low, high: over the seeds that finished.
        spread: sample standard deviation; None for one seed.
        count: seeds that finished.
        failed: seeds without a score.
    """

    mean: float
    low: float
    high: float
    spread: float | None
    count: int
    failed: int

    def __str__(self) -> str:
        if self.spread is None:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{self.spread:.1f}"


def summarise(seeds: Sequence[float | None]) -> Score | None:
    """Score of the seeds, each mIoU in [0, 1]; None if none finished."""
    points = [100 * seed for seed in seeds if seed is not None]
    if not points:
        return None
    mean = math.fsum(points) / len(points)
    spread = None
    if len(points) > 1:
        spread = math.sqrt(math.fsum((p - mean) ** 2 for p in points) / (len(points) - 1))
    failed = len(seeds) - len(points)
    return Score(mean, min(points), max(points), spread, len(points), failed)


def difference(score: float, baseline: float) -> float:
    """Of two scores as they are shown, with one decimal, so that a reader's sum agrees."""
    return round(round(score, 1) - round(baseline, 1), 1)


class Evidence(enum.Enum):
    """What the seeds say about a method against a baseline."""

    BETTER = "every seed above every seed of the baseline"
    UNSETTLED = "higher on average, but the seeds do not settle it"
    NOT_BETTER = "not higher than the baseline"


def evidence(method: Score, baseline: Score, deterministic_baseline: bool = False) -> Evidence:
    """Compare seeds without a distributional assumption: two or three seeds bear no t-test.

    Args:
        deterministic_baseline: the baseline has no seed, so one number of it is enough.
    """
    if method.mean <= baseline.mean:
        return Evidence.NOT_BETTER
    enough = method.count > 1 and (baseline.count > 1 or deterministic_baseline)
    return Evidence.BETTER if enough and method.low > baseline.high else Evidence.UNSETTLED


@dataclass(frozen=True)
class Column:
    """A protocol and a share of the labels: what scores of methods are compared within."""

    protocol: Protocol
    fraction: float
    labelled_frames: int | None = None

    def __str__(self) -> str:
        name = {Protocol.PROBE: "linear probe", Protocol.FINETUNE: "fine-tuning"}
        return f"{name.get(self.protocol, 'look-up')}, {percent(self.fraction)} of the labels"


def percent(fraction: float) -> str:
    """0.01 -> "1 %"."""
    rounded = f"{100 * fraction:.2g}" if fraction < 0.995 else "100"
    return f"{rounded}\N{NO-BREAK SPACE}%"


def signed(difference: float) -> str:
    """1.23 -> "+1.2", with a true minus sign."""
    text = f"{difference:+.1f}"
    return "±0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def is_baseline(method: str) -> bool:
    """Whether the method is one of the baselines, not a pretraining method."""
    return method == RANDOM_INIT or method in LOOK_UPS


def order_methods(methods: Iterable[str]) -> list[str]:
    """Pretraining methods in order of appearance, then random init, then look-ups."""
    unique = list(dict.fromkeys(methods))
    last = {RANDOM_INIT: 1, **dict.fromkeys(LOOK_UPS, 2)}
    return sorted(unique, key=lambda method: last.get(method, 0))


class ScoreTable:
    """Scores by method and column. The look-up has no protocol of its own: it is a baseline of
    every column with its fraction."""

    def __init__(self, rows: Sequence[EfficiencyRow]) -> None:
        self.methods = order_methods(row.method for row in rows)
        networks = [row for row in rows if row.protocol is not Protocol.LOOKUP]
        self.columns = _sorted_columns(networks or rows)
        self._rows = {(row.method, row.protocol, row.fraction): row for row in rows}

    def score(self, method: str, column: Column) -> Score | None:
        """Score of a method in a column, or None."""
        return summarise(self.seeds(method, column))

    def seeds(self, method: str, column: Column) -> tuple[float | None, ...]:
        """Scores of the single seeds of a method in a column."""
        row = self._rows.get((method, column.protocol, column.fraction))
        if row is None:
            row = self._rows.get((method, Protocol.LOOKUP, column.fraction))
        return () if row is None else row.seeds

    @property
    def look_up(self) -> str:
        """The baseline without a network that was run; that of points where none was."""
        return next((method for method in self.methods if method in LOOK_UPS), LOOK_UP)

    def pretrained(self, column: Column) -> list[str]:
        """Pretraining methods with a score in the column."""
        return [m for m in self.methods if not is_baseline(m) and self.score(m, column)]


def merge_columns(tables: Iterable[ScoreTable]) -> list[Column]:
    """The columns of several tables, in reading order, each protocol and share once."""
    columns = [column for table in tables for column in table.columns]
    unique = {(column.protocol, column.fraction): column for column in reversed(columns)}
    return sorted(unique.values(), key=_reading_order)


def _sorted_columns(rows: Sequence[EfficiencyRow]) -> list[Column]:
    frames = {(r.protocol, r.fraction): r.labelled_frames for r in reversed(rows)}
    columns = [Column(*key, labelled_frames=count) for key, count in frames.items()]
    return sorted(columns, key=_reading_order)


def _reading_order(column: Column) -> tuple[int, float]:
    return list(Protocol).index(column.protocol), column.fraction
