"""InfoNCE between paired rows (van den Oord et al., 2018), the loss of PPKT and SLidR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of finding, for each anchor, its own candidate among all of them.

    One direction only: anchors are rows, candidates are columns of the logits
    ``anchors @ candidates.T / temperature``. Features are used as they are; normalise before.

    Args:
        anchors: (M, C).
        candidates: (M, C); row i belongs to anchor i, the other rows are its negatives.
        temperature: > 0.

    Returns:
        Scalar, at least float32; 0 (with zero gradients) when M is 0.

    Raises:
        ValueError: shapes differ, or the temperature is not positive.
    """
    if anchors.ndim != 2 or anchors.shape != candidates.shape:
        raise ValueError(
            f"anchors {tuple(anchors.shape)} and candidates {tuple(candidates.shape)} "
            "must have one shape (M, C)"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if anchors.shape[0] == 0:
        return anchors.sum() + candidates.sum()
    logits = anchors @ candidates.T / temperature
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, torch.arange(anchors.shape[0], device=anchors.device))
