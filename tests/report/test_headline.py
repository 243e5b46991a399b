from __future__ import annotations

import pytest

from lidarssl.report.headline import headline
from lidarssl.report.schema import (
    LOOK_UP,
    PIXEL_POSITION,
    RANDOM_INIT,
    EfficiencyRow,
    Protocol,
)
from lidarssl.report.scores import ScoreTable

LOW, MIDDLE, HIGH = (0.1, 0.11), (0.2, 0.21), (0.3, 0.31)
WIDE = (0.09, 0.35)


def say(
    rows: dict[str, tuple[float | None, ...]],
    look_up: float | None = None,
    finetune: dict[str, tuple[float | None, ...]] | None = None,
) -> ScoreTable:
    made = [EfficiencyRow(name, Protocol.PROBE, 0.5, seeds) for name, seeds in rows.items()]
    for name, seeds in (finetune or {}).items():
        made.append(EfficiencyRow(name, Protocol.FINETUNE, 0.1, seeds))
    if look_up is not None:
        made.append(EfficiencyRow(LOOK_UP, Protocol.LOOKUP, 0.5, (look_up,)))
    return ScoreTable(made)


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        (say({"A": HIGH, RANDOM_INIT: LOW}, 0.2), "Pretraining helped."),
        (say({"A": HIGH, RANDOM_INIT: LOW}), "Pretraining helped."),
        (
            say({"A": HIGH, RANDOM_INIT: LOW}, 0.4),
            "Pretraining helped, but not past a table look-up on height, range and intensity.",
        ),
        (
            say({"A": HIGH, "B": MIDDLE, RANDOM_INIT: LOW}, 0.25),
            "Pretraining helped, but only A beat a table look-up.",
        ),
        (say({"A": LOW, RANDOM_INIT: MIDDLE}, 0.05), "Pretraining did not help."),
        (say({"A": LOW, RANDOM_INIT: LOW}), "Pretraining did not help."),
        (
            say({"A": WIDE, RANDOM_INIT: LOW}),
            "Pretraining may have helped: the average is higher, the seeds do not settle it.",
        ),
        (
            say({"A": (0.3,), RANDOM_INIT: (0.1,)}),
            "In this one run pretraining helped, by 20.0 mIoU points.",
        ),
        (
            say({"A": (0.3,), RANDOM_INIT: (0.1,)}, 0.4),
            "In this one run pretraining helped, by 20.0 mIoU points, "
            "but not past a table look-up on height, range and intensity.",
        ),
        (
            say({"A": (0.3,), RANDOM_INIT: LOW}),
            "Pretraining may have helped: the average is higher, the seeds do not settle it.",
        ),
        (
            say({"A": HIGH, "B": LOW, "C": WIDE, "D": HIGH, RANDOM_INIT: MIDDLE}),
            "Pretraining helped with A and D, may have helped with C, did not help with B.",
        ),
        (
            say({"A": HIGH}, 0.2),
            "No verdict: there is no random-init baseline to compare with.",
        ),
        (say({RANDOM_INIT: LOW}, 0.2), "Nothing has been evaluated yet."),
        (say({"A": (None,), RANDOM_INIT: LOW}), "Nothing has been evaluated yet."),
        (ScoreTable(()), "Nothing has been evaluated yet."),
        (
            say({"A": HIGH, RANDOM_INIT: LOW}, 0.2, {"A": LOW, RANDOM_INIT: MIDDLE}),
            "Pretraining helped a linear probe, but fine-tuning does not show it.",
        ),
        (
            say({"A": HIGH, RANDOM_INIT: LOW}, 0.2, {"A": HIGH, RANDOM_INIT: MIDDLE}),
            "Pretraining helped.",
        ),
    ],
)
def test_the_verdict_claims_what_the_seeds_support(table: ScoreTable, verdict: str) -> None:
    assert headline(table).verdict == verdict


def test_the_numbers_name_protocol_share_and_both_baselines() -> None:
    said = headline(say({"A": (0.273,), RANDOM_INIT: (0.101,)}, 0.215))
    assert said.numbers.replace("\N{NO-BREAK SPACE}", " ") == (
        "Linear probe of the frozen features, 50 % of the labels: A 27.3 mIoU; "
        "random init 10.1; look-up 21.5."
    )
    assert any("One seed" in remark for remark in said.remarks)


def test_remarks_hedge_ranking_failures_missing_look_up_and_fine_tuning() -> None:
    rows = {"A": (0.3, 0.32, None), "B": (0.31, 0.33), RANDOM_INIT: LOW}
    remarks = headline(say(rows, None, {"A": WIDE, RANDOM_INIT: LOW})).remarks
    text = " ".join(remarks).replace("\N{NO-BREAK SPACE}", " ")
    assert "no ranking is claimed" in text
    assert "1 of the seeds behind these numbers failed" in text
    assert "No look-up baseline" in text
    assert "Fine-tuning, difference to random init with 10 % of the labels: A +11.5" in text
    assert "(within the noise)" in text


def test_a_clear_order_is_not_hedged() -> None:
    remarks = headline(say({"A": HIGH, "B": MIDDLE, RANDOM_INIT: LOW}, 0.15)).remarks
    assert remarks == ()


def test_the_probe_with_most_labels_and_a_baseline_decides() -> None:
    rows = (
        EfficiencyRow("A", Protocol.FINETUNE, 1.0, HIGH),
        EfficiencyRow(RANDOM_INIT, Protocol.FINETUNE, 1.0, LOW),
        EfficiencyRow("A", Protocol.PROBE, 0.1, HIGH),
        EfficiencyRow(RANDOM_INIT, Protocol.PROBE, 0.1, LOW),
        EfficiencyRow("A", Protocol.PROBE, 0.5, HIGH),
    )
    column = headline(ScoreTable(rows)).column
    assert column is not None
    assert (column.protocol, column.fraction) == (Protocol.PROBE, 0.1)
    column = headline(ScoreTable(rows[:2])).column
    assert column is not None
    assert column.protocol is Protocol.FINETUNE


def test_images_have_a_look_up_of_their_own() -> None:
    rows = {"A": HIGH, RANDOM_INIT: LOW}
    made = [EfficiencyRow(name, Protocol.PROBE, 0.5, seeds) for name, seeds in rows.items()]
    place = EfficiencyRow(PIXEL_POSITION, Protocol.LOOKUP, 0.5, (0.4,))
    said = headline(ScoreTable([place, *made]))
    assert said.verdict == (
        "Pretraining helped, but not past a table look-up on the place in the image."
    )
    assert "pixel position 40.0" in said.numbers
    assert not any("look-up" in remark for remark in said.remarks)
