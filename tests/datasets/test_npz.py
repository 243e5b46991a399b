"""Archives of arrays: what NumPy writes is read, what could hurt is refused before it does."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from image_dataset_files import npz_bytes
from lidarssl.datasets.files import MEBIBYTE
from lidarssl.datasets.npz import MEMBER_LIMIT, Npz
from lidarssl.errors import DataError

PATH = Path("scan.npz")
ARRAYS = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.uint8, np.bool_, np.dtype(">f8")]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
)


def opened(data: bytes, limit: int = MEBIBYTE) -> Npz:
    return Npz(io.BytesIO(data), PATH, limit)


def archive_of(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@given(st.dictionaries(st.sampled_from(["a", "b", "pcloud_attr.row"]), ARRAYS, min_size=1))
def test_arrays_are_those_that_numpy_wrote(arrays: dict[str, np.ndarray]) -> None:
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **arrays)  # type: ignore[operator]
        archive = opened(stream.getvalue())
        assert set(archive.names) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(archive.array(name), array)
            header = archive.header(name)
            assert (header.shape, header.dtype) == (array.shape, array.dtype)


def test_fortran_order() -> None:
    table = np.asfortranarray(np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(opened(npz_bytes({"points": table})).array("points"), table)


def test_a_missing_array_is_named_beside_those_there() -> None:
    archive = opened(npz_bytes({"points": np.zeros((2, 3)), "row": np.zeros(2)}))
    with pytest.raises(DataError, match=r"scan.npz: has no array col \(arrays: points, row\)"):
        archive.array("col")
    with pytest.raises(DataError, match="has no array col, reflectance"):
        archive.require(["points", "col", "reflectance"])


def test_objects_are_never_unpickled() -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return pytest.fail, ("unpickled",)

    array = np.array([Bomb()], dtype=object)
    with pytest.raises(DataError, match="does not match"):
        opened(npz_bytes({"points": array})).array("points")


def test_a_zip_bomb_is_refused_by_what_it_announces() -> None:
    data = archive_of({"points.npy": npy(np.zeros(3 * MEBIBYTE, np.uint8))})
    assert len(data) < 10_000
    with pytest.raises(DataError, match="claims 3145856 bytes; at most 1048576 are read"):
        opened(data).array("points")


def test_a_zip_bomb_that_announces_little_is_cut_where_it_said() -> None:
    """The directory says 200 bytes of a member that goes on for 3 MiB."""
    content = npy(np.zeros(3 * MEBIBYTE, np.uint8))
    data = archive_of({"points.npy": content})
    lying = data.replace(struct.pack("<I", len(content)), struct.pack("<I", 200))
    assert lying != data
    with pytest.raises(DataError, match=r"scan\.npz"):
        opened(lying).array("points")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_bound_are_refused(compression: int) -> None:
    data = archive_of({"points.npy": npy(np.zeros(3))}, compression)
    with pytest.raises(DataError, match=f"compression {compression}"):
        opened(data).array("points")


def test_an_array_shorter_than_its_header_says() -> None:
    content = npy(np.zeros((100, 3)))
    data = archive_of({"points.npy": content[:-8]})
    assert opened(data).header("points").shape == (100, 3)
    with pytest.raises(DataError, match="does not match the 2392 bytes"):
        opened(data).array("points")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_archive(share: float) -> None:
    data = npz_bytes({"points": np.random.default_rng(0).normal(size=(50, 3))})
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        opened(data[: int(share * len(data))]).array("points")


def test_a_changed_byte_fails_the_checksum() -> None:
    data = bytearray(archive_of({"points.npy": npy(np.arange(50.0))}, zipfile.ZIP_STORED))
    data[300] ^= 1
    with pytest.raises(DataError, match="CRC"):
        opened(bytes(data)).array("points")


def test_too_many_members_and_names_twice() -> None:
    many = archive_of({f"{index}.npy": npy(np.zeros(1)) for index in range(MEMBER_LIMIT + 1)})
    with pytest.raises(DataError, match=f"holds {MEMBER_LIMIT + 1} members"):
        opened(many)
    with pytest.raises(DataError, match="holds 0 members"):
        opened(archive_of({}))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", npy(np.zeros(1)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.npy", npy(np.zeros(2)))
    with pytest.raises(DataError, match="2 members, of which 1 names"):
        opened(stream.getvalue())
