"""The baseline of image segmentation without a network: the class of a pixel by its place."""

from __future__ import annotations

import torch
from torch import Tensor

from lidarssl.errors import DataError

GRID = (16, 32)
"""Rows and columns of the cells, whatever the size of the images."""


def count_positions(labels: Tensor, num_classes: int, grid: tuple[int, int] = GRID) -> Tensor:
    """Pixels of each class in each cell of a grid over the images.

    Args:
        labels: (I, H, W) int64 in [0, num_classes), 0 = ignored.

    Returns:
        (rows, columns, num_classes) int64.
    """
    cells = _cells(labels.shape[-2], labels.shape[-1], grid).to(labels.device)
    pairs = cells * num_classes + labels
    counts = torch.bincount(pairs.flatten(), minlength=grid[0] * grid[1] * num_classes)
    return counts.view(*grid, num_classes)


def position_classes(counts: Tensor) -> Tensor:
    """The most frequent class of each cell, the ignored one aside; of all cells in an empty one.

    Args:
        counts: see :func:`count_positions`.

    Returns:
        (rows, columns) int64.

    Raises:
        DataError: no pixel has a label.
    """
    labelled = counts[..., 1:]
    if not bool(labelled.any()):
        raise DataError("no pixel has a label", remedy="give labelled images")
    anywhere = labelled.sum((0, 1)).argmax()
    return 1 + torch.where(labelled.any(2), labelled.argmax(2), anywhere)


def predict_positions(classes: Tensor, height: int, width: int) -> Tensor:
    """The class of each pixel of an image, (height, width) int64.

    Args:
        classes: see :func:`position_classes`.
    """
    rows, columns = classes.shape
    return classes.flatten()[_cells(height, width, (rows, columns)).to(classes.device)]


def _cells(height: int, width: int, grid: tuple[int, int]) -> Tensor:
    """(height, width) int64: the cell of each pixel, row by row."""
    rows, columns = (
        torch.arange(side) * cells // side
        for side, cells in zip((height, width), grid, strict=True)
    )
    return rows[:, None] * grid[1] + columns
