"""Occupied and free space around a scan, predicted beside what its rays tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidarssl.errors import DataError
from lidarssl.report import pictures
from lidarssl.report.figure_data import FigureData, Key, Panel, to_array
from lidarssl.report.pictures import Array

UNKNOWN, FREE, FULL = 0, 1, 2
"""Truth of a cell; as ``lidarssl.geometry.rays.Cell``."""

_RGB = tuple[int, int, int]
FREE_COLOR: _RGB = (58, 124, 189)
FULL_COLOR: _RGB = (255, 166, 64)
UNDECIDED_COLOR: _RGB = (156, 145, 126)
"""Half way between the two."""
NOTHING_COLOR: _RGB = (16, 21, 28)
RIGHT_COLOR: _RGB = (122, 140, 158)
WRONGLY_FULL_COLOR: _RGB = (255, 90, 79)
WRONGLY_FREE_COLOR: _RGB = (214, 120, 255)
RETURN_COLOR: _RGB = (255, 255, 255)


@dataclass(frozen=True)
class OccupancySlices(FigureData):
    """Horizontal slices around a scan: what its rays saw, the prediction, and the mistakes.

    Attributes:
        heights: (H,) m above the ground at the sensor, the middles of the slices.
        thickness: of a slice, m.
        extent: half the side of the square that the cells fill, m.
        truth: (H, X, Y) ``UNKNOWN``, ``FREE`` or ``FULL``.
        prediction: (H, X, Y) probability that a cell is full; NaN = not answered.
        points: (N, 3) m, returns, x forward, z from the ground.
    """

    kind = "occupancy"
    heights: Array
    thickness: float
    extent: float
    truth: Array
    prediction: Array
    points: Array

    def panels(self) -> tuple[Panel, ...]:
        heights, points = to_array(self.heights), to_array(self.points)
        truth, prediction = to_array(self.truth), to_array(self.prediction)
        if truth.shape != prediction.shape or truth.shape[:1] != heights.shape:
            raise DataError(
                f"has shape {prediction.shape}, truth {truth.shape}, of {len(heights)} heights",
                field="prediction",
            )
        drawn: list[Panel] = []
        for height, true, predicted in zip(heights.tolist(), truth, prediction, strict=True):
            inside = points[np.abs(points[:, 2] - height) < self.thickness / 2]
            mistakes, text = _mistakes(true, predicted)
            drawn += [
                Panel(
                    f"{height:g} m above the ground at the sensor: what the rays saw",
                    self._png(_seen(true)),
                ),
                Panel("predicted, with the returns", self._png(blend(predicted), inside)),
                Panel(text, self._png(mistakes)),
            ]
        return tuple(drawn)

    def _png(self, colors: Array, points: Array | None = None) -> bytes:
        dots = np.zeros((0, 3)) if points is None else points
        return pictures.bev_cells(colors, float(self.extent), dots)

    def key(self) -> Key:
        return Key(
            classes=(
                ("free", FREE_COLOR),
                ("undecided", UNDECIDED_COLOR),
                ("full", FULL_COLOR),
                ("return in the slice", RETURN_COLOR),
                (
                    "not seen; or no answer: no point near enough, or outside the network's grid",
                    NOTHING_COLOR,
                ),
                ("right", RIGHT_COLOR),
                ("free, called full", WRONGLY_FULL_COLOR),
                ("full, called free", WRONGLY_FREE_COLOR),
            )
        )


def blend(probability: Array) -> Array:
    """(..., 3) RGB in [0, 1]: from the colour of free (0) to that of full (1); NaN stays NaN."""
    share = np.asarray(probability, dtype=np.float64)[..., None]
    return ((1 - share) * np.array(FREE_COLOR) + share * np.array(FULL_COLOR)) / 255


def agreement(truth: Array, prediction: Array) -> tuple[float | None, float | None]:
    """Shares of the free and of the full cells that are predicted right.

    Args:
        truth, prediction: of one shape, see ``OccupancySlices``. A cell is predicted full above
            0.5; one that is not seen, or not answered, does not count.

    Returns:
        None for a kind without a cell that counts.
    """
    answered = ~np.isnan(prediction)
    full = prediction > 0.5
    free_cells, full_cells = answered & (truth == FREE), answered & (truth == FULL)
    return (
        float((~full)[free_cells].mean()) if free_cells.any() else None,
        float(full[full_cells].mean()) if full_cells.any() else None,
    )


def _seen(truth: Array) -> Array:
    return _paint(truth.shape, (truth == FREE, FREE_COLOR), (truth == FULL, FULL_COLOR))


def _mistakes(truth: Array, prediction: Array) -> tuple[Array, str]:
    answered, full = ~np.isnan(prediction), prediction > 0.5
    colors = _paint(
        truth.shape,
        (answered & (truth != UNKNOWN), RIGHT_COLOR),
        (answered & (truth == FREE) & full, WRONGLY_FULL_COLOR),
        (answered & (truth == FULL) & ~full, WRONGLY_FREE_COLOR),
    )
    shares = zip(("free", "full"), agreement(truth, prediction), strict=True)
    parts = [
        f"{100 * share:.0f}\N{NO-BREAK SPACE}% of the {name}"
        for name, share in shares
        if share is not None
    ]
    text = f"right: {' and '.join(parts)} cells" if parts else "no cell is both seen and answered"
    return colors, text


def _paint(shape: tuple[int, ...], *layers: tuple[Array, _RGB]) -> Array:
    """(X, Y, 3) RGB in [0, 1], later layers over earlier ones, NaN where none is."""
    colors = np.full((*shape, 3), np.nan)
    for mask, color in layers:
        colors[mask] = np.array(color) / 255
    return colors
