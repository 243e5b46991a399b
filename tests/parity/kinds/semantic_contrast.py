"""OLIVINE's semantic contrast: weights of the sampling, loss and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidarssl.frame import Matches
from lidarssl.losses.balanced_sampling import (
    balanced_weights,
    bandwidth,
    range_bins,
    range_density,
)
from lidarssl.losses.contrastive import supervised_info_nce
from parity.case import Case

INPUTS = {
    "point_feats",
    "image_feats",
    "pairing_points",
    "pairing_images",
    "pairing_labels",
    "idx",
    "loss_supcon",
}


def recognises(case: Case) -> bool:
    return (
        "SupConLoss" in case.reference
        and case.array_names >= INPUTS
        and bool(case.array_names & {"coords", "points"})
    )


def check(case: Case) -> None:
    _check_sampling(case)
    _check_loss(case)


def _bins(case: Case) -> Tensor:
    """Rings of the matched points: of cylindrical voxels, or of points in whole metres."""
    point = case.arrays["pairing_points"].astype(np.int64)
    if "coords" in case.arrays:
        return torch.from_numpy(case.arrays["coords"][point, 1]).long()
    # The last three of [batch, x, y, z].
    return range_bins(torch.from_numpy(case.arrays["points"][point, -3:]), 1.0, "round")


def _check_sampling(case: Case) -> None:
    bins = _bins(case)
    labels = torch.from_numpy(case.arrays["pairing_labels"]).long()
    np.testing.assert_array_equal(bins.numpy(), case.arrays["rho"])
    _compare(case, "bandwidth", bandwidth(bins), rtol=1e-4)
    _compare(case, "density", range_density(bins), rtol=1e-4)
    _compare(case, "probabilities", balanced_weights(bins, labels), rtol=1e-4)


def _check_loss(case: Case) -> None:
    points = torch.from_numpy(case.arrays["point_feats"]).requires_grad_()
    images = torch.from_numpy(case.arrays["image_feats"]).requires_grad_()
    image, row, col = torch.from_numpy(case.arrays["pairing_images"]).long().T
    point = torch.from_numpy(case.arrays["pairing_points"]).long()
    drawn = torch.from_numpy(case.arrays["idx"]).long()
    chosen = Matches(point, image, row, col)[drawn]
    loss = supervised_info_nce(
        points[chosen.point],
        images[chosen.image, :, chosen.row, chosen.col],
        torch.from_numpy(case.arrays["pairing_labels"]).long()[drawn],
        case.args["temperature"],
    )
    loss.backward()
    _compare(case, "loss_supcon", loss, rtol=1e-5)
    _compare(case, "grad_points", points.grad, atol=1e-6, rtol=1e-4)
    _compare(case, "grad_image", images.grad, atol=1e-6, rtol=1e-4)


def _compare(case: Case, name: str, actual: Tensor | None, **tolerance: Any) -> None:
    """Tolerances as the manifest says."""
    assert actual is not None
    np.testing.assert_allclose(
        actual.detach().numpy(), case.arrays[name], err_msg=name, **tolerance
    )
