from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lidarssl.report.axes import linear, nice_ticks, step_ticks

values = st.floats(-1e12, 1e12, allow_subnormal=False)


@given(values, values, st.integers(2, 8))
def test_ticks_enclose_the_range_evenly_and_are_few(a: float, b: float, count: int) -> None:
    low, high = sorted((a, b))
    ticks = nice_ticks(low, high, count)
    slack = 1e-6 * max(abs(low), abs(high), 1e-9)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert len(ticks) <= count + 2
    steps = [after - before for before, after in pairwise(ticks)]
    assert all(abs(step - steps[0]) <= 1e-6 * abs(ticks[-1] - ticks[0]) + 1e-12 for step in steps)


def test_ticks_are_round() -> None:
    assert nice_ticks(0, 27.2) == [0, 10, 20, 30]
    assert nice_ticks(0, 399) == [0, 100, 200, 300, 400]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_step_ticks_are_whole_steps_that_were_logged(a: int, b: int) -> None:
    first, last = sorted((a, b))
    ticks = step_ticks(first, last)
    assert ticks
    assert all(first <= tick <= last and tick == int(tick) for tick in ticks)


def test_steps_without_a_round_number_between_them_show_their_ends() -> None:
    assert step_ticks(4, 300) == [100, 200, 300]
    assert step_ticks(0, 399) == [0, 100, 200, 300]
    assert step_ticks(7, 7) == [7]


def test_a_scale_maps_its_ends_and_survives_an_empty_range() -> None:
    scale = linear(2.0, 4.0, 100.0, 0.0)
    assert (scale(2.0), scale(3.0), scale(4.0)) == (100.0, 50.0, 0.0)
    assert linear(3.0, 3.0, 5.0, 9.0)(3.0) == 5.0
