from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from lidarssl import schedules


def torch_curve(lr: float, steps: int, build) -> list[float]:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    scheduler, curve = build(optimizer), []
    for _ in range(steps):
        curve.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return curve


def test_slidr_anchors() -> None:
    expected = {0: 0.5, 1: 0.499507, 10: 0.452254, 25: 0.25, 40: 0.047746, 49: 0.000493}
    for epoch, lr in expected.items():
        assert schedules.cosine(epoch, 50, 0.5) == pytest.approx(lr, abs=5e-7)


def test_cosine_equals_torch() -> None:
    ours = [schedules.cosine(e, 20, 0.3, 0.01) for e in range(20)]
    theirs = torch_curve(0.3, 20, lambda o: lr_scheduler.CosineAnnealingLR(o, 20, 0.01))
    assert ours == pytest.approx(theirs, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    warmup=st.integers(1, 6),
    period=st.integers(1, 4),
    factor=st.integers(1, 3),
    start=st.floats(1e-4, 1),
)
def test_restarts_equal_torch(warmup: int, period: int, factor: int, start: float) -> None:
    def build(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        parts: list[lr_scheduler.LRScheduler] = [
            lr_scheduler.LinearLR(optimizer, start, total_iters=warmup),
            lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, factor, 1e-5),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, [warmup])

    ours = [
        schedules.warmup_restarts(
            e, warmup, 1e-3, start_factor=start, period=period, period_factor=factor, min_lr=1e-5
        )
        for e in range(40)
    ]
    assert ours == pytest.approx(torch_curve(1e-3, 40, build), rel=1e-9)


def test_clcp_anchors() -> None:
    anchors = {0: 1e-5, 4: 8.02e-4, 5: 1e-3, 6: 1e-3, 7: 5.05e-4, 9: 8.55e-4, 19: 4.77e-5, 36: 1e-3}
    for epoch, lr in anchors.items():
        found = schedules.warmup_restarts(
            epoch, 5, 1e-3, start_factor=1e-2, period=1, period_factor=2, min_lr=1e-5
        )
        assert found == pytest.approx(lr, rel=2e-3)


def test_warmup_cosine_goes_from_zero_to_lr_to_min() -> None:
    curve = [schedules.warmup_cosine(i, 10, 100, 2e-3, 1e-5) for i in range(101)]
    assert curve[0] == 0
    assert curve[5] == pytest.approx(1e-3)
    assert curve[10] == max(curve) == pytest.approx(2e-3)
    assert curve[55] == pytest.approx((2e-3 + 1e-5) / 2)
    assert curve[100] == pytest.approx(1e-5)


@pytest.mark.parametrize("total", [1000, 1019, 40, 20])
def test_published_peak_is_that_of_two_arrays(total: int) -> None:
    """NCLR joins a line with both ends to a cosine."""
    warmup, lr, final = total // 20, 1e-3, 1e-5
    turn = np.pi * np.arange(total - warmup) / (total - warmup)
    cosine = final + 0.5 * (lr - final) * (1 + np.cos(turn))
    expected = np.concatenate([np.linspace(0, lr, warmup), cosine])
    found = [
        schedules.warmup_cosine(i, warmup, total, lr, final, published_peak=True)
        for i in range(total)
    ]
    assert found == pytest.approx(expected.tolist(), rel=1e-12)


WARMUP, COOLDOWN, TOTAL, TIMESCALE = 10, 630, 650, 4.5


def inverse_sqrt_table(published: bool) -> np.ndarray:
    """The curve of ScaLR+ for 65 epochs of 10 iterations, part by part."""
    i = np.arange(TOTAL, dtype=np.float64)
    rise = i[:WARMUP] / WARMUP
    middle = (1 + (i[WARMUP : COOLDOWN + 1] - WARMUP) / TIMESCALE) ** -0.5
    m = TOTAL - COOLDOWN
    elapsed = COOLDOWN if published else COOLDOWN - WARMUP
    fall = (1 + elapsed / TIMESCALE) ** -0.5 * (m - (i[COOLDOWN + 1 :] - COOLDOWN) - 1) / (m - 1)
    return np.concatenate([rise, middle, fall])


