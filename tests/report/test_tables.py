from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

from lidarssl.report.schema import LOOK_UP, RANDOM_INIT, ClassTableRow, EfficiencyRow, Protocol
from lidarssl.report.scores import ScoreTable
from lidarssl.report.tables import class_table, counted_classes, efficiency_table

ROWS = (
    EfficiencyRow("A", Protocol.PROBE, 0.5, (0.25, 0.29), 60),
    EfficiencyRow("B", Protocol.PROBE, 0.5, (None, None), 60),
    EfficiencyRow(RANDOM_INIT, Protocol.PROBE, 0.5, (0.1, 0.11, None), 60),
    EfficiencyRow(LOOK_UP, Protocol.LOOKUP, 0.5, (0.05,), 60),
    EfficiencyRow("A", Protocol.FINETUNE, 0.01, (0.2,), 1),
)
CAR, SIGN, POLE, BUS = "car", "sign", "pole", "bus"
NAMES = (CAR, SIGN, POLE, BUS)
OURS = ClassTableRow("A", Protocol.PROBE, 0.5, NAMES, (0.3, 0.1, 0.5, None), (10, 12345, 1, 0))
BASE = replace(OURS, method=RANDOM_INIT, iou=(0.1, 0.2, 0.2, None))


def cells(markup: str) -> list[list[str]]:
    """Text of every row's cells."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", markup)
    return [
        [
            unescape(re.sub(r"<[^>]+>", " ", cell)).split()
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        ]
        for row in rows
    ]


def test_efficiency_shows_mean_spread_gain_and_seeds() -> None:
    found = cells(efficiency_table([("", ScoreTable(ROWS))]))
    assert found[0][1:] == [["linear", "probe"], ["fine-tuning"]]
    assert found[1] == [["50", "%", "60", "frames"], ["1", "%", "1", "frame"]]
    assert found[2] == [
        ["A"],
        ["27.0", "±", "2.8", "+16.5", "2", "seeds"],
        ["20.0", "1", "seed"],
    ]
    assert found[3] == [["B"], ["failed"], ["–"]]
    assert found[4][1] == ["10.5", "±", "0.7", "2", "seeds,", "1", "failed"]
    assert found[5] == [["look-up"], ["5.0", "−5.5"], ["–"]]


def test_runs_share_the_columns_of_one_table() -> None:
    other = ScoreTable((EfficiencyRow("C", Protocol.PROBE, 0.1, (0.3,)),))
    found = cells(efficiency_table([("first", ScoreTable(ROWS)), ("second", other)]))
    assert found[1][0] == ["10", "%"]
    assert found[2] == [["first"]]
    assert found[-2:] == [[["second"]], [["C"], ["30.0", "1", "seed"], ["–"], ["–"]]]


def test_classes_are_sorted_by_gain_and_absent_ones_come_last() -> None:
    found = cells(class_table([BASE, OURS]))
    assert [row[0][0] for row in found[1:]] == [POLE, CAR, SIGN, BUS]
    assert found[1] == [[POLE], [], ["+30.0"], ["50.0"], ["20.0"], ["1"]]
    assert found[3] == [[SIGN], [], ["−10.0"], ["10.0"], ["20.0"], ["12", "345"]]
    assert found[4] == [[BUS], [], ["–"], ["–"], ["–"], ["0"]]


def test_without_a_baseline_classes_are_sorted_by_iou_and_there_is_no_gain() -> None:
    found = cells(class_table([OURS]))
    assert [row[0][0] for row in found[1:]] == [POLE, CAR, SIGN, BUS]
    assert all(len(row) == 4 for row in found)
    assert "gain" not in class_table([OURS])


def test_the_baseline_alone_is_a_table_too() -> None:
    assert [row[0][0] for row in cells(class_table([BASE]))[1:]] == [SIGN, POLE, CAR, BUS]


def test_a_class_that_only_one_row_names_is_a_dash_in_the_other() -> None:
    short = replace(BASE, names=(CAR,), iou=(0.1,), gt_points=(10,))
    found = {row[0][0]: row for row in cells(class_table([OURS, short]))[1:]}
    assert found[POLE][2:5] == [["–"], ["50.0"], ["–"]]
    assert found[CAR][2] == ["+20.0"]


def test_rows_that_average_over_the_same_classes_need_no_warning() -> None:
    assert counted_classes([OURS, BASE]) is None
    assert counted_classes([]) is None


def test_a_class_that_counts_for_one_row_only_is_named_with_the_numbers() -> None:
    predicted = replace(OURS, iou=(0.3, 0.1, 0.5, 0.0))
    text = counted_classes([BASE, predicted])
    assert text is not None
    assert "linear probe, 50\N{NO-BREAK SPACE}% of the labels: A 4, random init 3" in text
    assert "(only some rows count bus)" in text


def test_the_look_up_is_compared_within_its_share_of_the_labels_alone() -> None:
    look_up = replace(BASE, method=LOOK_UP, protocol=Protocol.LOOKUP, iou=(0.1, 0.1, None, None))
    text = counted_classes([OURS, BASE, look_up])
    assert text is not None
    assert "A 3, random init 3, look-up 2 (only some rows count pole)" in text
    assert counted_classes([OURS, BASE, replace(look_up, fraction=0.1)]) is None
    assert counted_classes([look_up]) is None
