"""``metrics.jsonl``: one JSON object per logged step, readable while the run still writes it.

Each line has ``stage`` (text) and ``step`` (int from 0); every other number is a logged term.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lidarssl.errors import DataError

MAX_LINE_BYTES = 64 * 1024
MAX_LINES = 2_000_000
BOOKKEEPING = frozenset({"stage", "step", "epoch", "time", "seconds"})


@dataclass
class Curve:
    """One term over the steps of one stage; values may be NaN or infinite."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def first_not_finite(self) -> int | None:
        """The first step whose value is no number, or None."""
        pairs = zip(self.steps, self.values, strict=True)
        return next((step for step, value in pairs if not math.isfinite(value)), None)


@dataclass
class TrainingLog:
    """Curves by stage and term, in order of appearance, and the lines that could not be read."""

    stages: dict[str, dict[str, Curve]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_log(path: Path) -> TrainingLog:
    """Read a log; unreadable lines (a run that was killed leaves half a line) are counted.

    Raises:
        DataError: the file is missing or cannot be opened.
    """
    log = TrainingLog()
    bad: list[int] = []
    total = 0
    for total, line in enumerate(_lines(path), 1):
        if total > MAX_LINES:
            log.problems.append(f"only the first {MAX_LINES} lines are shown")
            break
        if line.strip() and not _add_line(log, line):
            bad.append(total)
    if bad == [total]:
        log.problems.append("the last line is cut off: the run was interrupted or is still going")
    elif bad:
        log.problems.append(f"{len(bad)} of {total} lines are unreadable, first line {bad[0]}")
    for stage, curves in log.stages.items():
        for term, curve in curves.items():
            if (step := curve.first_not_finite) is not None:
                log.problems.append(f"{stage}: {term} is not a finite number at step {step}")
    return log


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                yield line
    except FileNotFoundError as error:
        raise DataError("file not found", path=path) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path=path) from error


def _add_line(log: TrainingLog, line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(row, dict):
        return False
    stage, step = row.get("stage"), row.get("step")
    if not isinstance(stage, str) or not _is_number(step) or not isinstance(step, int):
        return False
    if not 0 <= step < 2**53:
        return False
    curves = log.stages.setdefault(stage, {})
    for term, value in row.items():
        if term not in BOOKKEEPING and _is_number(value):
            curve = curves.setdefault(term, Curve())
            curve.steps.append(step)
            curve.values.append(_as_float(value))
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
