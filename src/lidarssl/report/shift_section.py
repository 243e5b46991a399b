"""The section of the report on other weather and light: charts and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lidarssl.report.axes import Area, Scale, frame, linear, nice_ticks, svg
from lidarssl.report.charts import legend, series_class
from lidarssl.report.markup import Html, element, join
from lidarssl.report.scores import is_baseline
from lidarssl.report.shift import ConditionScore, Estimate, MethodGain, ShiftResults
from lidarssl.report.tables import scrollable

_NOTHING = "–"
_Number = Callable[[ConditionScore], Estimate | None]
_MINUS = "\N{MINUS SIGN}"


def shift_content(results: ShiftResults) -> Html:
    """Charts and tables of mIoU and of relative performance, and what pretraining gained."""
    methods = [one.method for one in results.methods]
    notes = [element("li", note) for note in results.notes]
    command = element("code", results.command, class_="command") if results.command else None
    return join(
        element(
            "p",
            f"Measured first on {results.source}, then, without any further training, on each "
            f"condition of {results.target}. {results.metric}.",
        ),
        legend(methods),
        element(
            "div",
            _figure(results, lambda score: score.miou, 100, "mIoU"),
            _figure(results, lambda score: score.relative, 1, "mIoU / mIoU of the source"),
            class_="columns",
        ),
        element("h3", "mIoU"),
        _table(results, lambda score: score.miou, 100, 1),
        element("h3", "Relative performance"),
        _table(results, lambda score: score.relative, 1, 2),
        *(_gain(results, gain) for gain in results.gains),
        element("ul", *notes, class_="notes") if notes else None,
        command,
    )


def _figure(results: ShiftResults, number: _Number, factor: float, caption: str) -> Html | None:
    chart = _chart(results, number, factor, caption)
    return None if chart is None else element("figure", chart, element("figcaption", caption))


def _chart(results: ShiftResults, number: _Number, factor: float, title: str) -> Html | None:
    """A dot with its interval for every method in every condition; None without a number."""
    shown = [
        (name, [_scaled(number(one.conditions[index]), factor) for one in results.methods])
        for index, name in enumerate(results.conditions)
    ]
    shown = [(name, some) for name, some in shown if any(one is not None for one in some)]
    known = [one for _, some in shown for one in some if one is not None]
    if not known:
        return None
    area = Area()
    ticks = nice_ticks(0, max(max(one) for one in known))
    y = linear(0, ticks[-1], area.y_end, area.top)
    step = (area.x_end - area.left) / len(shown)
    middles = [area.left + (index + 0.5) * step for index in range(len(shown))]
    x_ticks = [(middle, name) for middle, (name, _) in zip(middles, shown, strict=True)]
    methods = [one.method for one in results.methods]
    shift = min(14.0, 0.8 * step / len(methods))
    marks = [
        _mark(one, middle + shift * (rank - (len(methods) - 1) / 2), y, method, name, methods)
        for middle, (name, some) in zip(middles, shown, strict=True)
        for rank, (method, one) in enumerate(zip(methods, some, strict=True))
        if one is not None
    ]
    return svg(area, title, frame(area, y, ticks, x_ticks, "condition"), *marks)


def _scaled(estimate: Estimate | None, factor: float) -> tuple[float, float, float] | None:
    """(value, low, high), both ends the value itself where there is no interval."""
    if estimate is None or estimate.value is None:
        return None
    value = estimate.value
    low = value if estimate.low is None else estimate.low
    high = value if estimate.high is None else estimate.high
    return factor * value, factor * low, factor * high


def _mark(
    one: tuple[float, float, float],
    at: float,
    y: Scale,
    method: str,
    condition: str,
    methods: Sequence[str],
) -> Html:
    value, low, high = one
    bottom, top = y(max(low, 0)), y(high)
    label = element("title", f"{method}, {condition}: {value:.3g} [{low:.3g}, {high:.3g}]")
    return element(
        "g",
        element("line", x1=at, x2=at, y1=bottom, y2=top, class_="error"),
        element("line", x1=at - 3.5, x2=at + 3.5, y1=bottom, y2=bottom, class_="error"),
        element("line", x1=at - 3.5, x2=at + 3.5, y1=top, y2=top, class_="error"),
        element("circle", label, cx=at, cy=y(value), r=4, class_="mean"),
        class_=series_class(method, methods),
    )


def _table(results: ShiftResults, number: _Number, factor: float, digits: int) -> Html:
    """Methods x conditions: the number, its spread over runs, and its interval."""
    columns = [
        (index, score)
        for index, score in enumerate(results.methods[0].conditions)
        if number(score) is not None
    ]
    methods = [one.method for one in results.methods]
    rows = [
        element(
            "tr",
            element("th", element("i", class_="swatch"), one.method, _runs(len(one.runs))),
            *(_cell(number(one.conditions[index]), factor, digits) for index, _ in columns),
            class_=series_class(one.method, methods) + (" base" if is_baseline(one.method) else ""),
        )
        for one in results.methods
    ]
    return _condition_table([(score.condition, score.frames) for _, score in columns], rows)


def _condition_table(columns: Sequence[tuple[str, int]], rows: Sequence[Html]) -> Html:
    head = element(
        "tr",
        element("th", ""),
        *(
            element(
                "th", name, element("small", f"{frames} frame{'s'[: frames != 1]}"), scope="col"
            )
            for name, frames in columns
        ),
    )
    body = element("tbody", *rows)
    return scrollable(element("table", element("thead", head), body, class_="efficiency"))


def _runs(count: int) -> Html:
    return element("small", f" {count} run{'s'[: count != 1]}")


def _cell(estimate: Estimate | None, factor: float, digits: int, sign: str = "") -> Html:
    if estimate is None or estimate.value is None:
        return element("td", _NOTHING, class_="none")
    value = _text(factor * estimate.value, digits, sign)
    spread = None
    if estimate.spread is not None:
        spread = element("small", f" ± {factor * estimate.spread:.{digits}f}")
    below = None
    if estimate.low is not None and estimate.high is not None:
        low, high = (_text(factor * end, digits, sign) for end in (estimate.low, estimate.high))
        below = element("div", element("small", f"{low} to {high}"))
    return element("td", element("span", value, class_="mean"), spread, below)


def _text(number: float, digits: int, sign: str) -> str:
    return f"{number:{sign}.{digits}f}".replace("-", _MINUS)


def _gain(results: ShiftResults, gain: MethodGain) -> Html:
    """The difference to the method without pretraining, in every condition."""
    title = f"{gain.method} minus {gain.baseline}, paired by {gain.pairs}"
    frames = [score.frames for score in results.methods[0].conditions]
    columns = [(one.condition, count) for one, count in zip(gain.conditions, frames, strict=True)]
    rows = [
        element(
            "tr",
            element("th", "mIoU points", scope="row"),
            *(_cell(one.miou, 100, 1, "+") for one in gain.conditions),
        ),
        element(
            "tr",
            element("th", "relative performance", scope="row"),
            *(_cell(one.relative, 1, 2, "+") for one in gain.conditions),
        ),
    ]
    return join(element("h3", title), _condition_table(columns, rows))
