"""The contract of a dataset: disk -> Frame. No augmentation, no voxels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lidarssl.frame import Field, Frame, FrameId


@dataclass(frozen=True)
class ClassTable:
    """Train classes of a dataset.

    Attributes:
        names: ``names[0]`` is the ignored class.
        colors: RGB 0..255 of each class, for pictures.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Stream:
    """Some frames of a list that get a fixed share of the samples of a training.

    Attributes:
        name: for messages.
        weight: above 0; the share is the weight divided by the sum over all streams.
        frames: their rows in the list, one or more.
    """

    name: str
    weight: float
    frames: Sequence[int]


@dataclass(frozen=True)
class MadeWith:
    """What the superpixels that frames bring were made with.

    Attributes:
        settings: by name, as beside the files of the pass that made them.
        where: that is told, for messages.
    """

    settings: Mapping[str, Any]
    where: str


class Dataset(ABC):
    """One dataset on disk.

    Attributes:
        name: short name, the ``dataset`` of every ``FrameId``.
        classes: semantic train classes, index 0 ignored.
        box_classes: names of box labels.
        forward: direction of travel in the lidar frame, unit (x, y): pictures put it upwards.
        intensity_statistics: mean and standard deviation of the intensities of its scans, or None
            when nobody has measured them.
        lidar: False where frames are images alone, without points.
    """

    name: str
    classes: ClassTable
    box_classes: tuple[str, ...] = ()
    forward: tuple[float, float] = (1.0, 0.0)
    intensity_statistics: tuple[float, float] | None = None
    lidar: bool = True

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names accepted by ``frames``."""

    @abstractmethod
    def frames(self, split: str) -> list[FrameId]:
        """Ids of a split, in the order of the dataset's protocol.

        Raises:
            ConfigError: unknown split; names the closest.
            DataError: the split's files cannot be found.
        """

    @abstractmethod
    def provides(self, split: str) -> Field:
        """What frames of this split carry, as far as can be told without reading them all."""

    @abstractmethod
    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        """Read one frame; whatever of ``fields`` the dataset has, nothing else.

        Cameras (calibration) come with IMAGES; nothing is decoded that is not asked for. UNDECODED
        lets images stay as their files hold them; a dataset need not make use of that.

        Raises:
            DataError: a file is missing, truncated or inconsistent.
        """

    def label_fraction(self, split: str, skip: int) -> list[FrameId]:
        """The ids of ``split`` that the protocol keeps for a fraction 1/skip of the labels.

        Default: every skip-th frame of the split, starting at the first.
        """
        return self.frames(split)[::skip]

    def fraction_size(self, split: str, skip: int) -> int | None:
        """Frames that the protocol's list for a fraction 1/skip names, on disk or not.

        None where there is no such list, and ``label_fraction`` chooses among what is there.
        """
        return None

    def fraction_note(self, split: str, skip: int) -> str:
        """What a reader of results on 1/skip of the labels must know; empty = nothing."""
        return ""

    def absent(self, split: str) -> str:
        """What the official list of a split names and the disk lacks, in words; empty = nothing.

        Such frames are not in ``frames``; a dataset without lists cannot tell.
        """
        return ""

    def sequences(self, split: str) -> list[str]:
        """Sequences of a split, in order of first appearance."""
        return list(dict.fromkeys(frame.sequence for frame in self.frames(split)))

    def conditions(self, split: str) -> dict[str, list[FrameId]]:
        """Frames by weather and light, in the order in which results are told.

        Where other splits show the scenes of this one under other conditions, those too. Empty
        where a dataset does not tell.
        """
        return {}

    def superpixels_made_with(self, split: str) -> MadeWith | None:
        """How the superpixels of a split were made; None where there are none, or nobody noted."""
        return None

    def of(self, frame: FrameId) -> Dataset:
        """The dataset whose classes, colours and direction of travel are those of a frame."""
        return self

    def streams(self, frames: Sequence[FrameId]) -> tuple[Stream, ...]:
        """Parts of a list of frames that a training draws from by weight.

        Empty where every frame is drawn equally often.

        Raises:
            ConfigError: a part with a weight has no frame in the list.
        """
        return ()


def describe_missing(needs: Field, provided: Field) -> Sequence[str]:
    """Names of the fields in ``needs`` that are not ``provided``."""
    return [str(field.name).lower() for field in needs & ~provided]
