"""Superpixel pooling of point and pixel features (SLidR, Sautier et al., CVPR 2022, eq. 1-2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
    enlarged: Callable[[Tensor], Tensor] | None = None,
) -> PooledSuperpixels:
    """Pool both modalities over the superpixels of a batch.

    A point matched twice in a superpixel counts twice; pixels count whether or not a point falls
    on them. Superpixels without a match are left out.

    Args:
        match_features: (M, C) point feature of each match.
        matches: (M,) rows into the images; ``point`` is not used.
        pixel_features: (I, C, H, W), or what ``enlarged`` makes that of.
        superpixels: (I, H, W) int64 ids >= 0, counted within each image.
        per_image: ids reserved for each image; the largest id + 1 when None.
        eps: added to the counts.
        enlarged: makes the pixel features of an image of its coarse map, (1, C, H, W). It is
            called for one image after the other, and again in the backward pass, so that the
            pixels of all images are never in memory together.

    Raises:
        DataError: an id is negative or does not fit in ``per_image``.
    """
    if per_image is None:
        per_image = int(superpixels.max()) + 1 if superpixels.numel() else 0
    segments = global_segments(superpixels, per_image)
    segment = segments[matches.image, matches.row, matches.col]
    number = len(superpixels) * per_image
    points = segment_mean(match_features, segment, number, eps)
    pixels = _pixel_means(pixel_features, superpixels, per_image, eps, enlarged)
    kept = torch.bincount(segment, minlength=number).nonzero().squeeze(1)
    return PooledSuperpixels(points[kept], pixels[kept], kept)


def _pixel_means(
    features: Tensor,
    superpixels: Tensor,
    per_image: int,
    eps: float,
    enlarged: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """Means of the superpixels of one image after the other, (I * per_image, C)."""

    def of_image(image: Tensor, segment: Tensor) -> Tensor:
        pixels = image if enlarged is None else enlarged(image)
        rows = pixels.permute(0, 2, 3, 1).flatten(0, 2)
        return segment_mean(rows, segment.flatten().long(), per_image, eps)

    def recomputed(image: Tensor, segment: Tensor) -> Tensor:
        means: Tensor = checkpoint(
            of_image, image, segment, use_reentrant=False, preserve_rng_state=False
        )
        return means

    work = of_image if enlarged is None else recomputed
    images = zip(features[:, None], superpixels, strict=True)
    means = [work(image, segment) for image, segment in images]
    return torch.cat(means) if means else features.new_zeros(0, features.shape[1])
