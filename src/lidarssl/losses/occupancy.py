"""Losses of occupancy and intensity over pairs of a query and a support.

Source: Boulch et al., "ALSO: Automotive Lidar Self-supervision by Occupancy estimation",
CVPR 2023, equations 2 and 3. Every pair is a prediction of its own; sums are returned, so that
several processes can share one mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def occupancy_sum(logits: Tensor, occupancy: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy.

    Args:
        logits: (P,).
        occupancy: (P,) 1 = occupied, 0 = free.

    Returns:
        Its sum, at least float32, and the number of pairs.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.binary_cross_entropy_with_logits(logits, occupancy.to(logits.dtype), reduction="sum")
    return loss, loss.new_tensor(float(logits.shape[0]))


def intensity_sum(predicted: Tensor, intensity: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute error where the query has an intensity.

    Args:
        predicted: (P,).
        intensity: (P,), negative = no target.

    Returns:
        Its sum, at least float32, and the number of pairs with a target.
    """
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    known = intensity >= 0
    error = (predicted - intensity.to(predicted.dtype)).abs()
    return (error * known).sum(), known.sum().to(predicted.dtype)


def occupancy_confusion(logits: Tensor, occupancy: Tensor) -> Tensor:
    """(2, 2) float64 counts of pairs, rows truth (free, occupied), columns prediction.

    Args:
        logits: (P,), occupied when positive.
        occupancy: (P,) 1 or 0.
    """
    cell = 2 * occupancy.long() + (logits > 0).long()
    return torch.bincount(cell, minlength=4).view(2, 2).double()


def occupancy_iou(confusion: Tensor) -> Tensor:
    """IoU of free and occupied, (2,); a class that is neither true nor predicted counts as 1.

    Args:
        confusion: of ``occupancy_confusion``.
    """
    hits = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hits
    return torch.where(union > 0, hits / union.clamp(min=1), torch.ones_like(hits))
