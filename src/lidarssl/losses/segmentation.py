"""Cross-entropy and Lovász-softmax (Berman et al., CVPR 2018) on rows of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 0,
    lovasz: bool = True,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, plus Lovász-softmax, over the rows that have a label.

    With ``ignore_index`` 0 this is the loss of SLidR and ALSO (the ignored class keeps its logit
    in the softmax), with 255 that of WaffleIron and ScaLR, without ``lovasz`` plain
    cross-entropy.

    Args:
        logits: (N, C), one row per point or voxel.
        labels: (N,) int64 in [0, C) or equal to ``ignore_index``.
        class_weights: (C,) weights of the cross-entropy, whose mean is then weighted too.

    Returns:
        Scalar, at least float32; 0 (with zero gradients) when no row has a label.
    """
    valid = labels != ignore_index
    logits, labels = logits[valid], labels[valid]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_probabilities = F.log_softmax(logits, dim=1)
    loss = weighted_nll(log_probabilities, labels, class_weights)
    if lovasz:
        loss = loss + lovasz_softmax(log_probabilities.exp(), labels)
    return loss


def weighted_nll(
    log_probabilities: Tensor, labels: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Mean of ``-log p[label]``, weighted by class; 0 when the weights of all rows sum to 0.

    Args:
        log_probabilities: (N, C).
        labels: (N,) int64 in [0, C).
        class_weights: (C,) or None for equal weights.
    """
    if class_weights is not None:
        class_weights = class_weights.to(log_probabilities)
    total = F.nll_loss(log_probabilities, labels, class_weights, reduction="sum")
    if class_weights is None:
        return total / max(labels.shape[0], 1)
    weight = class_weights[labels].sum()
    return total / torch.where(weight > 0, weight, 1.0)


def lovasz_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Lovász extension of 1 - IoU, averaged over the classes present in ``labels``.

    Args:
        probabilities: (N, C), rows sum to 1.
        labels: (N,) int64 in [0, C); no ignored row.

    Returns:
        Scalar; 0 (with zero gradients) when N is 0.
    """
    if labels.shape[0] == 0:
        return probabilities.sum()
    present = torch.unique(labels)
    foreground = labels[None, :] == present[:, None]
    chosen = probabilities.T[present]
    errors = torch.where(foreground, 1 - chosen, chosen)
    weights = _jaccard_weights(errors.detach(), foreground)
    return (errors * weights).sum() / present.shape[0]


def _jaccard_weights(errors: Tensor, foreground: Tensor) -> Tensor:
    """By how much each row raises the Jaccard loss when rows err in order of their error.

    With U = foreground + background rows so far and I = foreground rows not yet reached, a
    foreground row adds 1 / U and a background row I / (U (U - 1)): the differences of the paper
    in closed form, free of the cancellation between neighbouring 1 - I / U.

    Args:
        errors, foreground: (P, N), one row per class; every class has a foreground element.

    Returns:
        (P, N) in the order of ``errors``.
    """
    order = errors.argsort(dim=1, descending=True)
    ranked = foreground.gather(1, order)
    seen = ranked.cumsum(1)
    size = seen[:, -1:]
    position = torch.arange(1, errors.shape[1] + 1, device=errors.device)
    union = (size + position - seen).to(errors.dtype)
    left = (size - seen).to(errors.dtype)
    ranked_weights = torch.where(ranked, 1 / union, left / (union * (union - 1).clamp_min(1)))
    return torch.empty_like(ranked_weights).scatter_(1, order, ranked_weights)
