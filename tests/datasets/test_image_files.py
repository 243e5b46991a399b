"""Images: exact decoding, scaling that agrees with the intrinsics, hostile files."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset_files import encode_image, image_bytes
from lidarssl.datasets.image_files import (
    check_scale,
    open_image,
    parse_image,
    resize_intrinsics,
    scaled_size,
)
from lidarssl.errors import ConfigError, DataError

PATH = Path("image")


def blob(height: int, width: int, row: float, column: float) -> np.ndarray:
    """A bright spot on black."""
    rows, columns = np.mgrid[:height, :width]
    spot = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 12.0**2))
    return np.repeat((255 * spot).astype(np.uint8)[:, :, None], 3, axis=2)


def centre(image: torch.Tensor) -> tuple[float, float]:
    weight = image.double().mean(0)
    rows = torch.arange(weight.shape[0]).double()
    columns = torch.arange(weight.shape[1]).double()
    total = weight.sum()
    return float((weight.sum(1) @ rows) / total), float((weight.sum(0) @ columns) / total)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_lossless_images_come_back_exactly(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
    image, size = parse_image(encode_image(pixels, kind), PATH)
    assert size == (7, 11)
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.37, 0.25, 0.11])
@pytest.mark.parametrize(("height", "width"), [(240, 320), (241, 323)])
def test_a_scaled_image_shows_a_thing_where_the_intrinsics_say(
    kind: str, scale: float, height: int, width: int
) -> None:
    data = encode_image(blob(height, width, 150.0, 80.0), kind)
    image, size = parse_image(data, PATH, scale)
    assert size == (height, width)
    assert image.shape[1:] == scaled_size(height, width, scale)
    point = torch.tensor([80.0, 150.0, 1.0]).double()
    resized = resize_intrinsics(torch.eye(3).double(), size, (image.shape[1], image.shape[2]))
    column, row, _ = (resized @ point).tolist()
    assert centre(image) == pytest.approx((row, column), abs=0.08)


@given(
    before=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    after=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
)
def test_resizing_keeps_the_borders(before: tuple[int, int], after: tuple[int, int]) -> None:
    """Outer pixel edges (-0.5 and size - 0.5) go to outer pixel edges."""
    resize = resize_intrinsics(torch.eye(3).double(), before, after)
    low = resize @ torch.tensor([-0.5, -0.5, 1.0]).double()
    high = resize @ torch.tensor([before[1] - 0.5, before[0] - 0.5, 1.0]).double()
    assert low[:2].tolist() == pytest.approx([-0.5, -0.5])
    assert high[:2].tolist() == pytest.approx([after[1] - 0.5, after[0] - 0.5])


def png_claiming(height: int, width: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


@pytest.mark.parametrize(("height", "width"), [(8_000, 8_000), (2**31 - 1, 2**31 - 1)])
def test_absurd_sizes_are_refused_before_decoding(height: int, width: int) -> None:
    data = png_claiming(height, width) + struct.pack(">I", 0) + b"IDAT" + bytes(4)
    with pytest.raises(DataError, match=r"pixels|decode"):
        parse_image(data, PATH)


def test_sixteen_bits_and_other_formats_are_refused() -> None:
    deep = encode_image(np.zeros((4, 4), np.uint16), "PNG")
    with pytest.raises(DataError, match="8 bits per channel"):
        parse_image(deep, PATH)
    with pytest.raises(DataError, match="does not decode"):
        parse_image(encode_image(np.zeros((4, 4, 3), np.uint8), "TIFF"), PATH)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_images_do_not_decode(kind: str) -> None:
    data = image_bytes(0, kind)
    with pytest.raises(DataError, match="does not decode"):
        parse_image(data[: len(data) // 2], PATH)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.01, float("nan")])
def test_scales_outside_0_to_1_are_refused(scale: float) -> None:
    with pytest.raises(ConfigError):
        check_scale(scale)


def test_no_more_than_the_header_is_read_before_decoding(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    data = encode_image(pixels, "PNG")
    path.write_bytes(data[:64])
    image = open_image(path)
    assert image.size == image.full_size == (60, 80)
    with pytest.raises(DataError, match=r"image\.png"):
        image.decode()
    path.write_bytes(data)
    assert torch.equal(image.decode(), torch.from_numpy(pixels).permute(2, 0, 1))
    path.unlink()
    with pytest.raises(DataError, match="not found"):
        image.decode()


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name, problem in (("nothing.png", "not found"), ("text.png", "does not decode")):
        with pytest.raises(DataError, match=problem) as raised:
            open_image(tmp_path / name)
        assert raised.value.path == tmp_path / name
    with pytest.raises(DataError, match="not a regular file"):
        open_image(tmp_path)
