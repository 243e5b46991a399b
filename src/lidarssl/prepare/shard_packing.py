"""What a frame of a dataset becomes in a shard, and what is noted of a split beside its frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.image_files import ImageFile
from lidarssl.datasets.shard_files import encode_frame
from lidarssl.datasets.shard_index import Share
from lidarssl.errors import DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.transforms.images import image_size
from lidarssl.transforms.superpixel_files import read_superpixels, superpixel_path
from lidarssl.transforms.superpixel_settings import read_settings

SKIPS = (*range(1, 11), 20, 25, 50, 100, 200, 500, 1000)
"""Shares of the labels that are noted, where a dataset has a rule of its own for them."""


@dataclass(frozen=True)
class PackedFrame:
    """What a frame becomes.

    Attributes:
        cameras: names.
        members: suffix and content of every file.
        originals: images whose file was taken as it is.
        images: all of them.
    """

    cameras: tuple[str, ...]
    members: tuple[tuple[str, bytes], ...]
    originals: int
    images: int


class Packer:
    """Turns frames of a dataset into files."""

    def __init__(self, dataset: Dataset, fields: Field, superpixels: Path | None) -> None:
        self.dataset, self.fields, self.superpixels = dataset, fields, superpixels

    def superpixels_made_with(self, split: str) -> dict[str, Any] | None:
        """Settings by name; None where there are no superpixels, or nobody noted."""
        if self.superpixels is None:
            made = self.dataset.superpixels_made_with(split)
            return None if made is None else dict(made.settings)
        settings = read_settings(self.superpixels)
        return None if settings is None else asdict(settings)

    def files(self, frame_id: FrameId) -> PackedFrame:
        # Decoded, because nothing else tells whether an image file is whole.
        frame = self.dataset.load(frame_id, self.fields)
        originals = self._originals(frame)
        return PackedFrame(
            tuple(camera.name for camera in frame.cameras),
            tuple(encode_frame(frame, originals, self._superpixels(frame))),
            len(originals),
            sum(camera.image is not None for camera in frame.cameras),
        )

    def _originals(self, frame: Frame) -> dict[int, bytes]:
        """Image files that hold exactly the pixels of an image, by number of the camera."""
        if all(camera.image is None for camera in frame.cameras):
            return {}
        again = self.dataset.load(frame.id, Field.IMAGES | Field.UNDECODED)
        return {
            number: image.data
            for number, camera in enumerate(again.cameras)
            if isinstance(image := camera.undecoded, ImageFile) and image.scale == 1
        }

    def _superpixels(self, frame: Frame) -> Mapping[int, Tensor]:
        found = {}
        for number, camera in enumerate(frame.cameras):
            if self.superpixels is not None:
                path = superpixel_path(self.superpixels, camera)
                found[number] = read_superpixels(path, image_size(camera))
            elif camera.superpixels is not None:
                found[number] = camera.superpixels
        return found


def label_shares(dataset: Dataset, split: str) -> dict[int, Share] | None:
    """What the dataset's own rules say of shares of the labels; None = it has none."""
    own = type(dataset)
    if (own.label_fraction, own.fraction_size, own.fraction_note) == (
        Dataset.label_fraction,
        Dataset.fraction_size,
        Dataset.fraction_note,
    ):
        return None
    row_of = {frame: row for row, frame in enumerate(dataset.frames(split))}
    found = {}
    for skip in SKIPS:
        try:
            rows = tuple(row_of[frame] for frame in dataset.label_fraction(split, skip))
            size, note = dataset.fraction_size(split, skip), dataset.fraction_note(split, skip)
        # No such share: there will be none of the shards either.
        except DataError:
            continue
        found[skip] = Share(rows, size, note)
    return found
