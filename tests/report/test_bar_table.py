"""Bars are as long as their values say."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lidarssl.report.bar_table import BAR_END, BAR_START, MARGIN, ROW, WIDTH, BarRow, bar_table

RED = (1.0, 0.0, 0.0)


def drawn(rows: list[BarRow], longest: float, heads: tuple[str, ...] = ("a",)) -> np.ndarray:
    png = bar_table(heads, rows, longest)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def lengths(picture: np.ndarray, count: int) -> list[int]:
    """Red pixels in the middle of every row."""
    red = (picture[..., 0] > 200) & (picture[..., 1] < 60)
    return [int(red[MARGIN + ROW * (number + 1) + ROW // 2].sum()) for number in range(count)]


def test_bars_share_one_scale_from_zero() -> None:
    rows = [BarRow("x", RED, value, ("1",)) for value in (3.0, 12.0, 0.0, 6.0)]
    whole = BAR_END - BAR_START
    found = lengths(drawn(rows, 100.0), 4)
    assert found == pytest.approx([whole / 4, whole, 0, whole / 2], abs=2)


def test_a_bar_beyond_the_longest_is_cut_and_says_so() -> None:
    rows = [BarRow("x", RED, value, ()) for value in (1e7, 10.0, 5.0)]
    cut, full, half = lengths(drawn(rows, 10.0), 3)
    assert (full, half) == pytest.approx((BAR_END - BAR_START, (BAR_END - BAR_START) / 2), abs=2)
    assert full - cut == pytest.approx(6, abs=2)


def test_a_row_without_a_value_has_no_bar() -> None:
    rows = [BarRow("x", RED, None, ("not seen",)), BarRow("x", RED, 2.0, ("2",))]
    assert lengths(drawn(rows, 2.0), 2) == pytest.approx([0, BAR_END - BAR_START], abs=2)


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_every_row_fits(rows: int) -> None:
    made = [BarRow("a very long name of a class", RED, 1.0, ("1", "2", "3"))] * rows
    picture = drawn(made, 1.0, ("kappa", "weight", "agree"))
    assert picture.shape[:2] == (ROW * (rows + 1) + 2 * MARGIN, WIDTH)


def test_texts_do_not_touch_the_bars() -> None:
    """A wide name, a wide number and a long bar leave a gap on both sides of the bar."""
    row = BarRow("construction vehicle", RED, 1.0, ("3.2e+07", "0.0003", "100 %"))
    picture = drawn([row], 1.0, ("kappa", "weight", "agree"))[ROW + MARGIN + 4 : -MARGIN - 4]
    bright = picture.max(2).max(0) > 90
    assert not bright[BAR_START - 4 : BAR_START - 1].any()
    assert not bright[BAR_END + 2 : BAR_END + 5].any()
    assert not bright[:4].any()
    assert not bright[-4:].any()


def test_few_columns_end_at_the_right_border() -> None:
    row = BarRow("x", RED, 1.0, ("77",))
    one, three = drawn([row], 1.0, ("a",)), drawn([row], 1.0, ("a", "b", "c"))
    right = slice(WIDTH - 60, WIDTH)
    assert one[MARGIN + ROW :, right].max() > 200
    assert three[MARGIN + ROW + 4 :, right].max() < 90
