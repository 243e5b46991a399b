"""Cross-entropy + Lovász-softmax of the downstream protocols."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lidarssl.losses.segmentation import lovasz_softmax, segmentation_loss
from parity.case import Case


def _lovasz_only(logits: Tensor, labels: Tensor) -> Tensor:
    valid = labels != 0
    return lovasz_softmax(logits[valid].softmax(1), labels[valid])


VARIANTS = {
    "slidr_ignore0": lambda logits, labels: segmentation_loss(logits, labels),
    "slidr_ce_only": lambda logits, labels: segmentation_loss(logits, labels, lovasz=False),
    "lovasz_only_ignore0": _lovasz_only,
    "also_ce_plus_lovasz": lambda logits, labels: segmentation_loss(logits, labels),
    "scalr_ignore255": lambda logits, labels: segmentation_loss(logits, labels, ignore_index=255),
}


def recognises(case: Case) -> bool:
    arrays = set(case.manifest.get("arrays", {}))
    variants = {name.removeprefix("loss_") for name in arrays if name.startswith("loss_")}
    return "logits" in arrays and bool(variants) and variants <= set(VARIANTS)


def check(case: Case) -> None:
    for variant, loss_of in VARIANTS.items():
        if f"loss_{variant}" not in case.arrays:
            continue
        labels = case.arrays["labels_ignore255" if "255" in variant else "labels_ignore0"]
        logits = torch.from_numpy(case.arrays["logits"]).requires_grad_()
        loss = loss_of(logits, torch.from_numpy(labels).long())
        (gradient,) = torch.autograd.grad(loss, logits)
        expected = case.arrays[f"loss_{variant}"]
        np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-5, err_msg=variant)
        np.testing.assert_allclose(
            gradient.numpy(), case.arrays[f"grad_{variant}"], rtol=0, atol=1e-6, err_msg=variant
        )