@pytest.mark.parametrize("published", [False, True])
def test_inverse_sqrt_follows_its_formula(published: bool) -> None:
    found = [
        schedules.inverse_sqrt(
            i, WARMUP, COOLDOWN, TOTAL, 2e-3, timescale=TIMESCALE, published_jump=published
        )
        for i in range(TOTAL)
    ]
    np.testing.assert_allclose(found, 2e-3 * inverse_sqrt_table(published), rtol=1e-12, atol=1e-18)
    assert (found[0], found[WARMUP]) == (0, 2e-3)
    assert found[-1] == pytest.approx(0, abs=1e-18)
    assert found[COOLDOWN] / 2e-3 == pytest.approx(0.085, abs=5e-4)


@settings(max_examples=50, deadline=None)
@given(
    warmup=st.integers(0, 20),
    cooldown=st.integers(20, 80),
    timescale=st.floats(0.1, 100),
)
def test_inverse_sqrt_never_jumps(warmup: int, cooldown: int, timescale: float) -> None:
    """Between two steps it moves at most as far as the steepest of its three parts."""

    def rate(step: float) -> float:
        return schedules.inverse_sqrt(step, warmup, cooldown, 100, 1.0, timescale=timescale)

    steps = np.linspace(warmup, 105, 4001)
    rates = np.array([rate(step) for step in steps])
    steepest = max(0.5 / timescale, 1 / (99 - cooldown))
    assert np.diff(rates).max() <= 1e-12
    assert -np.diff(rates).min() <= steepest * (steps[1] - steps[0]) * 1.001
    assert rates.min() == 0


def test_inverse_sqrt_may_lack_any_of_its_parts() -> None:
    assert schedules.inverse_sqrt(0, 0, 10, 10, 1.0, timescale=5) == 1
    assert schedules.inverse_sqrt(9, 0, 10, 10, 1.0, timescale=3) == pytest.approx(0.5)
    assert schedules.inverse_sqrt(9, 0, 9, 10, 1.0, timescale=3) == pytest.approx(0.5)
    falling = [schedules.inverse_sqrt(i, 4, 0, 9, 1.0, timescale=1e9) for i in range(9)]
    assert falling == pytest.approx([0, 0.25, 0.5, 0.75, 0.5, 0.375, 0.25, 0.125, 0], abs=1e-6)


def test_no_warmup_is_a_cosine() -> None:
    for step in range(10):
        without = schedules.warmup_cosine(step, 0, 10, 1.0)
        assert without == schedules.cosine(step, 10, 1.0)


def test_warmup_may_last_the_whole_run() -> None:
    assert math.isfinite(schedules.warmup_cosine(10, 10, 10, 1.0))


def test_one_cycle_corners_and_middle() -> None:
    total, lr = 1000, 0.003
    first, peak, last = (schedules.one_cycle(s, total, lr) for s in (0, 400, total))
    assert first == pytest.approx((lr / 10, 0.95))
    assert peak == pytest.approx((lr, 0.85))
    assert last == pytest.approx((lr / 10 / 1e4, 0.95))
    rate, momentum = schedules.one_cycle(200, total, lr)
    assert rate == pytest.approx((lr / 10 + lr) / 2)
    assert momentum == pytest.approx(0.9)


def test_one_cycle_without_rise() -> None:
    assert schedules.one_cycle(0, 10, 1.0, warm_fraction=0.0) == pytest.approx((1.0, 0.85))


def test_step_decay_counts_milestones() -> None:
    curve = [schedules.step_decay(e, 1.0, [3, 5]) for e in range(7)]
    assert curve == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant() -> None:
    assert {schedules.constant(step, 1e-3) for step in range(5)} == {1e-3}
