from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.errors import DataError
from lidarssl.report.palette import DIMMEST, class_colors, visible

Color = tuple[int, int, int]
channel = st.integers(0, 255)


def luminance(color: np.ndarray) -> float:
    """Relative luminance of one sRGB colour in [0, 1], channel by channel."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in color.tolist()]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@given(st.tuples(channel, channel, channel))
def test_every_colour_is_bright_enough_and_a_bright_one_stays(color: Color) -> None:
    given_color = np.array(color) / 255
    (shown,) = visible(np.array([color]))
    assert luminance(shown) >= DIMMEST - 1e-6
    assert 0 <= shown.min() <= shown.max() <= 1
    if luminance(given_color) >= DIMMEST:
        assert np.allclose(shown, given_color, atol=1e-6)
    else:
        assert luminance(shown) == pytest.approx(DIMMEST, abs=1e-6)


def test_a_dark_purple_becomes_a_lighter_one_and_not_the_magenta_beside_it() -> None:
    sidewalk, road = visible(np.array([(75, 0, 75), (255, 0, 255)]))
    assert sidewalk[1] == pytest.approx(0, abs=1e-6)
    assert sidewalk[0] == pytest.approx(sidewalk[2])
    assert 0.55 < sidewalk[0] < 0.75
    assert np.allclose(road, (1, 0, 1))


def test_black_becomes_grey_and_pure_blue_pales() -> None:
    black, blue = visible(np.array([(0, 0, 0), (0, 0, 255)]))
    assert np.ptp(black) < 1e-6
    assert blue[2] == pytest.approx(1)
    assert blue[0] == pytest.approx(blue[1])
    assert 0.05 < blue[0] < 0.3


def test_points_take_the_colour_of_their_class() -> None:
    palette = np.array([(0, 0, 0), (75, 0, 75), (200, 200, 0)])
    shown = class_colors(np.array([[2, 1]]), palette)
    assert np.allclose(shown, visible(palette)[[[2, 1]]])
    with pytest.raises(DataError, match="palette of 3"):
        class_colors(np.array([3]), palette)
