"""InfoNCE in both directions between whole images and whole scans, as CLIP (Radford et al., 2021).

CLCP aligns an image encoder with a lidar encoder by it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def paired_contrast(
    image: Tensor, lidar: Tensor, scale: Tensor, ignored: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of finding the scan of every image and the image of every scan.

    ``(CE(rows) + CE(columns)) / 2`` of the logits ``scale * image @ lidar.T``.

    Args:
        image, lidar: (B, D) unit rows; row i of both is of one moment.
        scale: scalar that multiplies the cosines: 1 / temperature.
        ignored: (B, B) bool, pairs that are no negatives; the diagonal is not looked at.

    Returns:
        Scalar, at least float32; 0 (with zero gradients) when B is 0.

    Raises:
        ValueError: shapes differ.
    """
    if image.ndim != 2 or image.shape != lidar.shape:
        raise ValueError(f"rows are {tuple(image.shape)} and {tuple(lidar.shape)}, not alike")
    if image.shape[0] == 0:
        return image.sum() + lidar.sum() + 0 * scale
    wide = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        logits = scale.to(wide) * (image.to(wide) @ lidar.to(wide).T)
    if ignored is not None:
        own = torch.eye(len(image), dtype=torch.bool, device=image.device)
        logits = logits.masked_fill(ignored & ~own, -torch.inf)
    own_column = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, own_column) + F.cross_entropy(logits.T, own_column)) / 2
