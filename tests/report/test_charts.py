from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from lidarssl.report import charts
from lidarssl.report.schema import LOOK_UP, RANDOM_INIT, EfficiencyRow, Protocol
from lidarssl.report.scores import ScoreTable
from lidarssl.report.training_log import Curve

TABLE = ScoreTable(
    (
        EfficiencyRow("A", Protocol.PROBE, 0.01, (0.1, 0.2)),
        EfficiencyRow("A", Protocol.PROBE, 0.1, (0.3, None)),
        EfficiencyRow(RANDOM_INIT, Protocol.PROBE, 0.1, (0.05,)),
        EfficiencyRow("A", Protocol.FINETUNE, 0.1, (0.4,)),
    )
)


def parse(markup: str | None) -> ElementTree.Element:
    assert markup is not None
    return ElementTree.fromstring(markup)


def with_class(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [one for one in root.iter() if name in (one.get("class") or "").split()]


def test_label_efficiency_has_a_mean_per_score_and_bars_where_there_is_a_spread() -> None:
    root = parse(charts.label_efficiency(TABLE, Protocol.PROBE))
    assert len(with_class(root, "mean")) == 3
    assert len(with_class(root, "error")) == 1
    assert len(with_class(root, "seed")) == 4
    assert len(with_class(root, "line")) == 1
    low, high, random_init = (float(dot.get("cy", "")) for dot in with_class(root, "mean"))
    assert high < low < random_init, "a higher score is drawn higher"
    assert float(with_class(root, "mean")[0].get("cx", "")) < float(
        with_class(root, "mean")[1].get("cx", "")
    )


def test_one_share_of_labels_makes_no_curve() -> None:
    assert charts.label_efficiency(TABLE, Protocol.FINETUNE) is None


def test_bars_are_in_proportion() -> None:
    root = parse(charts.score_bars(TABLE, TABLE.columns[1]))
    styles = [one.get("style", "") for one in root.iter("b")]
    widths = [float(re.sub(r"[^\d.]", "", style)) for style in styles]
    assert widths[0] / widths[1] == pytest.approx(0.3 / 0.05, rel=1e-3)
    assert [one.text for one in with_class(root, "value")] == ["30.0", "5.0"]


def test_series_colors_are_stable_and_baselines_fixed() -> None:
    methods = ["A", "B", RANDOM_INIT, LOOK_UP]
    assert [charts.series_class(m, methods) for m in methods] == ["s0", "s1", "random", "lookup"]


def test_a_loss_curve_spans_its_steps_and_falls() -> None:
    curve = Curve(list(range(1000)), [5 * math.exp(-s / 200) for s in range(1000)])
    root = parse(charts.loss_curve({"s0": curve}, "loss"))
    (line,) = with_class(root, "line")
    numbers = [float(n) for n in re.findall(r"[\d.]+", line.get("d", ""))]
    xs, ys = numbers[::2], numbers[1::2]
    assert len(xs) <= charts.MAX_BINS
    assert xs == sorted(xs)
    assert ys == sorted(ys), "SVG y grows downwards, so a falling loss has growing y"
    assert xs[-1] - xs[0] > 350


def test_every_step_on_the_axis_lies_inside_the_plot() -> None:
    """Logging every fourth step begins at 4; a resumed run far later."""
    for steps in (range(4, 40, 4), range(10001, 10400, 4)):
        curve = Curve(list(steps), [1.0 + s for s in steps])
        root = parse(charts.loss_curve({"s0": curve}, "loss"))
        ticks = [
            one for one in root.iter("text") if one.get("text-anchor") == "middle" and one.text
        ]
        numbers = [one for one in ticks if one.text and one.text.isdecimal()]
        assert len(numbers) >= 2
        assert all(42 <= float(one.get("x", "")) <= 446 for one in numbers)
        assert all(steps[0] <= int(one.text or "") <= steps[-1] for one in numbers)


def test_steps_without_a_finite_value_leave_a_gap() -> None:
    values = [1.0, 0.9, math.nan, math.inf, 0.7, 0.6]
    root = parse(charts.loss_curve({"s0": Curve(list(range(6)), values)}, "loss"))
    assert len(with_class(root, "line")) == 2
    assert "nan" not in ElementTree.tostring(root, "unicode").lower()
    assert charts.loss_curve({"s0": Curve([0, 1], [math.nan, math.inf])}, "loss") is None


def test_curves_of_one_chart_share_its_axes_and_keep_their_colours() -> None:
    rising, flat = Curve([0, 50, 100], [0.0, 1.0, 2.0]), Curve([50, 100], [2.0, 2.0])
    nothing = Curve([0], [math.nan])
    root = parse(charts.loss_curve({"s0": rising, "random": flat, "s1": nothing}, "recall"))
    first, second = with_class(root, "line")
    points = [
        [tuple(map(float, pair.split())) for pair in re.split("[ML]", line.get("d", ""))[1:]]
        for line in (first, second)
    ]
    assert points[0][1:] == [(points[1][0][0], points[0][1][1]), points[1][1]]
    assert [one.get("class") for one in root.iter("g")] == ["s0", "random"]


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e300, -1e300], [1e-300, 0.0], [5.0] * 3])
def test_degenerate_curves_draw_finite_numbers(values: list[float]) -> None:
    markup = charts.loss_curve({"s0": Curve(list(range(len(values))), values)}, "loss")
    assert markup is not None
    assert not re.search(r'"[^"]*\b(nan|inf)\b', markup)


def test_a_confusion_row_shows_shares() -> None:
    root = parse(charts.confusion(["car", "road", "sign"], [[3, 1, 0], [0, 10, 0], [0, 0, 0]]))
    assert len(with_class(root, "empty")) == 9
    titles = [one.text for one in root.iter("title")]
    assert titles == ["car seen as car: 75%", "car seen as road: 25%", "road seen as road: 100%"]
    assert len(with_class(root, "hit")) == 2
    assert len(with_class(root, "miss")) == 1
