"""The files of one frame, read from its shard in as few ranges as they allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lidarssl.datasets.byte_ranges import Store
from lidarssl.datasets.image_files import ImageFile
from lidarssl.datasets.shard_files import (
    parse_column,
    parse_ids,
    parse_member,
    stored_image,
)
from lidarssl.datasets.shard_frames import REMEDY, Description, parse_description
from lidarssl.datasets.shard_index import Place
from lidarssl.errors import DataError
from lidarssl.wording import counted

GAP = 64 << 10
"""Bytes between two files of a frame that are read along rather than asked for by themselves."""


class StoredFrame:
    """Some files of a frame.

    Args:
        store, shard: where they are.
        places: of the files, in order.

    Raises:
        DataError: they cannot be read, or others are there.
    """

    def __init__(self, store: Store, shard: str, places: Sequence[Place]) -> None:
        self._shard = store.where(shard)
        self._names = {(one.member.kind, one.member.camera): one.name for one in places}
        self._contents: dict[str, memoryview] = {}
        for run in runs(places):
            first = run[0].offset
            data = memoryview(store.read_range(shard, first, run[-1].end - first))
            for place in run:
                part = data[place.offset - first : place.end - first]
                self._contents[place.name] = parse_member(
                    part, place.name, place.size, place.check, self._where(place.name)
                )

    def description(self) -> Description:
        name = self._names["frame", None]
        return parse_description(bytes(self._contents[name]), self._where(name))

    def column(self, kind: str, count: int) -> Tensor | None:
        """A column of the points, or None where it was not read."""
        if (kind, None) not in self._names:
            return None
        name = self._names[kind, None]
        return parse_column(self._contents[name], self._path(name), kind, count)

    def labels(self, kind: str, count: int, classes: int | None = None) -> Tensor | None:
        """A column of ids from 0; ``classes``: below that.

        Raises:
            DataError: an id is not.
        """
        ids = self.column(kind, count)
        return ids if ids is None else self._checked(ids, kind, None, classes)

    def image(self, camera: int, scale: float, size: tuple[int, int]) -> ImageFile | None:
        """An image; ``size`` is that before scaling. None where it was not read."""
        if ("image", camera) not in self._names:
            return None
        return stored_image(*self._file("image", camera), scale, size)

    def ids(
        self, kind: str, camera: int, size: tuple[int, int], classes: int | None = None
    ) -> Tensor | None:
        """(H, W) int64 at the size as stored; None where they were not read."""
        if (kind, camera) not in self._names:
            return None
        return self._checked(parse_ids(*self._file(kind, camera), size), kind, camera, classes)

    def error(self, problem: str, kind: str = "frame", camera: int | None = None) -> DataError:
        """An error of one of the files."""
        where = self._where(self._names[kind, camera])
        return DataError(problem, path=where, field=kind, remedy=REMEDY)

    def _checked(self, ids: Tensor, kind: str, camera: int | None, classes: int | None) -> Tensor:
        low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
        if low < 0 or (classes is not None and high >= classes):
            those = "" if classes is None else f" of {counted(classes, 'class', 'classes')}"
            raise self.error(f"ids {low}..{high} are not those{those}", kind, camera)
        return ids

    def _file(self, kind: str, camera: int | None = None) -> tuple[bytes, Path]:
        name = self._names[kind, camera]
        return bytes(self._contents[name]), self._path(name)

    def _path(self, name: str) -> Path:
        return Path(self._where(name))

    def _where(self, name: str) -> str:
        return f"{self._shard}/{name}"


def runs(places: Sequence[Place]) -> list[list[Place]]:
    """The files in groups that are read at once."""
    found: list[list[Place]] = []
    for place in places:
        if found and place.offset - found[-1][-1].end <= GAP:
            found[-1].append(place)
        else:
            found.append([place])
    return found
