"""The curves of a training, what belongs together in one chart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lidarssl.report.charts import loss_curve
from lidarssl.report.markup import Html, element
from lidarssl.report.training_log import Curve, TrainingLog

HELD_OUT = "val_"
"""Before the name of a term that was measured on held-out frames."""

_BOTH_WAYS = {
    "image_to_lidar": "image finds scan",
    "lidar_to_image": "scan finds image",
    "chance": "chance",
    "image": "images",
    "lidar": "scans",
}
_RETRIEVAL = re.compile(rf"(recall@\d+|median_rank|uniformity)_({'|'.join(_BOTH_WAYS)})")
_ALWAYS_SHOWN = ("loss", "recall@1")
"""Charts that are not folded away."""


@dataclass
class Chart:
    """Curves that share their axes.

    Attributes:
        stage, term: what it shows.
        lines: name -> curve; a single one needs no name.
    """

    stage: str
    term: str
    lines: dict[str, Curve] = field(default_factory=dict)

    def figure(self) -> Html | None:
        """The chart and its legend; None where nothing is finite."""
        colors = line_colors(self.lines)
        drawn = loss_curve(
            {colors[name]: curve for name, curve in self.lines.items()},
            f"{self.term} of {self.stage}",
        )
        if drawn is None:
            return None
        caption = element("figcaption", element("b", self.stage), f" {self.term}")
        return element("figure", drawn, caption, _legend(colors))


def training_charts(log: TrainingLog) -> list[Chart]:
    """Every logged term, in order of appearance; one of held-out frames joins that of training."""
    charts: dict[tuple[str, str], Chart] = {}
    for stage, curves in log.stages.items():
        for name, curve in curves.items():
            term, line = _place(name)
            charts.setdefault((stage, term), Chart(stage, term)).lines[line] = curve
    return list(charts.values())


def curve_section(log: TrainingLog) -> list[Html]:
    """All charts: the losses and the first recall, the rest folded away."""
    shown: list[Html] = []
    folded: list[Html] = []
    for chart in training_charts(log):
        figure = chart.figure()
        if figure is not None:
            (shown if chart.term in _ALWAYS_SHOWN else folded).append(figure)
    parts: list[Html] = []
    if shown:
        parts.append(element("div", *shown, class_="columns"))
        note = "Line: mean of neighbouring steps; band: their range."
        parts.append(element("p", note, class_="small"))
    if folded:
        summary = element("summary", f"Other logged terms ({len(folded)})")
        parts.append(element("details", summary, element("div", *folded, class_="columns")))
    return parts


def line_colors(lines: Mapping[str, Curve]) -> dict[str, str]:
    """CSS class of each line; chance is grey."""
    colored = [name for name in lines if name != "chance"]
    return {name: "random" if name == "chance" else f"s{colored.index(name)}" for name in lines}


def _place(name: str) -> tuple[str, str]:
    """The chart and the line of a logged term."""
    term = name.removeprefix(HELD_OUT)
    found = _RETRIEVAL.fullmatch(term)
    if found is not None:
        return found[1], _BOTH_WAYS[found[2]]
    return term, "training" if term == name else "held out"


def _legend(colors: Mapping[str, str]) -> Html | None:
    if list(colors) == ["training"]:
        return None
    items = [element("li", element("i"), name, class_=color) for name, color in colors.items()]
    return element("ul", *items, class_="legend")
