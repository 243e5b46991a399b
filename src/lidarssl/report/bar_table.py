"""A table with a bar in each row, as PNG bytes; readable where three panels share a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lidarssl.report.pictures import BACKGROUND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI, WIDTH, ROW, MARGIN = 100, 760, 40, 8
"""Pixels: of the picture, of a row, above the head and below the last row."""
NAME, BAR_START, BAR_END, COLUMNS = 16, 236, 428, (548, 648, 744)
"""Pixels from the left: start of the names, start and end of the bars, ends of the columns."""
_FONT = 24 * 72 / DPI
_TEXT, _MUTED, _LINE = "#e6ebf0", "#a9b5c2", "#2b3541"
_LONGEST_NAME = 16
_BAR_HEIGHT = 0.55 * ROW


@dataclass(frozen=True)
class BarRow:
    """A row of the table.

    Attributes:
        name: shortened where it is long.
        color: of the bar, RGB in [0, 1].
        value: length of the bar, >= 0; None = no bar, and muted texts.
        cells: texts of the columns, left to right; the last ones may be missing.
    """

    name: str
    color: tuple[float, float, float]
    value: float | None
    cells: tuple[str, ...]


def bar_table(heads: Sequence[str], rows: Sequence[BarRow], longest: float) -> bytes:
    """Names, bars, and one to three columns of text.

    Args:
        heads: of the columns; the last one ends at the right border.
        rows: from top to bottom.
        longest: a bar of a larger value is cut, and has a gap.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = ROW * (len(rows) + 1) + 2 * MARGIN
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    middle = MARGIN + ROW / 2
    _write(axes, middle, "", heads, len(heads), _MUTED)
    reach = max((min(row.value, longest) for row in rows if row.value is not None), default=0)
    for number, row in enumerate(rows, start=1):
        y = middle + ROW * number
        axes.axhline(y - ROW / 2, color=_LINE, lw=1)
        _write(axes, y, row.name, row.cells, len(heads), _MUTED if row.value is None else _TEXT)
        if row.value is not None:
            share = min(row.value, longest) / max(reach, 1e-12)
            _bar(axes, y, share, row.color, cut=row.value > longest)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor=BACKGROUND)
    return buffer.getvalue()


def _write(axes: Axes, y: float, name: str, cells: Sequence[str], columns: int, color: str) -> None:
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    texts = [(NAME, name, "left")]
    ends = COLUMNS[len(COLUMNS) - columns :]
    texts += [(x, cell, "right") for x, cell in zip(ends, cells, strict=False)]
    for x, text, side in texts:
        axes.text(x, y, text, color=color, ha=side, va="center", fontsize=_FONT, parse_math=False)


def _bar(axes: Axes, y: float, share: float, color: tuple[float, float, float], cut: bool) -> None:
    length = share * (BAR_END - BAR_START)
    axes.barh(y, length, _BAR_HEIGHT, BAR_START, color=color)
    if cut:
        axes.barh(y, 6, _BAR_HEIGHT, BAR_START + length - 18, color=BACKGROUND)
