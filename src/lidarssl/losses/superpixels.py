"""Superpixel pooling of point and pixel features (SLidR, Sautier et al., CVPR 2022, eq. 1-2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.frame import Matches


class PooledSuperpixels(NamedTuple):
    """Mean features of the superpixels that hold at least one match, K rows each.

    Attributes:
        points: (K, C) mean over the matches of a superpixel, not normalised.
        pixels: (K, C) mean over all pixels of a superpixel, not normalised.
        kept: (K,) int64 segment of each row, increasing, see :func:`global_segments`.
    """

    points: Tensor
    pixels: Tensor
    kept: Tensor


def global_segments(superpixels: Tensor, per_image: int | None = None) -> Tensor:
    """Make superpixel ids unique over the images of a batch.

    Args:
        superpixels: (I, H, W) int64 ids >= 0, counted within each image.
        per_image: ids reserved for each image; the largest id + 1 when None.

    Returns:
        (I, H, W) int64, ``image * per_image + superpixel``.

    Raises:
        DataError: an id is negative or does not fit in ``per_image``.
    """
    if superpixels.numel() == 0:
        return superpixels.long()
    lowest, highest = (int(value) for value in torch.aminmax(superpixels))
    if per_image is None:
        per_image = highest + 1
    if lowest < 0 or highest >= per_image:
        raise DataError(
            f"superpixel ids span {lowest}..{highest}, outside 0..{per_image - 1}",
            field="superpixels",
            remedy="give per_image the largest number of superpixels of an image",
        )
    first = torch.arange(superpixels.shape[0], device=superpixels.device) * per_image
    return superpixels.long() + first[:, None, None]


def segment_mean(features: Tensor, segment: Tensor, num_segments: int, eps: float = 1e-6) -> Tensor:
    """Mean of the rows of each segment, ``sum / (count + eps)``; zero where there is none.

    Args:
        features: (N, C).
        segment: (N,) int64 in [0, num_segments).

    Returns:
        (num_segments, C), at least float32.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    total = features.new_zeros(num_segments, features.shape[1]).index_add(0, segment, features)
    count = torch.bincount(segment, minlength=num_segments).to(features.dtype)
    return total / (count + eps)[:, None]


def pool_superpixels(
    match_features: Tensor,
    matches: Matches,
    pixel_features: Tensor,
    superpixels: Tensor,
    per_image: int | None = None,
    eps: float = 1e-6,
) -> PooledSuperpixels:
    """Pool both modalities over the superpixels of a batch.

    A point matched twice in a superpixel counts twice; pixels count whether or not a point falls
    on them. Superpixels without a match are left out.

    Args:
        match_features: (M, C) point feature of each match.
        matches: (M,) rows into the images; ``point`` is not used.
        pixel_features: (I, C, H, W).
        superpixels: (I, H, W) int64 ids >= 0, counted within each image.
        per_image: ids reserved for each image; the largest id + 1 when None.
        eps: added to the counts.

    Raises:
        DataError: an id is negative or does not fit in ``per_image``.
    """
    segments = global_segments(superpixels, per_image)
    segment = segments[matches.image, matches.row, matches.col]
    number = int(segments.max()) + 1 if segments.numel() else 0
    points = segment_mean(match_features, segment, number, eps)
    pixels = segment_mean(
        pixel_features.permute(0, 2, 3, 1).flatten(0, 2), segments.flatten(), number, eps
    )
    kept = torch.bincount(segment, minlength=number).nonzero().squeeze(1)
    return PooledSuperpixels(points[kept], pixels[kept], kept)
