"""Learning-rate curves of the reference trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lidarssl import schedules
from parity.case import Case


def _scalr(case: Case, args: dict[str, Any]) -> tuple[list[Any], str]:
    curve = [
        schedules.warmup_cosine(
            int(step), args["warmup_end"], args["max_iter"], args["lr"], args["min_lr"]
        )
        for step in case.arrays["scalr_iters"]
    ]
    return curve, "scalr_lr"


def _clcp(case: Case, args: dict[str, Any]) -> tuple[list[Any], str]:
    curve = [
        schedules.warmup_restarts(
            epoch,
            args["total_iters"],
            args["lr"],
            start_factor=args["start_factor"],
            period=args["T_0"],
            period_factor=args["T_mult"],
            min_lr=args["eta_min"],
        )
        for epoch in range(len(case.arrays["clcp_lr_per_epoch"]))
    ]
    return curve, "clcp_lr_per_epoch"


def _slidr(case: Case, args: dict[str, Any]) -> tuple[list[Any], str]:
    epochs = range(len(case.arrays["slidr_lr_per_epoch"]))
    return [schedules.cosine(e, args["T_max"], args["lr"]) for e in epochs], "slidr_lr_per_epoch"


def _pcdet(case: Case, args: dict[str, Any]) -> tuple[list[Any], str]:
    curve = [
        schedules.one_cycle(
            int(step),
            args["total_steps"],
            args["lr"],
            momenta=tuple(args["moms"]),
            div_factor=args["div_factor"],
            warm_fraction=args["pct_start"],
        )
        for step in case.arrays["pcdet_steps"]
    ]
    return curve, "pcdet_lr_mom"


CURVES: dict[str, Callable[[Case, dict[str, Any]], tuple[list[Any], str]]] = {
    "scalr": _scalr,
    "clcp": _clcp,
    "slidr": _slidr,
    "pcdet": _pcdet,
}


def recognises(case: Case) -> bool:
    return (
        "CosineAnnealingLR" in case.reference and bool(case.args) and set(case.args) <= set(CURVES)
    )


def check(case: Case) -> None:
    for name, args in case.args.items():
        actual, array = CURVES[name](case, args)
        expected = case.arrays[array]
        # A rate that should be 0 is a float64 rounding of the largest rate.
        rounding = 1e-15 * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=rounding, err_msg=name)
