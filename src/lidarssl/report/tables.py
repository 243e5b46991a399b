"""Tables of the report as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lidarssl.report.charts import series_class
from lidarssl.report.markup import Html, element
from lidarssl.report.schema import LOOK_UPS, RANDOM_INIT, ClassTableRow, Protocol
from lidarssl.report.scores import (
    Column,
    Score,
    ScoreTable,
    difference,
    is_baseline,
    merge_columns,
    order_methods,
    percent,
    signed,
)

PROTOCOL_NAMES = {
    Protocol.PROBE: "linear probe",
    Protocol.FINETUNE: "fine-tuning",
    Protocol.LOOKUP: "look-up",
}
_NOTHING = "–"


def scrollable(*children: Html) -> Html:
    """A box that scrolls sideways on a narrow screen instead of widening the page."""
    return element("div", *children, class_="scroll", tabindex="0")


def efficiency_table(groups: Sequence[tuple[str, ScoreTable]]) -> Html:
    """Methods x (protocol, share of labels): mean and spread, seeds, difference to random.

    Args:
        groups: (heading, scores) of each run; an empty heading is not shown.
    """
    columns = merge_columns(table for _, table in groups)
    spans: dict[Protocol, int] = {}
    for column in columns:
        spans[column.protocol] = spans.get(column.protocol, 0) + 1
    top = [element("th", "", rowspan=2)] + [
        element("th", PROTOCOL_NAMES[protocol], colspan=count, class_="group")
        for protocol, count in spans.items()
    ]
    below = [element("th", percent(c.fraction), _frames(c), scope="col") for c in columns]
    head = element("thead", element("tr", *top), element("tr", *below))
    bodies = [_efficiency_body(heading, table, columns) for heading, table in groups]
    return scrollable(element("table", head, *bodies, class_="efficiency"))


def _efficiency_body(heading: str, table: ScoreTable, columns: Sequence[Column]) -> Html:
    rows = [
        element(
            "tr",
            element("th", element("i", class_="swatch"), method, scope="row"),
            *(_score_cell(table, method, column) for column in columns),
            class_=series_class(method, table.methods) + (" base" if is_baseline(method) else ""),
        )
        for method in table.methods
    ]
    if heading:
        title = element("th", heading, colspan=len(columns) + 1, scope="rowgroup")
        rows.insert(0, element("tr", title, class_="heading"))
    return element("tbody", *rows)


def _frames(column: Column) -> Html | None:
    if column.labelled_frames is None:
        return None
    plural = "" if column.labelled_frames == 1 else "s"
    return element("small", f"{column.labelled_frames} frame{plural}")


def _score_cell(table: ScoreTable, method: str, column: Column) -> Html:
    score = table.score(method, column)
    if score is None:
        seeds = table.seeds(method, column)
        return element("td", "failed" if seeds else _NOTHING, class_="none")
    baseline = table.score(RANDOM_INIT, column)
    gain = None
    if baseline is not None and method != RANDOM_INIT:
        points = difference(score.mean, baseline.mean)
        sign = "up" if points > 0 else "down"
        gain = element("span", signed(points), class_=f"gain {sign}")
    spread = None if score.spread is None else element("small", f" ± {score.spread:.1f}")
    below = element("div", gain, _seed_count(method, score))
    return element("td", element("span", f"{score.mean:.1f}", class_="mean"), spread, below)


def _seed_count(method: str, score: Score) -> Html | None:
    if method in LOOK_UPS and score.count == 1:
        return None  # a look-up draws nothing at random
    count = f"{score.count} seed{'' if score.count == 1 else 's'}"
    return element("small", count + (f", {score.failed} failed" if score.failed else ""))


def class_table(rows: Sequence[ClassTableRow]) -> Html:
    """Classes x methods of one protocol and share of labels, best gain first.

    The gain is that of the first pretraining method over random init; without that baseline the
    classes are sorted by IoU.
    """
    methods = order_methods(row.method for row in rows)
    ordered = sorted(rows, key=lambda row: methods.index(row.method))
    main = ordered[0]
    baseline = next((row for row in ordered[1:] if row.method == RANDOM_INIT), None)
    highest = max((value for row in rows for value in row.iou if value is not None), default=0.0)
    scale = min(100, 10 * (int(10 * highest) + 1))
    columns = [
        element("th", "class", scope="col"),
        element("th", f"IoU from 0 to {scale}", scope="col", class_="wide"),
        element("th", "gain", scope="col") if baseline else None,
        *(element("th", row.method, scope="col") for row in ordered),
        element("th", "points", scope="col", class_="points"),
    ]
    ranks = {name: _gain(main, baseline, name) for name in main.names}
    names = sorted(main.names, key=lambda name: (ranks[name] is None, -(ranks[name] or 0.0)))
    body = [element("tr", *_class_cells(name, ordered, baseline, scale, methods)) for name in names]
    head = element("thead", element("tr", *columns))
    return scrollable(element("table", head, element("tbody", *body), class_="classes"))


def class_groups(rows: Sequence[ClassTableRow]) -> list[list[ClassTableRow]]:
    """Rows of one protocol and share of the labels together, in reading order."""
    order = list(Protocol)

    def key(row: ClassTableRow) -> tuple[int, float]:
        return order.index(row.protocol), -row.fraction

    return [list(group) for _, group in groupby(sorted(rows, key=key), key=key)]


def counted_classes(rows: Sequence[ClassTableRow]) -> str | None:
    """Where the 'nan' mIoU of rows that are compared averages over different classes.

    Returns:
        A warning that names them; None where all rows agree.
    """
    look_up = [row for row in rows if row.protocol is Protocol.LOOKUP]
    found = []
    for group in class_groups([row for row in rows if row.protocol is not Protocol.LOOKUP]):
        column = Column(group[0].protocol, group[0].fraction)
        compared = [*group, *(row for row in look_up if row.fraction == column.fraction)]
        if (counted := _counted(compared)) is not None:
            found.append(f"{column}: {counted}")
    if not found:
        return None
    return (
        "Not every row averages over the same classes: one without a labelled point counts, as 0, "
        "for the rows that predict it. A difference between such rows mixes classes. Classes "
        f"counted, over the seeds together: {'; '.join(found)}."
    )


def _counted(rows: Sequence[ClassTableRow]) -> str | None:
    counted = {
        row.method: {name for name, iou in zip(row.names, row.iou, strict=True) if iou is not None}
        for row in rows
    }
    named = dict.fromkeys(name for row in rows for name in row.names)
    some = [
        name for name in named if 0 < sum(name in one for one in counted.values()) < len(counted)
    ]
    if not some:
        return None
    numbers = ", ".join(f"{method} {len(counted[method])}" for method in order_methods(counted))
    return f"{numbers} (only some rows count {', '.join(some)})"


def _class_cells(
    name: str,
    rows: Sequence[ClassTableRow],
    baseline: ClassTableRow | None,
    scale: float,
    methods: Sequence[str],
) -> list[Html]:
    scores = [(row.method, _iou(row, name)) for row in rows]
    known = [(method, score) for method, score in scores if score is not None]
    marks = [
        element(
            "i",
            class_=series_class(method, methods),
            style=f"left:{100 * score / scale:.2f}%",
            title=f"{method}: {score:.1f}",
        )
        for method, score in reversed(known)
    ]
    low = min((score for _, score in known), default=0.0)
    high = max((score for _, score in known), default=0.0)
    span = f"left:{100 * low / scale:.2f}%;width:{100 * (high - low) / scale:.2f}%"
    track = element("span", element("b", style=span), *marks, class_="dumbbell")
    cells = [element("th", name, scope="row"), element("td", track, class_="wide")]
    if baseline is not None:
        gain = _gain(rows[0], baseline, name)
        sign = "none" if gain is None else "up" if gain > 0 else "down"
        text = _NOTHING if gain is None else signed(gain)
        cells.append(element("td", element("span", text, class_=f"gain {sign}")))
    cells += [element("td", _NOTHING if v is None else f"{v:.1f}") for _, v in scores]
    points = rows[0].gt_points[rows[0].names.index(name)]
    cells.append(
        element("td", f"{points:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"), class_="points")
    )
    return cells


def _gain(row: ClassTableRow, baseline: ClassTableRow | None, name: str) -> float | None:
    score = _iou(row, name)
    if baseline is None:
        return score
    reference = _iou(baseline, name)
    return None if score is None or reference is None else score - reference


def _iou(row: ClassTableRow, name: str) -> float | None:
    """IoU of a class in points; None when absent from the row or the test set."""
    value = row.iou[row.names.index(name)] if name in row.names else None
    return None if value is None else 100 * value
