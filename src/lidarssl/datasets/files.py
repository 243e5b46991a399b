"""Bounded reads of files that nobody has vouched for: a size limit before every allocation."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from lidarssl.errors import DataError

MEBIBYTE = 1 << 20
POINT_FILE_LIMIT = 512 * MEBIBYTE
IMAGE_FILE_LIMIT = 64 * MEBIBYTE
TEXT_FILE_LIMIT = 64 * MEBIBYTE
ROW_LIMIT = MEBIBYTE
CHUNK = 4 * MEBIBYTE


def read_bytes(path: Path, limit: int, remedy: str | None = None) -> bytes:
    """Content of a file (see ``open_file``)."""
    with open_file(path, limit, remedy) as file:
        # As many bytes as are asked for are allocated before any is read.
        return file.read(min(limit, os.fstat(file.fileno()).st_size))


@contextmanager
def open_file(path: Path, limit: int, remedy: str | None = None) -> Iterator[BinaryIO]:
    """A regular file of at most ``limit`` bytes, to read from.

    Args:
        path: the file.
        limit: bytes.
        remedy: what to do when the file is missing.

    Raises:
        DataError: missing, not a regular file, unreadable or too large.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("is not a regular file", path=path, remedy=remedy)
        if status.st_size > limit:
            raise DataError(
                f"has {status.st_size} bytes; at most {limit} are read",
                path=path,
                remedy="check that this is the file it claims to be",
            )
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        remedy = remedy or "check that the dataset is complete"
        raise DataError("file not found", path=path, remedy=remedy) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", path=path) from error


def parse_json(data: bytes, path: str | Path) -> Any:
    """Value of a JSON document; NaN and infinities are refused.

    Raises:
        DataError: not UTF-8, not JSON, or nested too deeply.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _malformed_json(error, path) from error


def read_json(path: Path, limit: int = TEXT_FILE_LIMIT, remedy: str | None = None) -> Any:
    """``parse_json`` of a file."""
    return parse_json(read_bytes(path, limit, remedy), path)


def read_json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a top-level JSON array, one at a time: tables of a gigabyte in little memory.

    Raises:
        DataError: missing, not UTF-8, not an array of objects, or an object above 1 MiB.
    """
    if not path.is_file():
        raise DataError("file not found", path=path, remedy="unpack the dataset's json tables")
    try:
        with path.open(encoding="utf-8") as file:
            yield from iterate_json_rows(iter(lambda: file.read(CHUNK), ""), path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", path=path) from error


def iterate_json_rows(chunks: Iterator[str], path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON array that arrives in pieces (see ``read_json_rows``)."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    text, position, separator = "", 0, "["
    while True:
        position = _skip_space(text, position)
        token, end = _next_token(text, position, separator, decoder, path)
        if token is None:
            chunk = next(chunks, "")
            if not chunk or len(text) - position > ROW_LIMIT + CHUNK:
                raise DataError(
                    f"malformed JSON near '{text[position : position + 40]}'",
                    path=path,
                    remedy="unpack the file again; it must be an array of objects",
                )
            text, position = text[position:] + chunk, 0
            continue
        position = end
        if isinstance(token, dict):
            yield token
            separator = ",]"
        elif token == "]":
            _check_nothing_follows(text, position, chunks, path)
            return
        else:
            separator = "{]" if token == "[" else "{"


def _next_token(
    text: str, position: int, expected: str, decoder: json.JSONDecoder, path: Path
) -> tuple[Any, int]:
    """The next punctuation or object, and where it ends; None when the text runs out."""
    if position >= len(text):
        return None, position
    character = text[position]
    if character not in expected:
        raise DataError(
            f"malformed JSON: found '{text[position : position + 40]}' instead of one of "
            f"{' '.join(expected)}",
            path=path,
            remedy="unpack the file again; it must be an array of objects",
        )
    if character != "{":
        return character, position + 1
    try:
        return decoder.raw_decode(text, position)
    except json.JSONDecodeError:
        return None, position
    except (ValueError, RecursionError) as error:
        raise _malformed_json(error, path) from error


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return position if match is None else match.end()


def _check_nothing_follows(text: str, position: int, chunks: Iterator[str], path: Path) -> None:
    rest = text[position:]
    while not rest.strip(" \t\r\n"):
        rest = next(chunks, "")
        if not rest:
            return
    raise DataError("malformed JSON: text after the array", path=path)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _malformed_json(error: BaseException, path: str | Path) -> DataError:
    return DataError(
        f"malformed JSON ({str(error)[:200]})", path=path, remedy="unpack or write the file again"
    )


def read_text(path: Path, limit: int = TEXT_FILE_LIMIT, remedy: str | None = None) -> str:
    """Content of a small ASCII or UTF-8 file."""
    return decode_text(read_bytes(path, limit, remedy), path)


def decode_text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("is not a text file", path=path) from error


def parse_numbers(words: Sequence[str], path: Path, field: str) -> list[float]:
    """Finite numbers.

    Raises:
        DataError: a word is not a finite number.
    """
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"{str(error)[:200]}", path=path, field=field) from error
    if not all(math.isfinite(number) for number in numbers):
        raise DataError("a number is NaN or infinite", path=path, field=field)
    return numbers


def resolve_inside(root: Path, relative: str, table: Path) -> Path:
    """``root / relative``, for a file name that came out of a table.

    Args:
        root: folder of the dataset.
        relative: POSIX path as written in the table.
        table: the table, for the message.

    Raises:
        DataError: absolute, empty, or climbing out of ``root``.
    """
    parts = PurePosixPath(relative).parts
    if (
        not parts
        or relative.startswith("/")
        or ".." in parts
        or any(character in relative for character in "\\\0:")
    ):
        raise DataError(
            f"the file name {relative[:200]!r} does not stay inside the dataset",
            path=table,
            field="filename",
            remedy="do not use this table; get it from the dataset's publisher",
        )
    return root.joinpath(*parts)


def check_name(name: str, path: Path | None, field: str) -> str:
    """``name``, when it can be a part of a file name.

    Raises:
        DataError: empty, ``.``, ``..``, hidden, longer than 200 characters, or with a separator.
    """
    if not re.fullmatch(r"[^\\/\0:\s.][^\\/\0:\r\n]{0,199}", name):
        raise DataError(f"{name[:200]!r} cannot be used as a name", path=path, field=field)
    return name


def list_names(folder: Path, suffixes: Iterable[str]) -> list[str]:
    """Sorted names of the files in ``folder`` that end in one of ``suffixes`` (not hidden)."""
    endings = tuple(suffixes)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return []
    return sorted(name for name in names if name.endswith(endings) and not name.startswith("."))
