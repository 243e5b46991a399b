"""Pictures of segmented images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.report.image_segmentation import ConditionPrediction, ImagePrediction
from lidarssl.report.palette import visible

COLORS = np.array([(0, 0, 0), (40, 200, 40), (200, 60, 60)])
NAMES = ("ignored", "grass", "brick")
IMAGE = np.full((2, 900, 3), 100, dtype=np.uint8)
TRUTH = np.repeat(np.array([[1, 1, 2], [2, 2, 0]]), 300, axis=1)
PREDICTION = np.repeat(np.array([[1, 2, 2], [2, 2, 1]]), 300, axis=1)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_truth_and_prediction_have_the_colours_of_their_classes() -> None:
    image, truth, prediction, mistakes = ImagePrediction(
        IMAGE, PREDICTION, TRUTH, COLORS, NAMES
    ).panels()
    assert np.array_equal(pixels(image.png), IMAGE)
    tints = 0.25 * 100 + 0.75 * 255 * visible(COLORS)
    tints[0] = 100
    assert np.abs(pixels(truth.png) - tints[TRUTH]).max() <= 1
    shown = np.where(TRUTH == 0, 0, PREDICTION)
    assert np.abs(pixels(prediction.png) - tints[shown]).max() <= 1
    red = pixels(mistakes.png)
    wrong = (TRUTH != PREDICTION) & (TRUTH != 0)
    assert np.array_equal(red[..., 0] > red[..., 1] + 60, wrong)
    assert np.array_equal(red[TRUTH == 0], IMAGE[TRUTH == 0])
    assert mistakes.title == "mistakes in red: 20\N{NO-BREAK SPACE}% of the labelled pixels"


def test_a_row_of_a_weather_tells_the_share_of_mistakes_beside_the_prediction() -> None:
    panels = ConditionPrediction(IMAGE, PREDICTION, TRUTH, COLORS, NAMES).panels()
    whole = ImagePrediction(IMAGE, PREDICTION, TRUTH, COLORS, NAMES).panels()
    assert [panel.png for panel in panels] == [panel.png for panel in whole[:3]]
    assert panels[2].title.startswith("prediction, wrong on 20")


def test_the_key_lists_the_classes_that_occur() -> None:
    key = ImagePrediction(IMAGE, PREDICTION, np.minimum(TRUTH, 1), COLORS, NAMES).key()
    assert [name for name, _ in key.classes] == ["grass", "brick"]
    nothing = np.zeros_like(TRUTH)
    figure = ImagePrediction(IMAGE, nothing, nothing, COLORS, NAMES)
    assert figure.key().classes == ()
    assert "0\N{NO-BREAK SPACE}%" in figure.panels()[3].title


@pytest.mark.parametrize("shape", [(2, 899), (3, 900)])
def test_arrays_of_other_sizes_are_named(shape: tuple[int, int]) -> None:
    other = np.ones(shape, dtype=int)
    with pytest.raises(DataError) as caught:
        ImagePrediction(IMAGE, other, TRUTH, COLORS, NAMES).panels()
    assert caught.value.field == "prediction"
    with pytest.raises(DataError):
        ImagePrediction(IMAGE, other, other, COLORS, NAMES).panels()
