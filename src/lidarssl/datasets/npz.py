"""Archives of NumPy arrays: nothing is unpickled, nothing allocated beyond what was announced."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lidarssl.datasets.files import MEBIBYTE
from lidarssl.datasets.point_files import parse_array, parse_npy_header
from lidarssl.errors import DataError

ARRAY_LIMIT = 256 * MEBIBYTE
MEMBER_LIMIT = 256
_HEADER_LIMIT = 12_000
_SUFFIX = ".npy"
# What NumPy writes; zipfile decompresses the others without a bound.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class ArrayHeader:
    """What an archive says of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Npz:
    """A .npz file; arrays are read one at a time.

    Attributes:
        names: of its arrays.

    Args:
        file: opened for reading, at any position; only the directory is read here.
        path: its name, for messages.
        limit: bytes of an array.

    Raises:
        DataError: not a zip archive, truncated, or with more than 256 members.
    """

    def __init__(self, file: BinaryIO, path: Path, limit: int = ARRAY_LIMIT) -> None:
        self._path, self._limit = path, limit
        try:
            self._archive = zipfile.ZipFile(file)
            members = self._archive.namelist()
        # A damaged directory fails in every way a parser can.
        except Exception as error:
            raise self._damaged(error) from error
        if not 0 < len(members) <= MEMBER_LIMIT or len(set(members)) != len(members):
            raise DataError(
                f"holds {len(members)} members, of which {len(set(members))} names",
                path=path,
                remedy=f"save between 1 and {MEMBER_LIMIT} arrays with numpy.savez",
            )
        self.names = tuple(name.removesuffix(_SUFFIX) for name in members if name.endswith(_SUFFIX))

    def header(self, name: str) -> ArrayHeader:
        """Shape and type of an array, from the first bytes of its member.

        Raises:
            DataError: no such array, or no such header.
        """
        shape, _, dtype, _ = parse_npy_header(self._read(name, _HEADER_LIMIT), self._path)
        return ArrayHeader(shape, dtype)

    def array(self, name: str) -> np.ndarray:
        """A plain numeric array.

        Raises:
            DataError: no such array, damaged, larger than announced or than the limit, or not of
                booleans, integers or floats.
        """
        announced = self._member(name).file_size
        if announced > self._limit:
            raise DataError(
                f"'{name}' claims {announced} bytes; at most {self._limit} are read",
                path=self._path,
                field=name,
                remedy="check that this is the file it claims to be",
            )
        # One byte more, so that the end of the member, and with it the checksum, is reached.
        data = self._read(name, announced + 1)
        try:
            return parse_array(data, self._path)
        except DataError as error:
            raise DataError(
                f"'{name}': {error.problem}",
                path=self._path,
                field=name,
                remedy=error.remedy or "get the file again",
            ) from error

    def require(self, names: Iterable[str]) -> None:
        """Check that the archive has these arrays.

        Raises:
            DataError: it lacks one.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise DataError(
                f"has no array {', '.join(missing)} (arrays: {', '.join(self.names)[:200]})",
                path=self._path,
                field=missing[0],
                remedy="get the file again",
            )

    def _member(self, name: str) -> zipfile.ZipInfo:
        self.require([name])
        return self._archive.getinfo(f"{name}{_SUFFIX}")

    def _read(self, name: str, size: int) -> bytes:
        member = self._member(name)
        try:
            if member.compress_type not in _COMPRESSIONS:
                raise ValueError(f"compression {member.compress_type}")
            with self._archive.open(member) as stream:
                return stream.read(size)
        # A member can be encrypted, cut, or fail its checksum.
        except Exception as error:
            raise self._damaged(error, name) from error

    def _damaged(self, error: Exception, field: str | None = None) -> DataError:
        return DataError(
            f"is not a readable .npz archive ({str(error)[:200]})",
            path=self._path,
            field=field,
            remedy="get the file again",
        )
