"""Charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from lidarssl.report.axes import Area, Scale, frame, linear, nice_ticks, path, step_ticks, svg
from lidarssl.report.markup import Html, element, join
from lidarssl.report.schema import LOOK_UPS, RANDOM_INIT, Protocol
from lidarssl.report.scores import Column, ScoreTable, is_baseline, percent
from lidarssl.report.training_log import Curve

SERIES_COLORS = 5
MAX_BINS = 160


def series_class(method: str, methods: Sequence[str]) -> str:
    """CSS class of a method's colour: the same in every chart of a page."""
    fixed = {RANDOM_INIT: "random", **dict.fromkeys(LOOK_UPS, "lookup")}
    if method in fixed:
        return fixed[method]
    trained = [name for name in methods if not is_baseline(name)]
    return f"s{trained.index(method) % SERIES_COLORS}"


def score_bars(table: ScoreTable, column: Column) -> Html:
    """One bar per method, its seeds as dots and its mean in figures."""
    found = [(m, score) for m in table.methods if (score := table.score(m, column))]
    top = nice_ticks(0, max(score.high for _, score in found))[-1]
    rows = []
    for method, score in found:
        seeds = [100 * seed for seed in table.seeds(method, column) if seed is not None]
        dots = [
            element("i", class_="seed", style=f"left:{100 * seed / top:.2f}%", title=f"{seed:.1f}")
            for seed in seeds
            if len(seeds) > 1
        ]
        bar = element("b", style=f"width:{100 * score.mean / top:.2f}%")
        rows.append(
            element(
                "div",
                element("span", method, class_="name"),
                element("span", bar, *dots, class_="track"),
                element("span", f"{score.mean:.1f}", class_="value"),
                class_=f"bar {series_class(method, table.methods)}",
            )
        )
    return element("div", *rows, class_="bars")


def label_efficiency(table: ScoreTable, protocol: Protocol) -> Html | None:
    """mIoU against the share of labels, log x; None with fewer than two shares.

    Error bars are one sample standard deviation; small dots are single seeds.
    """
    columns = [column for column in table.columns if column.protocol is protocol]
    scores = [score for c in columns for m in table.methods if (score := table.score(m, c))]
    if len(columns) < 2 or not scores:
        return None
    area = Area()
    ticks = nice_ticks(0, max(max(s.high, s.mean + (s.spread or 0)) for s in scores))
    y = linear(0, ticks[-1], area.y_end, area.top)
    logs = [math.log10(column.fraction) for column in columns]
    x = linear(logs[0], logs[-1], area.left + 30, area.x_end - 30)
    x_ticks = [(x(log), percent(c.fraction)) for log, c in zip(logs, columns, strict=True)]
    lines = [
        _efficiency_line(table, method, columns, index, x, y)
        for index, method in enumerate(table.methods)
    ]
    title = "share of the labels (log scale)"
    return svg(
        area, "mIoU against the share of labels", frame(area, y, ticks, x_ticks, title), *lines
    )


def _efficiency_line(
    table: ScoreTable, method: str, columns: Sequence[Column], index: int, x: Scale, y: Scale
) -> Html:
    shift = 5.0 * (index - (len(table.methods) - 1) / 2)
    marks, points = [], []
    for column in columns:
        score = table.score(method, column)
        if score is None:
            continue
        at = x(math.log10(column.fraction)) + shift
        points.append((at, y(score.mean)))
        if score.spread is not None:
            low, high = y(max(score.mean - score.spread, 0)), y(score.mean + score.spread)
            marks.append(element("line", x1=at, x2=at, y1=low, y2=high, class_="error"))
        for seed in table.seeds(method, column):
            if seed is not None:
                marks.append(element("circle", cx=at, cy=y(100 * seed), r=1.8, class_="seed"))
        label = element("title", f"{method}, {percent(column.fraction)}: {score}")
        marks.append(element("circle", label, cx=at, cy=y(score.mean), r=4, class_="mean"))
    line = element("path", d=path(points), class_="line") if len(points) > 1 else None
    return element("g", line, *marks, class_=series_class(method, table.methods))


def legend(methods: Sequence[str]) -> Html:
    """Names of the methods beside their colours."""
    items = [
        element("li", element("i"), method, class_=series_class(method, methods))
        for method in methods
    ]
    return element("ul", *items, class_="legend")


