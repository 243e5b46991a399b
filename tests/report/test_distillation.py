"""Features of an image encoder beside those of points."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.report.distillation import DistilledFeatures


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def figure(student: np.ndarray, teacher: np.ndarray) -> DistilledFeatures:
    row, col = np.divmod(np.arange(len(teacher)), 20)
    return DistilledFeatures(np.full((40, 80, 3), 0.5), 8 * row, 4 * col, teacher, student)


def test_equal_directions_have_equal_colours_whatever_their_length() -> None:
    teacher = np.random.default_rng(0).normal(size=(100, 6))
    first, second, third = figure(3 * teacher, teacher).panels()
    assert np.array_equal(pixels(first.png), pixels(second.png))
    assert "mean 1.00" in third.title


def test_unlike_features_differ_in_colour() -> None:
    rng = np.random.default_rng(0)
    first, second, third = figure(rng.normal(size=(100, 6)), rng.normal(size=(100, 6))).panels()
    assert np.abs(pixels(first.png) - pixels(second.png)).max() > 100
    mean = float(third.title.split()[-1])
    assert abs(mean) < 0.2


def test_widths_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        figure(np.zeros((5, 3)), np.zeros((5, 4))).panels()
