"""Both formats of superpixel files: what goes in comes out, whole or in part, or is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.transforms.superpixel_files import (
    SuperpixelFile,
    encode_superpixels,
    open_superpixels,
    read_superpixels,
)

SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=12)
IDS = st.one_of(
    arrays(np.int64, SHAPES, elements=st.integers(0, 2)),
    arrays(np.int64, SHAPES, elements=st.sampled_from([0, 3, 255, 256, 65535])),
)
WHOLE = encode_superpixels(torch.arange(24).reshape(4, 6) // 5, Path("a.runs"))


def file_of(ids: Tensor, suffix: str) -> SuperpixelFile:
    path = Path(f"a{suffix}")
    return SuperpixelFile(encode_superpixels(ids, path), path, (ids.shape[0], ids.shape[1]))


@pytest.mark.parametrize("suffix", [".runs", ".png"])
@given(array=IDS, data=st.data())
def test_any_rectangle_is_that_of_the_array(
    suffix: str, array: np.ndarray, data: st.DataObject
) -> None:
    parts = []
    for length in array.shape:
        start = data.draw(st.integers(0, length - 1))
        parts.append(slice(start, data.draw(st.integers(start + 1, length))))
    file = file_of(torch.from_numpy(array), suffix)
    assert file.decode().tolist() == array.tolist()
    assert file.decode(*parts).tolist() == array[tuple(parts)].tolist()


@pytest.mark.parametrize("suffix", [".runs", ".png"])
def test_files_of_both_formats_are_told_apart_by_what_they_hold(
    tmp_path: Path, suffix: str
) -> None:
    ids = torch.arange(24).reshape(4, 6) * 100
    other = tmp_path / {".runs": "a.png", ".png": "a.runs"}[suffix]
    other.write_bytes(encode_superpixels(ids, Path(f"a{suffix}")))
    found = read_superpixels(other, (4, 6))
    assert found.dtype == torch.int64
    assert torch.equal(found, ids)
    with pytest.raises(DataError, match="4 x 6"):
        open_superpixels(other, (6, 4))


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=8))
def test_a_damaged_file_is_refused_or_read_as_ids(place: int, bytes_there: bytes) -> None:
    damaged = WHOLE[:place] + bytes_there + WHOLE[place + len(bytes_there) :]
    try:
        ids = SuperpixelFile(damaged, Path("a.runs"), (4, 6)).decode()
    except DataError:
        return
    assert ids.shape == (4, 6)


def runs(ids: list[int], lengths: list[int], count: int | None = None, item: int = 1) -> bytes:
    header = struct.pack("<4sIIIB", b"RUN1", 2, 3, len(ids) if count is None else count, item)
    return header + zlib.compress(bytes(ids) + struct.pack(f"<{len(lengths)}H", *lengths))


def test_runs_that_claim_what_they_do_not_hold() -> None:
    def read(data: bytes) -> list[list[int]]:
        return SuperpixelFile(data, Path("a.runs"), (2, 3)).decode().tolist()

    assert read(runs([7, 8, 9], [3, 1, 2])) == [[7, 7, 7], [8, 9, 9]]
    assert read(runs([7, 5, 8], [3, 0, 3])) == [[7, 7, 7], [8, 8, 8]]
    bad = [
        runs([7, 8], [4, 2]),
        runs([7, 8], [3, 2]),
        runs([7, 8], [3, 4]),
        runs([], []),
        runs([7, 8], [3, 3], count=3),
        runs([7, 8], [3, 3], count=1),
        runs([7, 8], [3, 3], count=2**32 - 1),
        runs([7, 8], [3, 3], item=3),
        runs([7, 8], [3, 3])[:-3],
    ]
    for data in bad:
        with pytest.raises(DataError, match="do not decode"):
            read(data)


def test_a_file_that_unpacks_to_more_than_it_says_is_not_unpacked() -> None:
    header = struct.pack("<4sIIIB", b"RUN1", 2, 3, 2, 1)
    bomb = header + zlib.compress(b"\0" * 2**28)
    with pytest.raises(DataError, match="runs take 6 bytes"):
        SuperpixelFile(bomb, Path("a.runs"), (2, 3)).decode()


def test_images_wider_than_a_run_are_refused() -> None:
    wide = torch.zeros((1, 2**16), dtype=torch.int64)
    with pytest.raises(DataError, match="png"):
        encode_superpixels(wide, Path("a.runs"))
    encode_superpixels(wide, Path("a.png"))
