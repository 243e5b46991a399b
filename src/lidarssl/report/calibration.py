"""A scan over an image by several poses, and which points and cells see each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidarssl.errors import DataError
from lidarssl.report import pictures
from lidarssl.report.figure_data import FigureData, Key, Panel, to_array
from lidarssl.report.pictures import Array

_LEVELS = 24
"""Shades of a probability over an image."""


@dataclass(frozen=True)
class CalibrationOverlay(FigureData):
    """A scan projected on an image by each of several poses, coloured by depth.

    Attributes:
        image: (H, W, 3) or (3, H, W).
        names: (P,) of the poses.
        pose: (M,) pose that projects a point, 0 .. P - 1.
        row, col: (M,) pixels.
        depth: (M,) m along the optical axis.
    """

    kind = "calibration_overlay"
    stacked = True
    image: Array
    names: tuple[str, ...]
    pose: Array
    row: Array
    col: Array
    depth: Array

    def panels(self) -> tuple[Panel, ...]:
        pose, row, col = (to_array(one) for one in (self.pose, self.row, self.col))
        if len(pose) and not (pose.min() >= 0 and pose.max() < len(self.names)):
            raise DataError(f"has poses up to {pose.max()} for {len(self.names)}", field="pose")
        colors = _ramp(to_array(self.depth) / max(self._far(), 1e-9))
        return tuple(
            Panel(
                name,
                pictures.lidar_on_image(
                    self.image, row[pose == number], col[pose == number], colors[pose == number]
                ),
            )
            for number, name in enumerate(self.names)
        )

    def key(self) -> Key:
        return Key(ramp=("near", f"{self._far():.0f} m deep or more", pictures.RANGE_COLORS))

    def _far(self) -> float:
        """One scale for all poses; few points are far away."""
        depth = to_array(self.depth)
        return float(np.percentile(depth, 90)) if depth.size else 0.0


@dataclass(frozen=True)
class OverlapPrediction(FigureData):
    """Which points of a scan a camera sees and which cells of its image see points.

    Attributes:
        points: (N, 3) m, x forward.
        overlap: (N,) predicted probability that the camera sees the point.
        seen: (N,) bool, whether the image has it.
        image: (H, W, 3) or (3, H, W).
        cells: (h, w) predicted probability that a point falls into a cell of the image.
    """

    kind = "overlap_prediction"
    points: Array
    overlap: Array
    seen: Array
    image: Array
    cells: Array

    def panels(self) -> tuple[Panel, ...]:
        overlap, seen = to_array(self.overlap), to_array(self.seen).astype(np.float64)
        return (
            Panel("points, predicted", pictures.bev(self.points, _ramp(overlap))),
            Panel("points, true", pictures.bev(self.points, _ramp(seen))),
            Panel("cells of the image, predicted", self._cells()),
        )

    def key(self) -> Key:
        return Key(ramp=("not seen by the other", "seen", pictures.RANGE_COLORS))

    def _cells(self) -> bytes:
        image, cells = to_array(self.image), to_array(self.cells).astype(np.float64)
        if cells.ndim != 2 or 0 in cells.shape:
            raise DataError(f"has shape {cells.shape}, not (h, w)", field="cells")
        size = image.shape[1:] if image.shape[0] == 3 and image.shape[2] != 3 else image.shape[:2]
        nearest = [
            ((np.arange(length) + 0.5) * count / length).astype(int)
            for length, count in zip(size, cells.shape, strict=True)
        ]
        shades = np.round(np.clip(np.nan_to_num(cells), 0, 1) * (_LEVELS - 1)).astype(int)
        colors = 255 * _ramp(np.linspace(0, 1, _LEVELS))
        palette = np.concatenate([np.zeros((1, 3)), colors])
        return pictures.camera_labels(self.image, 1 + shades[np.ix_(*nearest)], palette)


def _ramp(share: Array) -> Array:
    """(M, 3) RGB in [0, 1] of values (M,) from 0 to 1, as the key shows them."""
    import matplotlib

    start = pictures.DARKEST[pictures.RANGE_COLORS]
    scaled = start + (1 - start) * np.clip(np.nan_to_num(share), 0, 1)
    colors: Array = np.asarray(matplotlib.colormaps[pictures.RANGE_COLORS](scaled))[:, :3]
    return colors
