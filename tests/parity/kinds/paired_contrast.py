"""CLCP's InfoNCE in both directions, with its learned log temperature."""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F

from lidarssl.losses.paired_contrast import paired_contrast
from parity.case import Case

INPUTS = {"image_emb", "lidar_emb", "loss", "grad_image", "grad_lidar", "grad_temperature"}


def recognises(case: Case) -> bool:
    return set(case.manifest.get("arrays", {})) >= INPUTS and "temperature_init" in case.args


def check(case: Case) -> None:
    image, lidar = (
        torch.from_numpy(case.arrays[name]).requires_grad_() for name in ("image_emb", "lidar_emb")
    )
    log_temperature = torch.tensor(case.args["temperature_init"], requires_grad=True)
    loss = paired_contrast(
        F.normalize(image, dim=1), F.normalize(lidar, dim=1), (-log_temperature).exp()
    )
    loss.backward()
    _compare(case, "loss", loss, "loss")
    _compare(case, "grad_image", image.grad, "grads")
    _compare(case, "grad_lidar", lidar.grad, "grads")
    _compare(case, "grad_temperature", log_temperature.grad, "grads")


def _compare(case: Case, name: str, actual: torch.Tensor | None, rule: str) -> None:
    assert actual is not None
    said = case.manifest["tolerance"][rule]
    allowed = {kind: float(value) for kind, value in re.findall(r"([ar]tol) ([\de.-]+)", said)}
    np.testing.assert_allclose(
        actual.detach().numpy(), case.arrays[name],
        rtol=allowed.get("rtol", 0), atol=allowed.get("atol", 0), err_msg=name,
    )  # fmt: skip
