"""Pictures inside a page: re-encoded as WebP data URIs so that the page stays small."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from lidarssl.report.markup import Html, element
from lidarssl.report.pictures import DARKEST

if TYPE_CHECKING:
    from PIL import Image

MIN_WIDTH, MAX_WIDTH = 200, 1400
PAGE_BUDGET = 6 * 1024**2
"""Bytes of pictures (before base64, which adds a third) that one page may hold."""


class PictureBudget:
    """Encodes the pictures of one page within a limit on its size."""

    def __init__(self, count: int, budget: int = PAGE_BUDGET) -> None:
        self._share = budget // max(count, 1)

    def image(self, png: bytes, alt: str) -> Html:
        """An ``<img>`` that holds the picture itself.

        Each picture gets an equal share of the budget. One that fits stays lossless, because lossy
        colour bleeds between small points; another loses quality first, then resolution.
        """
        from PIL import Image

        picture = Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGB")
        if picture.width > MAX_WIDTH:
            height = max(1, round(picture.height * MAX_WIDTH / picture.width))
            picture = picture.resize((MAX_WIDTH, height), Image.Resampling.LANCZOS)
        data = self._encode(picture)
        uri = f"data:image/webp;base64,{base64.b64encode(data).decode('ascii')}"
        return element(
            "img", src=uri, alt=alt, width=picture.width, height=picture.height, loading="lazy"
        )

    def _encode(self, picture: Image.Image) -> bytes:
        data = _webp(picture, lossless=True, quality=60)
        for quality in (90, 75, 60):
            if len(data) > self._share:
                data = _webp(picture, quality=quality)
        while len(data) > self._share and picture.width > MIN_WIDTH:
            picture = picture.resize((picture.width * 2 // 3, max(1, picture.height * 2 // 3)))
            data = _webp(picture, quality=60)
        return data


def _webp(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", method=4, **options)
    return buffer.getvalue()


def ramp_css(colormap: str) -> str:
    """A CSS gradient of a matplotlib colour map."""
    import matplotlib
    from matplotlib.colors import to_hex

    start = DARKEST.get(colormap, 0.0)
    colors = matplotlib.colormaps[colormap]([start + (1 - start) * i / 8 for i in range(9)])
    return f"linear-gradient(90deg,{','.join(to_hex(color) for color in colors)})"
