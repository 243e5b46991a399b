"""JSON <-> frozen dataclasses, strictly: an unknown, missing or ill-typed key is an error."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from lidarssl.errors import DataError

MAX_BYTES = 64 * 1024**2
_T = TypeVar("_T")


def write(path: Path, value: object) -> None:
    """Write a dataclass (nested ones, tuples, dicts, enums included) as indented JSON.

    Raises:
        DataError: it holds a number that JSON cannot (NaN, infinity).
    """
    try:
        text = json.dumps(encode(value), indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DataError(
            f"cannot be written as JSON ({error})", path=path, remedy="use None for 'no value'"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    part.replace(path)


def read(path: Path, kind: type[_T]) -> _T:
    """Read a file that ``write`` made.

    Raises:
        DataError: the file is missing, too large, not JSON, or not exactly a ``kind``.
    """
    try:
        return typing.cast(_T, decode(kind, _parse(path), ""))
    except DataError as error:
        raise DataError(
            error.problem, path=path, field=error.field or None, remedy=error.remedy
        ) from error


def encode(value: object) -> Any:
    """Plain JSON values of a dataclass."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return value.value if isinstance(value, enum.Enum) else value


def decode(kind: Any, value: Any, where: str) -> Any:
    """``value`` as a ``kind``: dataclass, enum, tuple[T, ...], dict[str, T], T | None or scalar.

    Args:
        where: dotted path of the value in its file, for the error.
    """
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _decode_optional(kind, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    if origin is tuple:
        _expect(isinstance(value, list), "a list", value, where)
        item = typing.get_args(kind)[0]
        return tuple(decode(item, one, f"{where}[{i}]") for i, one in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), "an object", value, where)
        item = typing.get_args(kind)[1]
        return {key: decode(item, one, f"{where}.{key}") for key, one in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        names = [member.value for member in kind]
        _expect(value in names, f"one of {', '.join(map(repr, names))}", value, where)
        return kind(value)
    return _decode_scalar(kind, value, where)


def _decode_optional(kind: Any, value: Any, where: str) -> Any:
    if value is None:
        return None
    (inner,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
    return decode(inner, value, where)


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), "an object", value, where)
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    prefix = f"{where}." if where else ""
    for name in names:
        if name not in value:
            raise DataError("missing key", field=prefix + name)
    for name in value:
        if name not in names:
            raise DataError(
                f"unknown key; a {kind.__name__} has {', '.join(names)}", field=prefix + str(name)
            )
    decoded = {name: decode(hints[name], value[name], prefix + name) for name in names}
    try:
        return kind(**decoded)
    except DataError as error:
        raise DataError(
            error.problem, field=prefix + (error.field or ""), remedy=error.remedy
        ) from error


def _decode_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        _expect(abs(value) < 2**1000, "a finite number", value, where)
        return float(value)
    good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _expect(good, f"a {kind.__name__}", value, where)
    if kind is float:
        _expect(math.isfinite(value), "a finite number (null for none)", value, where)
    return value


def _expect(condition: bool, expected: str, value: object, where: str) -> None:
    if not condition:
        raise DataError(f"expected {expected}, found {repr(value)[:60]}", field=where)


def _parse(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"larger than {MAX_BYTES >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError("file not found") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not valid JSON ({error})", remedy="the run may have been interrupted: run it again"
        ) from error
