"""Boxes of detected objects: forms, overlap, and non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor


def corners_of(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom of boxes given as centre x, centre y, width, height."""
    centres, sizes = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair.

    Args:
        first: (N, 4) left, top, right, bottom.
        second: (M, 4).

    Returns:
        (N, M) in [0, 1]; 0 where both boxes have no area.
    """
    lower = torch.maximum(first[:, None, :2], second[None, :, :2])
    upper = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (upper - lower).clamp(min=0).prod(-1)
    union = _area(first)[:, None] + _area(second)[None] - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), 0)


def nms(boxes: Tensor, scores: Tensor, threshold: float, groups: Tensor | None = None) -> Tensor:
    """Greedy non-maximum suppression.

    The best box is kept and removes every box that overlaps it by more than ``threshold``, and so
    on with the best of what is left.

    Args:
        boxes: (N, 4) left, top, right, bottom.
        scores: (N,); of equal ones the first comes first.
        threshold: IoU above which the worse box goes.
        groups: (N,) int64, boxes of different groups do not see each other; None = one group.

    Returns:
        Indices of the kept boxes, best first.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    ranked = boxes[order]
    removes = box_iou(ranked, ranked) > threshold
    if groups is not None:
        removes &= groups[order][:, None] == groups[order][None]
    removes = removes.cpu()
    alive = torch.ones(len(order), dtype=torch.bool)
    for rank in range(len(order)):
        if alive[rank]:
            alive[rank + 1 :] &= ~removes[rank, rank + 1 :]
    return order[alive.to(order.device)]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
