"""Slices of predicted space are painted and counted by what the rays saw."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.report import figures
from lidarssl.report.occupancy import (
    FREE,
    FREE_COLOR,
    FULL,
    FULL_COLOR,
    NOTHING_COLOR,
    RETURN_COLOR,
    RIGHT_COLOR,
    UNDECIDED_COLOR,
    UNKNOWN,
    WRONGLY_FREE_COLOR,
    WRONGLY_FULL_COLOR,
    OccupancySlices,
    agreement,
    blend,
)
from lidarssl.report.pictures import BACKGROUND

TRUTH = np.array([[FREE, FREE, FREE], [FULL, FULL, FULL], [UNKNOWN, UNKNOWN, FREE]])
PREDICTION = np.array([[0.1, 0.9, 0.2], [0.9, 0.2, np.nan], [0.9, np.nan, np.nan]])


def slices() -> OccupancySlices:
    return OccupancySlices(
        np.array([0.5, 1.5]),
        0.2,
        3.0,
        np.stack([TRUTH, np.full_like(TRUTH, UNKNOWN)]),
        np.stack([PREDICTION, PREDICTION]),
        np.zeros((0, 3)),
    )


def cells(png: bytes) -> np.ndarray:
    """(3, 3, 3) colour 0..255 at a corner of each cell, in the order of the arrays."""
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    at = [20, 260, 500]
    return image[at][:, at][::-1, ::-1]


def test_panels_are_truth_prediction_and_mistakes_of_each_height() -> None:
    panels = slices().panels()
    assert len(panels) == 6
    free, full, nothing = np.array([FREE_COLOR, FULL_COLOR, NOTHING_COLOR])
    truth, predicted, wrong = (cells(panel.png) for panel in panels[:3])
    assert np.abs(truth[0, 1] - free).max() <= 1
    assert np.abs(truth[1, 1] - full).max() <= 1
    assert np.abs(truth[2, 0] - nothing).max() <= 1
    assert np.abs(predicted[0, 0] - (0.9 * free + 0.1 * full)).max() <= 1
    assert np.abs(predicted[2, 0] - (0.1 * free + 0.9 * full)).max() <= 1
    assert np.abs(predicted[1, 2] - nothing).max() <= 1
    expected = np.array(
        [
            [RIGHT_COLOR, WRONGLY_FULL_COLOR, RIGHT_COLOR],
            [RIGHT_COLOR, WRONGLY_FREE_COLOR, NOTHING_COLOR],
            [NOTHING_COLOR, NOTHING_COLOR, NOTHING_COLOR],
        ]
    )
    assert np.abs(wrong - expected).max() <= 1


def test_titles_say_the_height_and_how_much_is_right() -> None:
    titles = [panel.title for panel in slices().panels()]
    assert titles[0].startswith("0.5 m above the ground at the sensor")
    assert (
        titles[2]
        == "right: 67\N{NO-BREAK SPACE}% of the free and 50\N{NO-BREAK SPACE}% of the full cells"
    )
    assert titles[3].startswith("1.5 m above the ground")
    assert titles[5] == "no cell is both seen and answered"


def test_agreement_counts_cells_that_are_seen_and_answered() -> None:
    assert agreement(TRUTH, PREDICTION) == (pytest.approx(2 / 3), 0.5)
    assert agreement(TRUTH[:1], PREDICTION[:1]) == (pytest.approx(2 / 3), None)
    assert agreement(TRUTH, np.full_like(PREDICTION, np.nan)) == (None, None)


def test_only_returns_inside_a_slice_are_drawn_over_it() -> None:
    # Left of the middle, in a cell without an answer.
    inside, above = [[-2.5, -1.5, 0.55]] * 20, [[-2.5, -1.5, 0.65]] * 20

    def bright(points: list[list[float]]) -> bool:
        panel = replace(slices(), points=np.array(points)).panels()[1]
        image = np.asarray(Image.open(io.BytesIO(panel.png)).convert("L"))
        return bool(image[640:680, 520:560].max() > 150)

    assert bright(inside)
    assert not bright(above)


def test_unknown_is_the_ground_of_the_picture() -> None:
    assert "#" + "".join(f"{channel:02x}" for channel in NOTHING_COLOR) == BACKGROUND
    assert np.isnan(blend(np.array([np.nan]))).all()


def test_the_key_names_every_colour() -> None:
    assert np.abs(255 * blend(np.array(0.5)) - UNDECIDED_COLOR).max() <= 1
    colors = [color for _, color in slices().key().classes]
    assert len(set(colors)) == len(colors) == 8


def test_right_stands_out_from_nothing_and_returns_are_drawn_as_the_key_says() -> None:
    right, nothing = np.array(RIGHT_COLOR), np.array(NOTHING_COLOR)
    assert (right - nothing).min() > 90
    panel = replace(slices(), points=np.array([[-2.5, -1.5, 0.5]] * 20)).panels()[1]
    image = np.asarray(Image.open(io.BytesIO(panel.png)).convert("RGB"))
    assert np.abs(image[640:680, 520:560].astype(int) - RETURN_COLOR).max(-1).min() < 60


def test_slices_read_back_equal(tmp_path: Path) -> None:
    slices().save(tmp_path / "a.npz")
    found = figures.load(tmp_path / "a.npz")
    assert isinstance(found, OccupancySlices)
    assert (found.extent, found.thickness) == (3.0, 0.2)
    assert np.array_equal(found.prediction, slices().prediction, equal_nan=True)


@pytest.mark.parametrize(
    "broken",
    [
        {"truth": TRUTH},
        {"prediction": np.zeros((2, 3, 4))},
        {"heights": np.zeros(3)},
        {"points": np.zeros((4, 1))},
        {"truth": np.zeros((2, 0, 0)), "prediction": np.zeros((2, 0, 0))},
    ],
)
def test_arrays_that_do_not_fit_are_a_data_error(
    tmp_path: Path, broken: dict[str, np.ndarray]
) -> None:
    replace(slices(), **broken).save(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz"):
        figures.draw(tmp_path / "a.npz")
