"""Distillation of image features into points.

Source: Puy et al., "Three Pillars improving Vision Foundation Model Distillation for Lidar",
CVPR 2024, section 3, in the form of its code: the distance itself, not its square and not a
cosine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Values of a chunk: on a CPU as many as stay in its cache.
_VALUES = {"cpu": 2**18}
_VALUES_ELSEWHERE = 2**26


def unit_distance(points: Tensor, pixels: Tensor) -> Tensor:
    """Euclidean distance of the two unit vectors of every pair, (M,) in [0, 2].

    Args:
        points, pixels: (M, C) features of each pair's point and pixel; divided by their length,
            or by 1e-12 where that is smaller.
    """
    distance: Tensor = _UnitDistance.apply(points, pixels)
    return distance


class _UnitDistance(torch.autograd.Function):
    """A few pairs at a time, and again in the backward pass: no unit vector is kept."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, pixels: Tensor) -> Tensor:
        ctx.save_for_backward(points, pixels)
        return torch.cat([_distance(points[rows], pixels[rows]) for rows in _chunks(points)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, wanted = ctx.saved_tensors, ctx.needs_input_grad
        found = tuple(
            torch.empty_like(rows) if needed else None
            for rows, needed in zip(features, wanted, strict=True)
        )
        for rows in _chunks(features[0]):
            pair = [
                whole[rows].detach().requires_grad_(needed)
                for whole, needed in zip(features, wanted, strict=True)
            ]
            with torch.enable_grad():
                distance = _distance(*pair)
            distance.backward(gradient[rows])
            for whole, part in zip(found, pair, strict=True):
                if whole is not None and part.grad is not None:
                    whole[rows] = part.grad
        return found


def _distance(points: Tensor, pixels: Tensor) -> Tensor:
    points, pixels = (
        features.to(torch.promote_types(features.dtype, torch.float32))
        for features in (points, pixels)
    )
    return torch.linalg.vector_norm(F.normalize(points, dim=1) - F.normalize(pixels, dim=1), dim=1)


def _chunks(rows: Tensor) -> Iterator[slice]:
    values = _VALUES.get(rows.device.type, _VALUES_ELSEWHERE)
    step = max(1, values // max(1, rows.shape[1]))
    return (slice(first, first + step) for first in range(0, max(1, len(rows)), step))
