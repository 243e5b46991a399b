from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from lidarssl.report.embed import MAX_WIDTH, PictureBudget, ramp_css


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def embedded(html: str) -> tuple[np.ndarray, int]:
    found = re.search(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", html)
    assert found is not None
    data = base64.b64decode(found[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), len(data)


def test_a_picture_that_fits_is_lossless() -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[30, 40] = (255, 0, 0)
    html = PictureBudget(1).image(png(pixels), 'a "quoted" text')
    assert np.array_equal(embedded(html)[0], pixels)
    assert 'alt="a &quot;quoted&quot; text"' in html
    assert 'width="80" height="60"' in html


@pytest.mark.parametrize("share", [60_000, 8_000])
def test_a_picture_that_does_not_fit_is_made_to(share: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)
    found, size = embedded(PictureBudget(4, budget=4 * share).image(png(noise), ""))
    assert size <= share
    assert found.shape[1] / found.shape[0] == pytest.approx(4 / 3, rel=0.05)


def test_a_wide_picture_is_narrowed_and_a_palette_one_accepted() -> None:
    wide = np.zeros((30, 3000), np.uint8)
    found, _ = embedded(PictureBudget(1).image(png(wide), ""))
    assert found.shape == (14, MAX_WIDTH, 3)


def test_a_ramp_starts_blue_and_ends_red() -> None:
    for name in ("turbo", "coolwarm"):
        colors = re.findall(r"#(..)(..)(..)", ramp_css(name))
        low, high = ([int(channel, 16) for channel in colors[i]] for i in (0, -1))
        assert low[2] == max(low)
        assert high[0] == max(high)
