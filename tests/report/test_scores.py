from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.report.schema import LOOK_UP, RANDOM_INIT, EfficiencyRow, Protocol
from lidarssl.report.scores import (
    Evidence,
    Score,
    ScoreTable,
    evidence,
    merge_columns,
    order_methods,
    percent,
    signed,
    summarise,
)


def score(*seeds: float) -> Score:
    found = summarise(seeds)
    assert found is not None
    return found


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.integers(0, 3))
def test_summary_is_the_textbook_mean_and_sample_deviation(seeds: list[float], fails: int) -> None:
    found = summarise([*seeds, *[None] * fails])
    assert found is not None
    assert found.mean == pytest.approx(100 * statistics.mean(seeds))
    assert found.spread == pytest.approx(100 * statistics.stdev(seeds), abs=1e-5)
    assert (found.count, found.failed) == (len(seeds), fails)
    assert (found.low, found.high) == (100 * min(seeds), 100 * max(seeds))


def test_one_seed_has_no_spread_and_none_no_score() -> None:
    assert score(0.273).spread is None
    assert str(score(0.273)) == "27.3"
    assert str(score(0.2, 0.3)) == "25.0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}7.1"
    assert summarise([None]) is None
    assert summarise([]) is None


@pytest.mark.parametrize(
    ("method", "baseline", "deterministic", "expected"),
    [
        ((0.3, 0.31), (0.1, 0.2), False, Evidence.BETTER),
        ((0.3, 0.15), (0.1, 0.2), False, Evidence.UNSETTLED),
        ((0.3,), (0.1, 0.2), False, Evidence.UNSETTLED),
        ((0.3, 0.31), (0.2,), False, Evidence.UNSETTLED),
        ((0.3, 0.31), (0.2,), True, Evidence.BETTER),
        ((0.3,), (0.2,), True, Evidence.UNSETTLED),
        ((0.2, 0.2), (0.2, 0.2), False, Evidence.NOT_BETTER),
        ((0.1, 0.2), (0.2, 0.2), False, Evidence.NOT_BETTER),
    ],
)
def test_evidence(
    method: tuple[float, ...],
    baseline: tuple[float, ...],
    deterministic: bool,
    expected: Evidence,
) -> None:
    assert evidence(score(*method), score(*baseline), deterministic) is expected


def table() -> ScoreTable:
    return ScoreTable(
        (
            EfficiencyRow(LOOK_UP, Protocol.LOOKUP, 0.1, (0.2,), 12),
            EfficiencyRow(RANDOM_INIT, Protocol.FINETUNE, 0.1, (0.15,), 12),
            EfficiencyRow("A", Protocol.FINETUNE, 0.1, (0.3,), 12),
            EfficiencyRow("A", Protocol.FINETUNE, 0.01, (0.25,), 1),
            EfficiencyRow("A", Protocol.PROBE, 0.1, (0.22, None), 12),
        )
    )


def test_the_look_up_is_a_baseline_of_every_protocol_with_its_fraction() -> None:
    found = table()
    assert found.methods == ["A", RANDOM_INIT, LOOK_UP]
    assert [(c.protocol, c.fraction) for c in found.columns] == [
        (Protocol.PROBE, 0.1),
        (Protocol.FINETUNE, 0.01),
        (Protocol.FINETUNE, 0.1),
    ]
    probe, small, large = found.columns
    assert [found.score(LOOK_UP, column) is None for column in (probe, small, large)] == [
        False,
        True,
        False,
    ]
    assert found.seeds("A", probe) == (0.22, None)
    assert found.score("A", large) == score(0.3)
    assert found.pretrained(large) == ["A"]


def test_columns_of_several_tables_merge_once_each() -> None:
    only = ScoreTable((EfficiencyRow("B", Protocol.PROBE, 0.5, (0.2,), 60),))
    merged = merge_columns([table(), only, table()])
    assert [(c.protocol.value, c.fraction) for c in merged] == [
        ("probe", 0.1),
        ("probe", 0.5),
        ("finetune", 0.01),
        ("finetune", 0.1),
    ]


def test_small_text() -> None:
    shares = (0.001, 0.01, 0.25, 0.997, 1)
    assert [percent(share).replace("\N{NO-BREAK SPACE}", " ") for share in shares] == [
        "0.1 %",
        "1 %",
        "25 %",
        "100 %",
        "100 %",
    ]
    assert [signed(v) for v in (1.26, -1.26, 0.01, -0.01)] == ["+1.3", "−1.3", "±0.0", "±0.0"]
    assert order_methods([LOOK_UP, "B", RANDOM_INIT, "A", "B"]) == ["B", "A", RANDOM_INIT, LOOK_UP]
