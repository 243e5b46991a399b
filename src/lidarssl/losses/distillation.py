"""Distillation of image features into points.

Source: Puy et al., "Three Pillars improving Vision Foundation Model Distillation for Lidar",
CVPR 2024, section 3, in the form of its code: the distance itself, not its square and not a
cosine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_distance(points: Tensor, pixels: Tensor) -> Tensor:
    """Euclidean distance of the two unit vectors of every pair, (M,) in [0, 2].

    Args:
        points, pixels: (M, C) features of each pair's point and pixel; divided by their length,
            or by 1e-12 where that is smaller.
    """
    points, pixels = (
        features.to(torch.promote_types(features.dtype, torch.float32))
        for features in (points, pixels)
    )
    return torch.linalg.vector_norm(F.normalize(points, dim=1) - F.normalize(pixels, dim=1), dim=1)
