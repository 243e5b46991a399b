"""OLIVINE's von Mises-Fisher prototypes: likelihoods, their gradients and the moving average.

The arrays ``t0_*``, ``t1_*``, ... are one distribution each. Two of its arrays are functions of the
reference that its training does not use and the library does not have; both are repeated here in
float32, whose overflows are part of them: ``prob``, a density, and ``bessel_series10``.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import torch
from scipy.special import gamma
from torch import Tensor

from lidarssl.losses.von_mises_fisher import (
    Bessel,
    ClassPrototypes,
    log_bessel,
    negative_log_likelihood,
)
from parity.case import Case

RTOL = 1e-4
LARGEST_FLOAT32_BESSEL = 88.0
"""I_0 of more than this is infinite in float32, and with it what the reference makes of it."""


def recognises(case: Case) -> bool:
    return (
        "VMFDistribution" in case.reference
        and "x" in case.array_names
        and ("kappas" in case.args or bool(_distributions(case)))
        and case.array_names >= {f"{name}_mu" for name in _distributions(case)}
    )


def check(case: Case) -> None:
    names = _distributions(case)
    assert names, "no distribution among the arrays"
    if "kappas" in case.args:
        kappas = [float(case.arrays[f"{name}_kappa"]) for name in names]
        np.testing.assert_allclose(kappas, case.args["kappas"], rtol=1e-6)
    for name in names:
        _check_likelihoods(case, name)
        _check_functions(case, name)
    if "ema_z0" in case.arrays:
        _check_average(case)


def _distributions(case: Case) -> list[str]:
    found = {match[1] for key in case.array_names if (match := re.match(r"(t\d+)_kappa$", key))}
    return sorted(found, key=lambda name: int(name[1:]))


def _inputs(case: Case, name: str) -> dict[str, Tensor]:
    """x, mu and kappa as float64 leaves; mu is not of unit length."""
    arrays = {"x": case.arrays["x"]} | {
        key: case.arrays[f"{name}_{key}"] for key in ("mu", "kappa")
    }
    return {
        key: torch.as_tensor(array, dtype=torch.float64).requires_grad_()
        for key, array in arrays.items()
    }


def _check_likelihoods(case: Case, name: str) -> None:
    """Each with the gradients that it lets through."""
    both: tuple[tuple[str, Bessel], ...] = (("", "order_zero"), ("_", "large_argument"))
    for suffix, bessel in both:
        leaves = _inputs(case, name)
        loss = negative_log_likelihood(leaves["x"], leaves["mu"], leaves["kappa"], bessel)
        _compare_with_gradients(case, f"{name}_kl_divergence{suffix}", loss, leaves)

    leaves = _inputs(case, name)
    x, mu, kappa = leaves.values()
    loss = negative_log_likelihood(x.detach(), mu, kappa, "large_argument")
    _compare_with_gradients(case, f"{name}_kl_divergence_stopx", loss, leaves)

    leaves = _inputs(case, name)
    x, mu, kappa = leaves.values()
    loss = negative_log_likelihood(x, mu.detach(), kappa.detach(), "order_zero")
    # The reference detaches the distribution everywhere but in the Bessel function.
    logarithm = log_bessel(0, kappa)
    loss = loss + logarithm - logarithm.detach()
    _compare_with_gradients(case, f"{name}_kl_divergence_stopvmf", loss, leaves)


def _check_functions(case: Case, name: str) -> None:
    leaves = _inputs(case, name)
    _compare(case, f"{name}_bessel_used", log_bessel(0, leaves["kappa"]).exp())
    kappa, channels = case.arrays[f"{name}_kappa"], case.arrays["x"].shape[1]
    if f"{name}_prob" in case.arrays:
        x = case.arrays["x"][: len(case.arrays[f"{name}_prob"])]
        _compare(case, f"{name}_prob", _density(x, case.arrays[f"{name}_mu"], kappa))
    _compare(case, f"{name}_bessel_series10", _bessel_series(channels / 2 - 1, kappa))


def _density(x: np.ndarray, mu: np.ndarray, kappa: np.ndarray) -> np.ndarray:
    """kappa^(p/2 - 1) exp(kappa x . mu) / ((2 pi)^(p/2) I), I by three terms for large kappa."""
    half = np.float32(x.shape[1] / 2)
    kappa, circle = np.float32(kappa), np.float32(2 * math.pi)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        bessel = np.exp(kappa) / np.sqrt(circle * kappa)
        bessel = bessel * (1 + 1 / (8 * kappa) + 9 / (128 * kappa**2))
        factor = kappa ** (half - 1) / (circle**half * bessel)
        return factor * np.exp(kappa * (x @ (mu / np.linalg.norm(mu))))


def _bessel_series(order: float, x: np.ndarray) -> np.ndarray:
    """Ten terms of the power series of I_order(x)."""
    total = np.float32(0)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for k in range(10):
            gammas = np.float32(math.factorial(k)) * np.float32(gamma(k + order + 1))
            total = total + (np.float32(x) / 2) ** np.float32(2 * k + order) / gammas
    return np.asarray(total)


def _check_average(case: Case) -> None:
    start = torch.from_numpy(case.arrays["ema_z0"])
    prototypes = ClassPrototypes(1, start.numel(), case.args["decay"], bias_correction=False)
    prototypes.mean[0] = start
    features = torch.from_numpy(case.arrays["ema_feats"])
    prototypes.update(features, torch.zeros(len(features), dtype=torch.int64))
    _compare(case, "ema_z1", prototypes.mean[0])
    _compare(case, "ema_mu", prototypes.directions()[0])
    _compare(case, "ema_kappa", prototypes.kappas()[0])


def _compare_with_gradients(case: Case, name: str, loss: Tensor, leaves: dict[str, Tensor]) -> None:
    if name not in case.arrays:
        return
    _compare(case, name, loss, float(leaves["kappa"].detach()))
    loss.backward()
    for key, leaf in leaves.items():
        wanted = f"{name}_grad_{key}"
        if wanted in case.arrays:
            assert leaf.grad is not None, wanted
            gradient = leaf.grad[: len(case.arrays[wanted])] if key == "x" else leaf.grad
            _compare(case, wanted, gradient, float(leaves["kappa"].detach()))
        else:
            assert leaf.grad is None, f"{name} has a gradient to {key}, that of the case has none"


def _compare(case: Case, name: str, actual: Any, kappa: float = 0.0) -> None:
    """To RTOL; not finite where the reference is not."""
    if name not in case.arrays:
        return
    expected = case.arrays[name]
    if isinstance(actual, Tensor):
        actual = actual.detach().numpy()
    if kappa > LARGEST_FLOAT32_BESSEL and not np.isfinite(expected).all():
        return
    np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected), err_msg=name)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=RTOL, err_msg=name)
