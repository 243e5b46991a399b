"""Shards: frames of any dataset, packed into tar files, read from a disk or from object storage.

``lidarssl data shard`` writes them; ``shard_files`` and ``shard_index`` describe the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from lidarssl.datasets.base import ClassTable, Dataset, MadeWith
from lidarssl.datasets.byte_ranges import Store, open_store
from lidarssl.datasets.image_files import (
    check_scale,
    resize_intrinsics,
    scaled_size,
    with_image,
)
from lidarssl.datasets.label_images import nearest_pixels
from lidarssl.datasets.shard_files import Member
from lidarssl.datasets.shard_frames import REMEDY, Description
from lidarssl.datasets.shard_index import (
    FRAMES_LIMIT,
    INDEX_FILE,
    INDEX_LIMIT,
    FrameTable,
    Layout,
    Share,
    SplitEntry,
    frames_file,
)
from lidarssl.datasets.shard_parsing import parse_frame_table, parse_index
from lidarssl.datasets.shard_reader import StoredFrame
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import Camera, Field, Frame, FrameId

_FIELD_OF = {
    "image": Field.IMAGES,
    "superpixels": Field.SUPERPIXELS,
    "labels": Field.IMAGE_LABELS,
    "semantic": Field.SEMANTIC,
    "instance": Field.INSTANCE,
}
_NO_INDEX = (
    "give the folder that holds the shards; where packing was interrupted, run the same "
    "`lidarssl data shard` once more"
)
_PIXELS = Field.IMAGES | Field.SUPERPIXELS | Field.IMAGE_LABELS


class Shards(Dataset):
    """Frames as the dataset loaded them that ``lidarssl data shard`` packed, under its name.

    Name, classes, boxes, splits, shares of the labels, conditions and the direction of travel are
    those of that dataset. Of a frame only the files that are asked for are read.

    Args:
        root: a folder, ``https://HOST/FOLDER``, or ``s3://BUCKET/FOLDER`` (``gs``, ``az``, ...;
            needs the package of fsspec for it).
        cameras: names to read, in this order; default: all.
        image_scale: factor on the size of images and their labels, in (0, 1].
        intensity_statistics: mean and standard deviation of the intensities, where the dataset did
            not know them.

    Raises:
        ConfigError: an address that cannot be read, an unknown camera, or a wrong image scale.
        DataError: there is no index, or a malformed one.
    """

    name = "shards"
    classes = ClassTable(("ignored",), ((0, 0, 0),))

    def __init__(
        self,
        root: str | Path,
        cameras: Sequence[str] | None = None,
        image_scale: float = 1.0,
        intensity_statistics: tuple[float, float] | None = None,
    ) -> None:
        self._store: Store = open_store(root)
        self.image_scale = check_scale(image_scale)
        index = parse_index(
            self._store.read(INDEX_FILE, INDEX_LIMIT, _NO_INDEX),
            self._store.where(INDEX_FILE),
        )
        self.name, self.lidar, self.classes = index.dataset, index.lidar, index.classes
        self.box_classes, self.forward = index.box_classes, index.forward
        self.intensity_statistics = intensity_statistics or index.intensity_statistics
        self._entries = index.splits
        self.chosen = None if cameras is None else self._checked(cameras)
        self._splits: dict[str, _Split] = {}

    def _checked(self, cameras: Sequence[str]) -> tuple[str, ...]:
        known = {name for entry in self._entries.values() for name in entry.cameras}
        for camera in cameras:
            if camera not in known:
                raise unknown_name("camera", camera, sorted(known))
        return tuple(cameras)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def frames(self, split: str) -> list[FrameId]:
        return list(self._split(split).ids)

    def provides(self, split: str) -> Field:
        entry = self._entry(split)
        seen = entry.cameras if self.chosen is None else set(self.chosen) & set(entry.cameras)
        return entry.provides if seen else entry.provides & ~_PIXELS

    def superpixels_made_with(self, split: str) -> MadeWith | None:
        settings = self._entry(split).superpixels
        return None if settings is None else MadeWith(settings, self._store.where(INDEX_FILE))

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        """The frames that the dataset's own rule keeps, as far as they were noted when packing.

        Raises:
            ConfigError: they were not.
        """
        frames, share = self.frames(split), self._share(split, skip)
        return frames[::skip] if share is None else [frames[row] for row in share.rows]

    def fraction_size(self, split: str, skip: int) -> int | None:
        share = self._share(split, skip)
        return None if share is None else share.size

    def fraction_note(self, split: str, skip: int) -> str:
        share = self._share(split, skip)
        return "" if share is None else share.note

    def absent(self, split: str) -> str:
        return self._split(split).table.absent

    def conditions(self, split: str) -> dict[str, list[FrameId]]:
        """As the dataset tells, as far as the frames are in the shards."""
        told = {
            name: [FrameId(self.name, *frame) for frame in frames]
            for name, frames in self._split(split).table.conditions.items()
        }
        here = {frame for name in self.splits for frame in self.frames(name)} if told else set()
        found = {name: [one for one in frames if one in here] for name, frames in told.items()}
        return {name: frames for name, frames in found.items() if frames}

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        split = self._split_of(frame)
        row = split.rows[frame]
        layout = split.table.layouts[split.table.rows[row].layout]
        cameras = self._numbers(layout)
        places = [
            place for place in split.table.places(row) if _is_wanted(place.member, fields, cameras)
        ]
        stored = StoredFrame(self._store, split.table.shard_of(row).name, places)
        told = stored.description()
        names = tuple(one.name for one in told.cameras)
        if told.id != frame or names != layout.cameras:
            raise stored.error(
                f"holds frame {told.id} with cameras {', '.join(names) or 'none'} where its index "
                f"says {frame} with {', '.join(layout.cameras) or 'none'}"
            )
        return self._frame(stored, told, fields, cameras)

    def _frame(
        self, stored: StoredFrame, told: Description, fields: Field, cameras: Sequence[int]
    ) -> Frame:
        points, intensity = (stored.column(kind, told.count) for kind in ("points", "intensity"))
        assert points is not None
        assert intensity is not None
        seen = cameras if fields & _PIXELS else ()
        found = (self._camera(stored, told, number, fields) for number in seen)
        return Frame(
            id=told.id,
            intensity_statistics=self.intensity_statistics,
            points=points,
            intensity=intensity,
            ring=stored.column("ring", told.count),
            time=stored.column("time", told.count),
            cameras=tuple(camera for camera in found if camera is not None),
            pose=told.pose if Field.POSE in fields else None,
            semantic=stored.labels("semantic", told.count, len(self.classes)),
            instance=stored.labels("instance", told.count),
            boxes=told.boxes if Field.BOXES in fields else None,
        )

    def _camera(
        self, stored: StoredFrame, told: Description, number: int, fields: Field
    ) -> Camera | None:
        """A camera with what was read of it; None where that is nothing."""
        size = told.sizes[number]
        after = scaled_size(*size, self.image_scale)
        image = stored.image(number, self.image_scale, size)
        superpixels = stored.ids("superpixels", number, size)
        labels = stored.ids("labels", number, size, len(self.classes))
        if image is None and superpixels is None and labels is None:
            return None
        camera = replace(
            told.cameras[number],
            superpixels=_resized(superpixels, after),
            labels=_resized(labels, after),
        )
        if image is not None:
            return with_image(camera, image, fields)
        return replace(camera, intrinsics=resize_intrinsics(camera.intrinsics, size, after))

    def _numbers(self, layout: Layout) -> list[int]:
        """Which cameras of a frame to read, in order."""
        names = layout.cameras if self.chosen is None else self.chosen
        return [layout.cameras.index(name) for name in names if name in layout.cameras]

    def _entry(self, split: str) -> SplitEntry:
        if split not in self._entries:
            raise unknown_name("split", split, self.splits)
        return self._entries[split]

    def _split(self, split: str) -> _Split:
        if split not in self._splits:
            entry, name = self._entry(split), frames_file(split)
            path = self._store.where(name)
            table = parse_frame_table(self._store.read(name, FRAMES_LIMIT), path)
            _check_entry(entry, table.entry, path)
            self._splits[split] = _Split(self.name, table, path)
        return self._splits[split]

    def _split_of(self, frame: FrameId) -> _Split:
        """The split that holds a frame; of those that were looked at before, if one does."""
        for name in dict.fromkeys([*self._splits, *self._entries]):
            if frame in self._split(name).rows:
                return self._split(name)
        raise DataError(
            f"there is no frame {frame}",
            path=self._store.where(INDEX_FILE),
            field="token",
            remedy="use an id that frames() returned",
        )

    def _share(self, split: str, skip: int) -> Share | None:
        """What was noted of a share; None where any is every skip-th frame."""
        shares = self._split(split).table.shares
        if shares is None:
            return None
        if skip not in shares:
            raise ConfigError(
                f"the frames of 1/{skip} of the labels were not noted when '{split}' was packed",
                field="skip",
                remedy=f"noted are {', '.join(map(str, shares))}; take the dataset itself for "
                "another share",
            )
        return shares[skip]


class _Split:
    """The frames of a split: ids in order, and the row of each."""

    def __init__(self, dataset: str, table: FrameTable, path: str) -> None:
        self.table = table
        self.ids = [FrameId(dataset, row.sequence, row.token) for row in table.rows]
        self.rows = {frame: row for row, frame in enumerate(self.ids)}
        if len(self.rows) < len(self.ids):
            raise DataError("names a frame twice", path=path, field="frames", remedy=REMEDY)


def _check_entry(told: SplitEntry, found: SplitEntry, path: str) -> None:
    """Compare what ``index.json`` tells of a split with its table at ``path``."""
    told_of, there = asdict(told), asdict(found)
    differs = [name for name in there if told_of[name] != there[name]]
    if differs:
        raise DataError(
            f"does not fit {INDEX_FILE}, which tells of other {', '.join(differs)}",
            path=path,
            field=", ".join(differs),
            remedy="copy or upload all files of one packing",
        )


def _is_wanted(member: Member, fields: Field, cameras: Sequence[int]) -> bool:
    asked = _FIELD_OF.get(member.kind)
    return (asked is None or asked in fields) and (
        member.camera is None or member.camera in cameras
    )


def _resized(ids: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    return None if ids is None else nearest_pixels(ids, *size)
