"""Classes of weak labels: their distributions, and the points of a scan nearest to each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidarssl.errors import DataError
from lidarssl.report import pictures
from lidarssl.report.bar_table import BarRow, bar_table
from lidarssl.report.figure_data import FigureData, Key, Panel, class_key, to_array
from lidarssl.report.palette import class_colors, visible
from lidarssl.report.pictures import Array
from lidarssl.report.scores import percent

MOST_ROWS = 30
"""Classes in the table; of more, those with most weight."""

LONGEST_BAR = 4.0
"""Times the median concentration; a class of few matches may have one of millions."""


@dataclass(frozen=True)
class ClassPrototypes(FigureData):
    """The distributions of classes, the weak labels of an image, and the points over it.

    Attributes:
        image: (H, W, 3) or (3, H, W).
        row, col: (M,) pixels of points.
        nearest: (M,) class whose mean direction is nearest to the point's feature, 0 = none.
        kappa: (K,) concentrations of classes 1 .. K.
        weight: (K,) weight of data in their means, 0 = never seen.
        colors: (C, 3) RGB 0..255, ``names`` (C,), both with the ignored class first, C > K.
        pixels: (H, W) weak labels, 0 = ignored, or None.
    """

    kind = "class_prototypes"
    image: Array
    row: Array
    col: Array
    nearest: Array
    kappa: Array
    weight: Array
    colors: Array
    names: tuple[str, ...]
    pixels: Array | None = None

    def panels(self) -> tuple[Panel, ...]:
        nearest, kappa, weight = (to_array(one) for one in (self.nearest, self.kappa, self.weight))
        if not len(kappa) == len(weight) < len(self.names):
            raise DataError(
                f"has {len(weight)} values for {len(kappa)} concentrations and "
                f"{len(self.names)} names with the ignored one",
                field="weight",
            )
        colors = class_colors(nearest, to_array(self.colors))
        known = nearest > 0
        points = pictures.lidar_on_image(
            self.image, to_array(self.row)[known], to_array(self.col)[known], colors[known],
            dim=0.35,
        )  # fmt: skip
        table = Panel(_title_of_table(len(kappa)), self._table())
        if self.pixels is None:
            return (table, Panel("points by the nearest class", points))
        labels = pictures.camera_labels(self.image, self.pixels, self.colors)
        share, _ = agreement(nearest, self._labels(), weight)
        text = "" if share is None else f"; {percent(share)} agree with their weak label"
        return (
            table,
            Panel("weak labels of the pixels", labels),
            Panel(f"points by the nearest class{text}", points),
        )

    def key(self) -> Key:
        shown = [to_array(one).ravel() for one in (self.nearest, self.pixels) if one is not None]
        return class_key(self.names, self.colors, np.concatenate(shown))

    def _labels(self) -> Array:
        """(M,) weak labels of the points."""
        assert self.pixels is not None
        labels: Array = to_array(self.pixels)[to_array(self.row), to_array(self.col)]
        return labels

    def _table(self) -> bytes:
        kappa, weight = to_array(self.kappa), to_array(self.weight)
        seen, shares = weight > 0, None
        if self.pixels is not None:
            _, shares = agreement(to_array(self.nearest), self._labels(), weight)
        colors = visible(to_array(self.colors)).tolist()
        rows = [
            BarRow(
                self.names[k + 1],
                (colors[k + 1][0], colors[k + 1][1], colors[k + 1][2]),
                float(kappa[k]) if seen[k] else None,
                _cells(kappa[k], weight[k], None if shares is None else shares[k]),
            )
            for k in np.sort(np.argsort(-weight, kind="stable")[:MOST_ROWS]).tolist()
        ]
        longest = LONGEST_BAR * float(np.median(kappa[seen])) if seen.any() else 0.0
        heads = ("kappa", "weight") if shares is None else ("kappa", "weight", "agree")
        return bar_table(heads, rows, longest)


def agreement(nearest: Array, labels: Array, weight: Array) -> tuple[float | None, Array]:
    """Shares of the points whose nearest class is that of their weak label.

    Args:
        nearest: (M,) class ids, 0 = none: does not count.
        labels: (M,) class ids; 0 = unknown, and classes never seen, do not count.
        weight: (K,) of classes 1 .. K, 0 = never seen.

    Returns:
        Of all points that count, None without any; and (K,) of the points of each class, NaN for
        a class without any.
    """
    seen = np.zeros(max(int(labels.max(initial=0)), len(weight)) + 1, bool)
    seen[1 : len(weight) + 1] = weight > 0
    counts = (nearest > 0) & seen[labels]
    right = (nearest == labels)[counts]
    size = len(weight) + 1
    total = np.bincount(labels[counts], minlength=size)
    hits = np.bincount(labels[counts][right], minlength=size)
    shares = np.where(total > 0, hits / np.maximum(total, 1), np.nan)[1:]
    return (float(right.mean()) if len(right) else None), shares


def _title_of_table(classes: int) -> str:
    if classes <= MOST_ROWS:
        return "distribution of every class"
    return f"distributions of the {MOST_ROWS} of {classes} classes with most weight"


def _cells(kappa: float, weight: float, share: float | None) -> tuple[str, ...]:
    if weight == 0:
        return ("not seen",)
    whole = 1000 <= kappa < 100_000
    cells = (f"{kappa:.0f}" if whole else f"{kappa:.3g}", f"{weight:.2g}")
    if share is None:
        return cells
    return (*cells, "\N{EN DASH}" if np.isnan(share) else percent(share))
