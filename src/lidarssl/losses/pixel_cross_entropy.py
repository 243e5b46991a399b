"""Cross-entropy of the pixels of images."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.distributed import all_reduce_sum

Average = Literal["labelled", "all"]


def pixel_cross_entropy(logits: Tensor, labels: Tensor, average: Average = "labelled") -> Tensor:
    """Cross-entropy over the labelled pixels of the whole batch, all processes together.

    Args:
        logits: (I, K, H, W) scores of the classes 1..K.
        labels: (I, H, W) int64 in 0..K, 0 = ignored.
        average: over the ``labelled`` pixels, or over ``all`` of them: ignored pixels then count
            in the denominator, as in mmsegmentation, and the loss is smaller by their share.

    Returns:
        Scalar, at least float32; 0 (with zero gradients) when no pixel has a label.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits, labels - 1, ignore_index=-1, reduction="sum")
    count = (labels > 0).sum() if average == "labelled" else labels.new_tensor(labels.numel())
    return all_reduce_sum(total) / all_reduce_sum(count).clamp(min=1)
