"""PPKT's point-to-pixel and SLidR's superpixel InfoNCE."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidarssl.frame import Matches
from lidarssl.losses.contrastive import info_nce
from lidarssl.losses.superpixels import pool_superpixels
from parity.case import Case

INPUTS = {"point_feats", "image_feats", "pairing_points", "pairing_images"}


def recognises(case: Case) -> bool:
    arrays = set(case.manifest.get("arrays", {}))
    return (
        "NCELoss" in case.reference
        and "loss_superpixels_average" in case.reference
        and arrays >= INPUTS
        and bool(arrays & {"loss_ppkt", "loss_superpixel"})
    )


def check(case: Case) -> None:
    if "loss_ppkt" in case.arrays:
        _check_ppkt(case)
    if "loss_superpixel" in case.arrays:
        _check_superpixels(case)


def _inputs(case: Case) -> tuple[Tensor, Tensor, Matches]:
    points = torch.from_numpy(case.arrays["point_feats"]).requires_grad_()
    images = torch.from_numpy(case.arrays["image_feats"]).requires_grad_()
    image, row, col = torch.from_numpy(case.arrays["pairing_images"]).long().T
    point = torch.from_numpy(case.arrays["pairing_points"]).long()
    return points, images, Matches(point, image, row, col)


def _check_ppkt(case: Case) -> None:
    points, images, matches = _inputs(case)
    chosen = matches[torch.from_numpy(case.arrays["idx"]).long()]
    loss = info_nce(
        points[chosen.point],
        images[chosen.image, :, chosen.row, chosen.col],
        case.args["temperature"],
    )
    loss.backward()
    _compare(case, "loss_ppkt", loss)
    _compare(case, "grad_ppkt_points", points.grad)
    _compare(case, "grad_ppkt_image", images.grad)


def _check_superpixels(case: Case) -> None:
    points, images, matches = _inputs(case)
    superpixels = torch.from_numpy(case.arrays["superpixels"]).long()
    pooled = pool_superpixels(
        points[matches.point], matches, images, superpixels, case.args["superpixel_size"]
    )
    loss = info_nce(pooled.points, pooled.pixels, case.args["temperature"])
    loss.backward()
    np.testing.assert_array_equal(pooled.kept.numpy(), case.arrays["kept"])
    _compare(case, "loss_superpixel", loss)
    _compare(case, "pooled_k", pooled.points)
    _compare(case, "pooled_q", pooled.pixels)
    _compare(case, "grad_sp_points", points.grad)
    _compare(case, "grad_sp_image", images.grad)


def _compare(case: Case, name: str, actual: Tensor | None) -> None:
    """Losses rtol 1e-5; everything else atol 1e-6 + rtol 1e-4, as the manifest says."""
    assert actual is not None
    tolerance: dict[str, Any] = (
        {"rtol": 1e-5} if name.startswith("loss") else {"atol": 1e-6, "rtol": 1e-4}
    )
    np.testing.assert_allclose(
        actual.detach().numpy(), case.arrays[name], err_msg=name, **tolerance
    )
