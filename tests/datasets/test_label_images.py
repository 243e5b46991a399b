"""Label images: ids as stored, whatever their palette; checked against the table; nearest sizes."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset_files import image_bytes
from image_dataset_files import LABEL_IDS, label_bytes
from lidarssl.datasets.label_images import (
    map_pixels,
    nearest_pixels,
    parse_image_size,
    parse_label_image,
)
from lidarssl.errors import DataError

PATH = Path("labels.png")


@pytest.mark.parametrize("mode", ["L", "P"])
def test_ids_are_read_as_stored_whatever_the_palette(mode: str) -> None:
    raw = parse_label_image(label_bytes(LABEL_IDS, mode), PATH)
    assert raw.dtype == np.uint8
    assert np.array_equal(raw, np.tile(LABEL_IDS, (12, 1)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "I;16"])
def test_files_of_colours_and_of_wide_ids_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match=r"labels\.png: the label image has mode '.*', not one id"):
        parse_label_image(label_bytes(LABEL_IDS, mode), PATH)


@pytest.mark.parametrize("data", [b"", b"no image", label_bytes(LABEL_IDS)[:52]])
def test_what_does_not_decode(data: bytes) -> None:
    with pytest.raises(DataError, match=r"(?s)does not decode.*field: labels.*remedy"):
        parse_label_image(data, PATH)


def test_only_png() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(stream, "JPEG")
    with pytest.raises(DataError, match="does not decode"):
        parse_label_image(stream.getvalue(), PATH)


def test_a_huge_image_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9)))
    for parse in (parse_label_image, parse_image_size):
        with pytest.raises(DataError, match=r"does not decode|60000 x 60000 pixels"):
            parse(data, PATH)


def test_sizes_come_from_the_header() -> None:
    for kind in ("PNG", "JPEG"):
        assert parse_image_size(image_bytes(0, kind, 7, 19), PATH) == (7, 19)
    assert parse_image_size(image_bytes(0, "PNG", 7, 19)[:60], PATH) == (7, 19)


def test_unknown_ids_are_counted_and_named() -> None:
    lookup = np.full(256, -1)
    lookup[:3] = [0, 5, 6]
    raw = np.array([[0, 1, 2], [2, 7, 9]], np.uint8)
    with pytest.raises(DataError, match=r"2 pixels with ids .* table: 7, 9"):
        map_pixels(raw, lookup, PATH)
    assert map_pixels(raw[:1], lookup, PATH).tolist() == [[0, 5, 6]]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_each_pixel_gets_the_label_under_its_centre(
    before_h: int, before_w: int, height: int, width: int
) -> None:
    labels = torch.arange(before_h * before_w).view(before_h, before_w)
    resized = nearest_pixels(labels, height, width)
    assert resized.shape == (height, width)
    for row in range(height):
        for col in range(width):
            # (row + 1/2) before / after in whole numbers; a centre on a border may fall either way.
            rows = divmod((2 * row + 1) * before_h, 2 * height)
            cols = divmod((2 * col + 1) * before_w, 2 * width)
            near_rows = {rows[0]} | ({rows[0] - 1} if rows[1] == 0 else set())
            near_cols = {cols[0]} | ({cols[0] - 1} if cols[1] == 0 else set())
            found = divmod(int(resized[row, col]), before_w)
            assert found[0] in near_rows
            assert found[1] in near_cols
    if (before_h, before_w) == (height, width):
        assert torch.equal(resized, labels)
