"""What the points of a scan learned of the image they fall into, as a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidarssl.errors import DataError
from lidarssl.report import pictures
from lidarssl.report.figure_data import FigureData, Key, Panel, to_array
from lidarssl.report.pictures import Array


@dataclass(frozen=True)
class DistilledFeatures(FigureData):
    """Features of the image encoder at the pixels of points beside those of the points.

    Attributes:
        image: (H, W, 3) or (3, H, W).
        row, col: (M,) pixels.
        teacher, student: (M, C).
    """

    kind = "distilled_features"
    image: Array
    row: Array
    col: Array
    teacher: Array
    student: Array

    def panels(self) -> tuple[Panel, ...]:
        teacher, student = (_unit(to_array(one)) for one in (self.teacher, self.student))
        if teacher.shape != student.shape:
            raise DataError("teacher and student differ in shape", field="student")
        colors = pictures.pca_rgb(np.concatenate([teacher, student]))
        cosine = (teacher * student).sum(1)
        mean = f"{cosine.mean():.2f}" if len(cosine) else "unknown"
        return (
            Panel("image encoder", self._over_image(colors[: len(teacher)])),
            Panel("points", self._over_image(colors[len(teacher) :])),
            Panel(
                f"cosine of the two, mean {mean}",
                pictures.similarity_on_image(self.image, self.row, self.col, cosine),
            ),
        )

    def key(self) -> Key:
        return Key(ramp=("opposite", "the same feature", pictures.SIMILARITY_COLORS))

    def _over_image(self, colors: Array) -> bytes:
        return pictures.lidar_on_image(self.image, self.row, self.col, colors, dim=0.35)


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
