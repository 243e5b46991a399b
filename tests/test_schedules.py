from __future__ import annotations

import math

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
