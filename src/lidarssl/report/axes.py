"""The frame of an SVG chart: scales, ticks, grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lidarssl.report.markup import Html, element, join

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Area:
    """The drawing area in SVG units; one unit is about one CSS pixel."""

    width: float = 460
    height: float = 250
    left: float = 42
    right: float = 14
    top: float = 12
    bottom: float = 40

    @property
    def x_end(self) -> float:
        return self.width - self.right

    @property
    def y_end(self) -> float:
        return self.height - self.bottom


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Map [low, high] to [start, end]."""
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """At most ``count`` + 1 round numbers that enclose [low, high]."""
    raw = max(high - low, 1e-9 * max(abs(low), abs(high), 1.0)) / max(count - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10, 20) if m * magnitude >= raw * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def step_ticks(first: float, last: float) -> list[float]:
    """Round whole numbers inside [first, last]; the ends where there is none."""
    ticks = [tick for tick in nice_ticks(first, last) if first <= tick <= last and tick % 1 == 0]
    return ticks or sorted({first, last})


def frame(
    area: Area,
    y: Scale,
    y_ticks: Sequence[float],
    x_ticks: Sequence[tuple[float, str]],
    x_title: str,
) -> Html:
    """Horizontal grid lines with their values, ticks (position, text) and title of the x axis."""
    parts: list[Html] = []
    for value in y_ticks:
        at = y(value)
        parts.append(element("line", x1=area.left, x2=area.x_end, y1=at, y2=at, class_="grid"))
        parts.append(element("text", f"{value:g}", x=area.left - 8, y=at + 4, text_anchor="end"))
    for at, text in x_ticks:
        parts.append(element("text", text, x=at, y=area.y_end + 17, text_anchor="middle"))
    middle = (area.left + area.x_end) / 2
    parts.append(
        element("text", x_title, x=middle, y=area.height - 4, text_anchor="middle", class_="axis")
    )
    return join(*parts)


def svg(area: Area, label: str, *children: Html) -> Html:
    """The chart; ``label`` is read out by screen readers."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {area.width:g} {area.height:g}",
        style=f"max-width:{1.25 * area.width:.0f}px",
        role="img",
        aria_label=label,
        class_="chart",
    )


def path(points: Sequence[tuple[float, float]]) -> str:
    """``d`` of a polyline through the points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
