"""Losses of NCLR: smooth L1 on rotation and translation, and cross-entropy of the overlap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.distributed import all_reduce_sum


def pose_sum(
    rotation: Tensor,
    translation: Tensor,
    true_rotation: Tensor,
    true_translation: Tensor,
    valid: Tensor,
    translation_weight: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Sum over poses of the mean smooth L1 (beta 1) of their elements.

    Args:
        rotation, true_rotation: (B, 3, 3).
        translation, true_translation: (B, 3) m.
        valid: (B,) bool, poses that count.
        translation_weight: of the translation's mean beside the rotation's.

    Returns:
        Scalar sum, and scalar number of poses; their ratio is the published loss.
    """
    turned = F.smooth_l1_loss(rotation, true_rotation, reduction="none").mean((1, 2))
    moved = F.smooth_l1_loss(translation, true_translation, reduction="none").mean(1)
    each = turned + translation_weight * moved
    return torch.where(valid, each, 0).sum(), valid.sum().to(each.dtype)


def mean_cross_entropy(*parts: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Mean binary cross-entropy of (N,) logits and (N,) bool over all processes, for each part."""
    sums = []
    for logits, truth in parts:
        each = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="sum")
        sums += [each, each.new_tensor(float(len(logits)))]
    totals = all_reduce_sum(torch.stack(sums))
    return [total / count.detach().clamp(min=1) for total, count in totals.view(-1, 2)]
