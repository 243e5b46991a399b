"""InfoNCE between paired rows (van den Oord et al., 2018), the loss of PPKT and SLidR.

:func:`supervised_info_nce` is the variant of OLIVINE, where rows of one class are no negatives;
:func:`multi_match_info_nce` that of NCLR's code, where a row may match several others or none.
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


def multi_match_info_nce(
    anchors: Tensor,
    candidates: Tensor,
    matches: Tensor,
    temperature: float,
    floor: float = 1e-8,
) -> Tensor:
    """Surprise of all matches of an anchor among the candidates, and the reverse.

    ``-log(p + floor)`` summed over the matches of each anchor, averaged over all anchors, with
    ``p`` the softmax over the candidates; and the same with the roles exchanged. Unlike in
    :func:`supervised_info_nce` every match counts, so an anchor with two of them cannot reach 0
    (NCLR's code, where nothing uses it).

    Args:
        anchors: (M, C).
        candidates: (N, C).
        matches: (M, N), whether a pair is a match, or its weight.
        temperature: > 0.
        floor: bounds the surprise of a match that the softmax rules out.

    Returns:
        Scalar, at least float32; 0 (with zero gradients) when M or N is 0.

    Raises:
        ValueError: shapes do not fit, or the temperature is not positive.
    """
    if (
        anchors.ndim != 2
        or candidates.shape[1:] != anchors.shape[1:]
        or matches.shape != (len(anchors), len(candidates))
    ):
        raise ValueError(
            f"anchors {tuple(anchors.shape)}, candidates {tuple(candidates.shape)} and matches "
            f"{tuple(matches.shape)} must be (M, C), (N, C) and (M, N)"
        )
    _check_temperature(temperature)
    if matches.numel() == 0:
        return anchors.sum() + candidates.sum()
    logits = _logits(anchors, candidates, temperature)
    matches = matches.to(logits.dtype)
    per_anchor, per_candidate = (
        (-matches * (logits.softmax(dim) + floor).log()).sum(dim).mean() for dim in (1, 0)
    )
    return per_anchor + per_candidate


def near_pixels(pixels: Tensor, height: int, width: int, distance: float) -> Tensor:
    """Which pixels of a grid lie near which points.

    Args:
        pixels: (N, 2) column and row of each point; the centre of a pixel is an integer.
        height, width: of the grid.
        distance: pixels, Euclidean; a pixel that far away is near.

    Returns:
        (height * width, N) bool, pixels in row-major order; the matches of
        :func:`multi_match_info_nce` when anchors are pixels.
    """
    row = torch.arange(height, device=pixels.device, dtype=pixels.dtype)
    column = torch.arange(width, device=pixels.device, dtype=pixels.dtype)
    squared = (row[:, None] - pixels[:, 1])[:, None] ** 2 + (column[:, None] - pixels[:, 0]) ** 2
    return (squared <= distance**2).flatten(0, 1)


def _check(anchors: Tensor, candidates: Tensor, temperature: float) -> None:
    if anchors.ndim != 2 or anchors.shape != candidates.shape:
        raise ValueError(
            f"anchors {tuple(anchors.shape)} and candidates {tuple(candidates.shape)} "
            "must have one shape (M, C)"
        )
    _check_temperature(temperature)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")


def _logits(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """(M, N) similarities over the temperature, at least float32."""
    logits = anchors @ candidates.T / temperature
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
