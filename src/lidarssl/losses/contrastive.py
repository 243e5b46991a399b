"""InfoNCE between paired rows (van den Oord et al., 2018), the loss of PPKT and SLidR.

:func:`supervised_info_nce` is the variant of OLIVINE, where rows of one class are no negatives.
"""

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
    _check(anchors, candidates, temperature)
    if anchors.shape[0] == 0:
        return anchors.sum() + candidates.sum()
    logits = _logits(anchors, candidates, temperature)
    return F.cross_entropy(logits, torch.arange(anchors.shape[0], device=anchors.device))


def supervised_info_nce(
    anchors: Tensor, candidates: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Mean surprise of finding, for each anchor, any candidate of its class among all of them.

    ``-log(sum over candidates of the class of exp(s) / sum over all of exp(s))``, with ``s`` as
    in :func:`info_nce`: the positives are summed inside the logarithm, so an anchor needs one
    near candidate of its class, not all of them (OLIVINE, NeurIPS 2024).

    Args:
        anchors: (M, C).
        candidates: (M, C); row i belongs to anchor i.
        labels: (M,) int64, the class of row i of both.
        temperature: > 0.

    Returns:
        Scalar, at least float32; 0 (with zero gradients) when M is 0.

    Raises:
        ValueError: shapes differ, or the temperature is not positive.
    """
    _check(anchors, candidates, temperature)
    if labels.shape != anchors.shape[:1]:
        raise ValueError(
            f"labels {tuple(labels.shape)} must be one per anchor, ({anchors.shape[0]},)"
        )
    if anchors.shape[0] == 0:
        return anchors.sum() + candidates.sum()
    logits = _logits(anchors, candidates, temperature)
    positives = logits.masked_fill(labels[:, None] != labels, -torch.inf)
    return (logits.logsumexp(dim=1) - positives.logsumexp(dim=1)).mean()


def _check(anchors: Tensor, candidates: Tensor, temperature: float) -> None:
    if anchors.ndim != 2 or anchors.shape != candidates.shape:
        raise ValueError(
            f"anchors {tuple(anchors.shape)} and candidates {tuple(candidates.shape)} "
            "must have one shape (M, C)"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")


def _logits(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """(M, M) similarities over the temperature, at least float32."""
    logits = anchors @ candidates.T / temperature
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
