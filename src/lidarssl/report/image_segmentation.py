"""An image with the class of each pixel: truth, prediction and mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lidarssl.errors import DataError
from lidarssl.report import pictures
from lidarssl.report.figure_data import FigureData, Key, Panel, class_key, to_array
from lidarssl.report.pictures import Array
from lidarssl.report.scores import percent

_RIGHT_WRONG = ((0, 0, 0), (120, 130, 140), (255, 40, 30))
"""Colours of ignored pixels (not used), of right and of wrong ones."""


@dataclass(frozen=True)
class ImagePrediction(FigureData):
    """An image as it is, by its true classes, by the predicted ones, and where they differ.

    Attributes:
        image: (H, W, 3) or (3, H, W) uint8, or float in [0, 1].
        prediction, truth: (H, W) class ids, 0 = ignored.
        colors: (C, 3) RGB 0..255, ``names`` (C,), both with the ignored class first.
    """

    kind = "image_prediction"
    above = False
    image: Array
    prediction: Array
    truth: Array
    colors: Array
    names: tuple[str, ...]

    def panels(self) -> tuple[Panel, ...]:
        truth, predicted = to_array(self.truth), to_array(self.prediction)
        if truth.shape != predicted.shape:
            raise DataError(f"has shape {predicted.shape}, truth {truth.shape}", field="prediction")
        labelled = truth != 0
        wrong = (predicted != truth) & labelled
        share = float(wrong.sum() / labelled.sum()) if labelled.any() else 0.0
        # A prediction where there is no truth cannot be judged; it would only distract.
        shown = np.where(labelled, predicted, 0)
        return (
            Panel("image", self._tinted(np.zeros_like(truth))),
            Panel("truth", self._tinted(truth)),
            Panel("prediction", self._tinted(shown)),
            Panel(
                f"mistakes in red: {percent(share)} of the labelled pixels",
                pictures.camera_labels(self.image, np.where(labelled, 1 + wrong, 0), _RIGHT_WRONG),
            ),
        )

    def key(self) -> Key:
        seen = np.concatenate([to_array(self.truth).ravel(), to_array(self.prediction).ravel()])
        return class_key(self.names, self.colors, seen)

    def _tinted(self, classes: Array) -> bytes:
        return pictures.camera_labels(self.image, classes, self.colors, strength=0.75)


@dataclass(frozen=True)
class ConditionPrediction(ImagePrediction):
    """The same in one row, without the picture of the mistakes: one weather beside another."""

    kind = "condition_prediction"

    def panels(self) -> tuple[Panel, ...]:
        image, truth, prediction, mistakes = super().panels()
        share = mistakes.title.removeprefix("mistakes in red: ")
        return image, truth, Panel(f"prediction, wrong on {share}", prediction.png)
