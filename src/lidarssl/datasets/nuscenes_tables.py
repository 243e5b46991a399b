"""The json tables of nuScenes: one dataclass per row, and a reader that checks every value.

Field names and order are those of the files, so ``dataclasses.asdict`` of a row writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, get_type_hints

from lidarssl.datasets.files import read_json_rows
from lidarssl.errors import DataError

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
Matrix = tuple[Vector, ...]
Tokens = tuple[str, ...]


class TableRow:
    """A row of ``<table>.json``."""

    __slots__ = ()
    table: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Scene(TableRow):
    table: ClassVar[str] = "scene"
    token: str
    log_token: str
    nbr_samples: int
    first_sample_token: str
    last_sample_token: str
    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Sample(TableRow):
    """A key frame; ``timestamp`` in microseconds, ``next`` empty at the end of a scene."""

    table: ClassVar[str] = "sample"
    token: str
    timestamp: int
    prev: str
    next: str
    scene_token: str


@dataclass(frozen=True, slots=True)
class SampleData(TableRow):
    """One sweep or image; ``filename`` relative to the root of the dataset."""

    table: ClassVar[str] = "sample_data"
    token: str
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    timestamp: int
    fileformat: str
    is_key_frame: bool
    height: int
    width: int
    filename: str
    prev: str = ""
    next: str = ""


@dataclass(frozen=True, slots=True)
class EgoPose(TableRow):
    """global_from_ego: metres, quaternion (w, x, y, z)."""

    table: ClassVar[str] = "ego_pose"
    token: str
    timestamp: int
    rotation: Quaternion
    translation: Vector


@dataclass(frozen=True, slots=True)
class CalibratedSensor(TableRow):
    """ego_from_sensor; ``camera_intrinsic`` is 3x3, empty for other sensors."""

    table: ClassVar[str] = "calibrated_sensor"
    token: str
    sensor_token: str
    translation: Vector
    rotation: Quaternion
    camera_intrinsic: Matrix = ()


@dataclass(frozen=True, slots=True)
class Sensor(TableRow):
    table: ClassVar[str] = "sensor"
    token: str
    channel: str
    modality: str


@dataclass(frozen=True, slots=True)
class Category(TableRow):
    """``index`` is the value in lidarseg files (absent from tables without lidarseg)."""

    table: ClassVar[str] = "category"
    token: str
    name: str
    description: str = ""
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Instance(TableRow):
    table: ClassVar[str] = "instance"
    token: str
    category_token: str
    nbr_annotations: int = 0
    first_annotation_token: str = ""
    last_annotation_token: str = ""


@dataclass(frozen=True, slots=True)
class SampleAnnotation(TableRow):
    """A box in the global frame; ``size`` is width, length, height in metres."""

    table: ClassVar[str] = "sample_annotation"
    token: str
    sample_token: str
    instance_token: str
    visibility_token: str
    attribute_tokens: Tokens
    translation: Vector
    size: Vector
    rotation: Quaternion
    prev: str = ""
    next: str = ""
    num_lidar_pts: int = 0
    num_radar_pts: int = 0


@dataclass(frozen=True, slots=True)
class LidarSeg(TableRow):
    table: ClassVar[str] = "lidarseg"
    token: str
    sample_data_token: str
    filename: str


@dataclass(frozen=True, slots=True)
class Panoptic(TableRow):
    table: ClassVar[str] = "panoptic"
    token: str
    sample_data_token: str
    filename: str


@dataclass(frozen=True, slots=True)
class Log(TableRow):
    table: ClassVar[str] = "log"
    token: str
    logfile: str
    vehicle: str
    date_captured: str
    location: str


@dataclass(frozen=True, slots=True)
class Map(TableRow):
    table: ClassVar[str] = "map"
    token: str
    log_tokens: Tokens
    category: str
    filename: str


@dataclass(frozen=True, slots=True)
class Attribute(TableRow):
    table: ClassVar[str] = "attribute"
    token: str
    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Visibility(TableRow):
    table: ClassVar[str] = "visibility"
    token: str
    level: str
    description: str = ""


Row = TypeVar("Row", bound=TableRow)
RawRow = dict[str, Any]


def read_rows(
    folder: Path, kind: type[Row], keep: Callable[[RawRow], bool] = lambda row: True
) -> Iterator[Row]:
    """Rows of ``<folder>/<table>.json`` that ``keep`` accepts, in the order of the file.

    Args:
        folder: folder of the version, e.g. ``v1.0-mini``.
        kind: one of the dataclasses above.
        keep: sees the row before its values are checked.

    Raises:
        DataError: the file is missing or malformed, or a value is missing or of another type.
    """
    path = folder / f"{kind.table}.json"
    columns = _columns(kind)
    for row in read_json_rows(path):
        if keep(row):
            yield _convert_row(row, kind, columns, path)


def parse_row(row: RawRow, kind: type[Row], path: Path) -> Row:
    """A checked row; keys that the dataclass does not know are ignored.

    Raises:
        DataError: a value is missing or of another type.
    """
    return _convert_row(row, kind, _columns(kind), path)


def _convert_row(row: RawRow, kind: type[Row], columns: list[_Column], path: Path) -> Row:
    values = {}
    for name, convert, required in columns:
        value = row.get(name)
        if value is None:
            if required:
                raise DataError(f"a row lacks '{name}': {str(row)[:120]}", path=path, field=name)
            continue
        try:
            values[name] = convert(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"'{name}' of a row is {str(value)[:80]!r} ({error})", path=path, field=name
            ) from error
    return kind(**values)


class _Column(NamedTuple):
    name: str
    convert: Callable[[Any], Any]
    required: bool


def _columns(kind: type[TableRow]) -> list[_Column]:
    hints = get_type_hints(kind)
    return [
        _Column(item.name, _CONVERT[hints[item.name]], item.default is MISSING)
        for item in fields(kind)  # type: ignore[arg-type]
    ]


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 1 << 63:
        raise TypeError("not a 64-bit integer")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("not true or false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")
    if not math.isfinite(number := float(value)):
        raise ValueError("not finite")
    return number


def _numbers(count: int) -> Callable[[Any], tuple[float, ...]]:
    def convert(value: Any) -> tuple[float, ...]:
        if not isinstance(value, list) or len(value) != count:
            raise ValueError(f"not {count} numbers")
        return tuple(_number(item) for item in value)

    return convert


def _quaternion(value: Any) -> tuple[float, ...]:
    numbers = _numbers(4)(value)
    if abs(math.hypot(*numbers) - 1) > 1e-2:
        raise ValueError("not a unit quaternion")
    return numbers


def _matrix(value: Any) -> tuple[tuple[float, ...], ...]:
    if not isinstance(value, list) or len(value) not in (0, 3):
        raise ValueError("neither empty nor 3 x 3")
    return tuple(_numbers(3)(row) for row in value)


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return tuple(_string(item) for item in value)


_CONVERT: dict[Any, Callable[[Any], Any]] = {
    str: _string,
    int: _integer,
    int | None: _integer,
    bool: _boolean,
    Vector: _numbers(3),
    Quaternion: _quaternion,
    Matrix: _matrix,
    Tokens: _strings,
}
