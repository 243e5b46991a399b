"""Colours of classes as the pictures show them, bright enough for the dark ground."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidarssl.errors import DataError

DIMMEST = 0.1
"""Least luminance of a class, 0..1: 2.6 times the contrast of the ground with itself."""

_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def visible(colors: NDArray[Any]) -> NDArray[Any]:
    """(C, 3) RGB in [0, 1] of (C, 3) RGB 0..255, dark ones lifted to ``DIMMEST``.

    A lifted colour keeps its hue as far as its strongest channel allows, then pales. Two dark
    colours of one hue may come close; bright ones are never touched.

    Source: sRGB transfer function and luminance, IEC 61966-2-1.
    """
    linear = _to_linear(np.clip(np.asarray(colors, np.float64).reshape(-1, 3) / 255, 0, 1))
    luminance = linear @ _LUMINANCE
    strongest = linear.max(1)
    factor = np.minimum(DIMMEST / np.maximum(luminance, 1e-9), 1 / np.maximum(strongest, 1e-9))
    lifted = linear * np.maximum(factor, 1)[:, None]
    missing = np.clip(DIMMEST - lifted @ _LUMINANCE, 0, 1)
    white = missing / (1 - np.minimum(lifted @ _LUMINANCE, DIMMEST))
    return _from_linear(lifted + (1 - lifted) * white[:, None])


def class_colors(ids: NDArray[Any], colors: NDArray[Any]) -> NDArray[Any]:
    """(..., 3) RGB in [0, 1], ``visible``, of class ids (...) by a palette (C, 3) 0..255.

    Raises:
        DataError: an id outside the palette.
    """
    palette = visible(colors)
    if ids.size and not (ids.min() >= 0 and ids.max() < len(palette)):
        raise DataError(
            f"class ids {ids.min()}..{ids.max()} for a palette of {len(palette)}", field="colors"
        )
    return palette[ids]


def _to_linear(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _from_linear(values: NDArray[Any]) -> NDArray[Any]:
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)
