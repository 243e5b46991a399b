"""One vector per scan out of the features of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mean_of_frames(features: Tensor, batch: Tensor, batch_size: int) -> Tensor:
    """Mean over the tokens of each frame, (batch_size, C); 0 for a frame without any.

    Args:
        features: (T, C).
        batch: (T,) int64 frame index.
        batch_size: number of frames.
    """
    total = features.new_zeros(batch_size, features.shape[1]).index_add(0, batch, features)
    count = torch.bincount(batch, minlength=batch_size).clamp(min=1)
    return total / count[:, None]


class AttentionPool(nn.Module):
    """Weighted mean over the tokens of each frame, with weights from one learned query.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, 1, bias=False)

    def forward(self, features: Tensor, batch: Tensor, batch_size: int) -> Tensor:
        """As :func:`mean_of_frames`."""
        weights = softmax_of_frames(self.query(features)[:, 0], batch, batch_size)
        total = features.new_zeros(batch_size, features.shape[1])
        return total.index_add(0, batch, weights[:, None].to(features.dtype) * features)


def softmax_of_frames(scores: Tensor, batch: Tensor, batch_size: int) -> Tensor:
    """Softmax over the tokens of each frame, (T,) at least float32.

    Args:
        scores: (T,).
        batch: (T,) int64 frame index.
        batch_size: number of frames.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    highest = scores.new_full((batch_size,), -torch.inf).scatter_reduce(0, batch, scores, "amax")
    powers = (scores - highest.detach()[batch]).exp()
    total = powers.new_zeros(batch_size).index_add(0, batch, powers)
    return powers / total[batch]
