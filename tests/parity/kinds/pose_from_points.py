"""Cases of the closed-form pose of points and image coordinates, and its gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidarssl.geometry.pnp import PnpSolution, epnp
from parity.case import Case

POSE, GRADIENT = 1e-6, 1e-4
"""Of float64, by the manifest: absolute, and relative."""
ROTATION_32, TRANSLATION_32 = 1e-2, 0.2
"""Of float32: the reference computes in it, this library does not."""


def recognises(case: Case) -> bool:
    poses = any(name.startswith("f64_") and name.endswith("_R") for name in case.array_names)
    return "efficient_pnp" in case.reference and "x" in case.array_names and poses


def check(case: Case) -> None:
    names = sorted(name[4:-2] for name in case.arrays if name[:4] == "f64_" and name[-2:] == "_R")
    assert names, "the case holds no pose"
    for name in names:
        _check_variant(case, name)


def _check_variant(case: Case, name: str) -> None:
    image, options = _arguments(case, name)
    wide = image.double().requires_grad_()
    solution = _solve(case, wide, options)
    _compare(case, f"f64_{name}", solution, POSE, POSE)
    if f"f64_{name}_grad_y" in case.arrays:
        _loss(solution).backward()
        expected = case.arrays[f"f64_{name}_grad_y"]
        assert wide.grad is not None
        np.testing.assert_allclose(
            wide.grad.numpy(), expected, rtol=GRADIENT, atol=1e-12 * np.abs(expected).max()
        )
    if f"f32_{name}_R" in case.arrays:
        narrow = _solve(case, image.float(), options)
        _compare(case, f"f32_{name}", narrow, ROTATION_32, TRANSLATION_32)


def _arguments(case: Case, name: str) -> tuple[Tensor, dict[str, Any]]:
    """Image coordinates and options of a variant such as ``noisy_w_skipquad``.

    What the manifest's arguments give one value only holds for every variant.
    """
    kind, *options = name.split("_")
    assert set(options) <= {"w", "skipquad"}, f"unknown options of {name}"
    assert f"y_{kind}" in case.arrays, f"no image coordinates of {name}"
    weighted = "w" in options or None not in _listed(case.args.get("weights"))
    skipped = "skipquad" in options or all(_listed(case.args.get("skip_quadratic_eq", False)))
    weights = torch.from_numpy(case.arrays["weights"]) if weighted else None
    return torch.from_numpy(case.arrays[f"y_{kind}"]), {
        "weights": weights,
        "quadratic": not skipped,
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _solve(case: Case, image: Tensor, options: dict[str, Any]) -> PnpSolution:
    points = torch.from_numpy(case.arrays["x"]).to(image.dtype)
    weights = options["weights"]
    options = {**options, "weights": None if weights is None else weights.to(image.dtype)}
    solution = epnp(points, image, signed=False, **options)
    assert bool(solution.valid.all())
    assert solution.rotation.dtype == image.dtype
    return solution


def _loss(solution: PnpSolution) -> Tensor:
    """Sum of arange(9) R^2 in the reference's convention of row vectors, plus that of T."""
    factors = torch.arange(9, dtype=torch.float64).view(3, 3)
    return (factors * solution.rotation.mT.square()).sum() + solution.translation.sum()


def _compare(
    case: Case, prefix: str, solution: PnpSolution, rotation: float, translation: float
) -> None:
    actual = {
        "R": (solution.rotation.mT, rotation),
        "T": (solution.translation, translation),
        "err2d": (solution.error_2d, rotation),
        "err3d": (solution.error_3d, rotation),
    }
    for key, (value, tolerance) in actual.items():
        if f"{prefix}_{key}" in case.arrays:
            np.testing.assert_allclose(
                value.detach().numpy(), case.arrays[f"{prefix}_{key}"],
                rtol=0, atol=tolerance, err_msg=f"{prefix}_{key}",
            )  # fmt: skip
