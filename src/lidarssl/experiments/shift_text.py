"""What a shift costs, as text for the terminal."""

from __future__ import annotations

from lidarssl.report.shift import Estimate, MethodGain, MethodScores, ShiftResults


def shift_text(results: ShiftResults) -> str:
    """The scores of every method under every condition, and what pretraining gained, aligned."""
    head = ("method", "runs", "condition", "frames", "mIoU %", "", "relative", "")
    rows = [row for method in results.methods for row in _rows(method)]
    parts = [
        f"source: {results.source}    shift: {results.target}",
        _aligned([head, *rows]),
    ]
    for gain in results.gains:
        what = f"{gain.method} - {gain.baseline}"
        titles = (what, "condition", "mIoU points", "", "relative", "")
        parts.append(f"paired: {gain.pairs}\n{_aligned([titles, *_gain_rows(gain)])}")
    return "\n\n".join([*parts, "\n".join(results.notes)])


def _rows(method: MethodScores) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for number, score in enumerate(method.conditions):
        who = (method.method, str(len(method.runs))) if number == 0 else ("", "")
        relative = ("", "") if score.relative is None else _shown(score.relative, 1, 2)
        rows.append(
            (*who, score.condition, str(score.frames), *_shown(score.miou, 100, 1), *relative)
        )
    return rows


def _gain_rows(gain: MethodGain) -> list[tuple[str, ...]]:
    return [
        (
            "",
            one.condition,
            *_shown(one.miou, 100, 1, "+"),
            *(("", "") if one.relative is None else _shown(one.relative, 1, 2, "+")),
        )
        for one in gain.conditions
    ]


def _shown(estimate: Estimate, factor: float, digits: int, sign: str = "") -> tuple[str, str]:
    """The number with its spread over runs, and its interval."""
    if estimate.value is None:
        return "-", ""
    number = f"{factor * estimate.value:{sign}.{digits}f}"
    if estimate.spread is not None:
        number += f" ± {factor * estimate.spread:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return number, ""
    low, high = (f"{factor * end:{sign}.{digits}f}" for end in (estimate.low, estimate.high))
    return number, f"[{low}, {high}]"


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