def loss_curve(curves: Mapping[str, Curve], label: str) -> Html | None:
    """Terms over the steps: mean per bin as a line, the range within a bin as a band.

    Steps whose value is not finite leave a gap; None if no value is finite.

    Args:
        curves: by the CSS class of their colour.
        label: read out by screen readers.
    """
    bins = {color: found for color, curve in curves.items() if any(found := _bins(curve))}
    finite = [one for found in bins.values() for one in found if one is not None]
    if not finite:
        return None
    area = Area(height=190)
    ticks = nice_ticks(min(one[1] for one in finite), max(one[2] for one in finite), 4)
    y = linear(ticks[0], ticks[-1], area.y_end, area.top)
    steps = [step for color in bins for step in curves[color].steps]
    x = linear(min(steps), max(steps), area.left + 4, area.x_end - 6)
    x_ticks = [(x(s), f"{s:g}") for s in step_ticks(min(steps), max(steps))]
    lines = [element("g", *_curve(found, x, y), class_=color) for color, found in bins.items()]
    return svg(area, label, frame(area, y, ticks, x_ticks, "step"), *lines)


def _curve(bins: Sequence[_Bin | None], x: Scale, y: Scale) -> list[Html]:
    parts = []
    for present, group in groupby(bins, key=lambda one: one is not None):
        run = [one for one in group if one is not None]
        if present:
            upper = [(x(step), y(top)) for step, _, top, _ in run]
            lower = [(x(step), y(bottom)) for step, bottom, _, _ in reversed(run)]
            parts.append(element("path", d=path([*upper, *lower]) + "Z", class_="band"))
            means = [(x(step), y(mean)) for step, _, _, mean in run]
            parts.append(element("path", d=path(means), class_="line"))
    step, _, _, mean = [one for one in bins if one is not None][-1]
    return [*parts, element("circle", cx=x(step), cy=y(mean), r=3.5, class_="mean")]


_Bin = tuple[float, float, float, float]


def _bins(curve: Curve) -> list[_Bin | None]:
    """(middle step, min, max, mean) of consecutive steps; None where none is finite."""
    pairs = sorted(zip(curve.steps, curve.values, strict=True), key=lambda pair: pair[0])
    size = max(1, math.ceil(len(pairs) / MAX_BINS))
    bins: list[_Bin | None] = []
    for start in range(0, len(pairs), size):
        chunk = [pair for pair in pairs[start : start + size] if math.isfinite(pair[1])]
        if not chunk:
            bins.append(None)
            continue
        values = [value for _, value in chunk]
        step = sum(step for step, _ in chunk) / len(chunk)
        mean = sum(value / len(values) for value in values)
        bins.append((step, min(values), max(values), mean))
    return bins


def confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    """Confusion matrix, each row (true class) as shares that sum to one."""
    cell, left, top = 24.0, 96.0, 84.0
    side = cell * len(names)
    area = Area(width=left + side + 36, height=top + side + 4)
    parts = []
    for row, (name, values) in enumerate(zip(names, counts, strict=True)):
        y = top + row * cell
        parts.append(element("text", name, x=left - 6, y=y + 16, text_anchor="end"))
        x_text = left + row * cell + 15
        turn = f"rotate(-50 {x_text:g} {top - 6:g})"
        parts.append(element("text", name, x=x_text, y=top - 6, transform=turn))
        parts.append(_confusion_row(names, row, values, left, y, cell))
    return svg(area, "Confusion matrix: rows truth, columns prediction", join(*parts))


def _confusion_row(
    names: Sequence[str], row: int, values: Sequence[int], left: float, y: float, cell: float
) -> Html:
    total = sum(values)
    parts = []
    for column, value in enumerate(values):
        share = value / total if total else 0.0
        kind = "hit" if row == column else "miss"
        x = left + column * cell
        title = element("title", f"{names[row]} seen as {names[column]}: {share:.0%}")
        box = {"x": x + 1, "y": y + 1, "width": cell - 2, "height": cell - 2, "rx": 3}
        parts.append(element("rect", class_="empty", **box))
        if share > 0:
            opacity = f"{0.02 + 0.98 * share:.3f}"
            parts.append(element("rect", title, class_=kind, opacity=opacity, **box))
        if share >= 0.095:
            text = f"{100 * share:.0f}"
            dark = "on" if share > 0.5 else "off"
            middle = x + cell / 2
            parts.append(
                element("text", text, x=middle, y=y + 15.5, text_anchor="middle", class_=dark)
            )
    return join(*parts)
