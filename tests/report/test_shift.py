"""Scores under other weather: the file, the tables, the charts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lidarssl.errors import DataError
from lidarssl.report.build import build_report
from lidarssl.report.run_folder import read_run
from lidarssl.report.schema import RANDOM_INIT
from lidarssl.report.shift import (
    SHIFT_FILE,
    ConditionGain,
    ConditionScore,
    Estimate,
    MethodGain,
    MethodScores,
    ShiftResults,
)
from lidarssl.report.shift_section import shift_content


def score(name: str, value: float, relative: float | None) -> ConditionScore:
    return ConditionScore(
        name,
        1 if name == "night" else 40,
        Estimate(value, value - 0.02, value + 0.04, 0.01),
        None if relative is None else Estimate(relative, relative - 0.1, relative + 0.1),
        (value - 0.01, value + 0.01),
        (value, None),
    )


def method(name: str, clear: float, night: float) -> MethodScores:
    conditions = (score("clear", clear, None), score("night", night, night / clear))
    return MethodScores(name, (f"{name}_0", f"{name}_1"), (0, 1), conditions)


GAIN = MethodGain(
    "clcp",
    RANDOM_INIT,
    "seeds 0, 1",
    (
        ConditionGain("clear", Estimate(0.1, 0.05, 0.15, 0.02), None),
        ConditionGain("night", Estimate(-0.05, -0.1, 0.01, 0.02), Estimate(None)),
    ),
)
RESULTS = ShiftResults(
    "cityscapes/val",
    "acdc/val",
    "mIoU",
    "lidarssl evaluate A B --shift acdc",
    ("road", "sky"),
    ("Relative: mIoU divided by that of the source.",),
    (method("clcp", 0.5, 0.3), method(RANDOM_INIT, 0.4, 0.1)),
    (GAIN,),
)


def parts(root: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [one for one in root.iter() if name in (one.get("class") or "").split()]


def content(results: ShiftResults) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{shift_content(results)}</div>")


def test_it_reads_back_equal(tmp_path: Path) -> None:
    RESULTS.save(tmp_path)
    assert ShiftResults.load(tmp_path) == RESULTS
    assert RESULTS.conditions == ("clear", "night")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="holds no method"):
        replace(RESULTS, methods=())
    other = MethodScores("x", ("x",), (0,), (score("clear", 0.4, None),))
    with pytest.raises(DataError, match="differ in their conditions"):
        replace(RESULTS, methods=(RESULTS.methods[0], other))
    with pytest.raises(DataError, match="is nan"):
        Estimate(math.nan)


def test_dots_and_error_bars_stand_where_the_numbers_are() -> None:
    """Both ends and the value of a bar are on one linear scale, read from the grid's own ticks."""
    chart, relative = parts(content(RESULTS), "chart")
    assert (len(parts(chart, "mean")), len(parts(chart, "error"))) == (4, 12)
    assert (len(parts(relative, "mean")), len(parts(relative, "error"))) == (2, 6)
    grid = [float(line.get("y1", "")) for line in parts(chart, "grid")]
    ticks = [
        float(text.text or "") for text in chart.iter("text") if text.get("text-anchor") == "end"
    ]
    slope = (grid[-1] - grid[0]) / (ticks[-1] - ticks[0])

    def at(value: float) -> float:
        return grid[0] + slope * (100 * value - ticks[0])

    expected = {0.5: (0.48, 0.54), 0.3: (0.28, 0.34), 0.4: (0.38, 0.44), 0.1: (0.08, 0.14)}
    for group in parts(chart, "s0") + parts(chart, "random"):
        (dot,) = parts(group, "mean")
        bar = parts(group, "error")[0]
        value = min(expected, key=lambda one: abs(at(one) - float(dot.get("cy", ""))))
        assert float(dot.get("cy", "")) == pytest.approx(at(value), abs=0.02)
        low, high = expected.pop(value)
        assert float(bar.get("y1", "")) == pytest.approx(at(low), abs=0.02)
        assert float(bar.get("y2", "")) == pytest.approx(at(high), abs=0.02)
        assert bar.get("x1") == dot.get("cx")
    assert not expected


def test_tables_show_every_number_with_its_interval() -> None:
    page = shift_content(RESULTS)
    text = re.sub(r"<[^>]+>", " ", page)
    for shown in (
        "50.0", "48.0 to 54.0", "± 1.0", "0.60", "0.50 to 0.70", "+10.0", "+5.0 to +15.0",
        "\N{MINUS SIGN}5.0", "2 runs", "40 frames", "1 frame ", "seeds 0, 1",
        "lidarssl evaluate A B --shift acdc", "divided by that of the source",
    ):  # fmt: skip
        assert shown in text, shown


def test_without_relative_numbers_there_is_one_chart() -> None:
    one = ShiftResults(
        "a", "b", "mIoU", "", (), (), (MethodScores("x", ("x",), (0,), (score("a", 0.2, None),)),)
    )
    assert len(parts(content(one), "chart")) == 1
    nothing = replace(score("a", 0.2, None), miou=Estimate(None))
    empty = replace(one, methods=(MethodScores("x", ("x",), (0,), (nothing,)),))
    assert not parts(content(empty), "chart")


def test_the_page_has_the_section_and_a_damaged_file_is_told(make_run: Callable[..., Path]) -> None:
    run = make_run()
    assert "Under other weather" not in build_report(run).read_text()
    RESULTS.save(run)
    assert "Under other weather and light" in build_report(run).read_text()
    file = json.loads((run / SHIFT_FILE).read_text())
    file["methods"][0]["seeds"] = ["a"]
    (run / SHIFT_FILE).write_text(json.dumps(file))
    assert read_run(run).shift is None
    page = build_report(run).read_text()
    assert "methods[0].seeds[0]: expected a int" in page
    assert "Under other weather and light" not in page
