"""The contract of a pretraining method: a plain module that knows no trainer."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, FrameId, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.transforms.base import Transform


class Method(nn.Module):
    """One way to pretrain.

    Attributes:
        needs: what every frame must carry.
        title: how the literature writes its name.
    """

    needs: Field
    title: str

    @property
    @abstractmethod
    def student(self) -> Backbone:
        """The module that is the product."""

    @abstractmethod
    def transforms(self, training: bool) -> Sequence[Transform]:
        """What a frame goes through before it is collated."""

    def check_frames(self, dataset: Dataset, frames: Sequence[FrameId]) -> None:
        """Look whether what was to be prepared for these frames is there; by default nothing was.

        Raises:
            ConfigError: it is not.
        """

    @abstractmethod
    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """Loss of a batch.

        Args:
            batch: on the module's device.
            generator: CPU generator, the same on every rank, seeded by (seed, step).
        """


def check_prepared(
    folder: Path, suffix: str, dataset: Dataset, frames: Sequence[FrameId], remedy: str
) -> None:
    """Stop before the first step when a folder has fewer files than there are images.

    A pass that was killed, or that made one shard of several, would stop the run hours later.

    Args:
        folder: with a file for each image.
        suffix: of these files.
        dataset, frames: the images; each dataset of a mixture is taken to have as many cameras in
            every frame as in its first.
        remedy: how to make the others.

    Raises:
        ConfigError: too few files.
    """
    counts = Counter(frame.dataset for frame in frames)
    firsts = {frame.dataset: frame for frame in reversed(frames)}
    images = sum(
        counts[name] * len(dataset.load(frame, Field.IMAGES).cameras)
        for name, frame in firsts.items()
    )
    files = sum(1 for file in folder.iterdir() if file.suffix == suffix)
    if files < images:
        raise ConfigError(
            f"holds {files} files, the {len(frames)} frames have {images} images",
            path=folder,
            field="folder",
            remedy=remedy,
        )


def check_image_size(image_size: tuple[int, int], encoder: ImageEncoder) -> None:
    """Refuse images whose sides the cells of the encoder's map do not fill.

    Raises:
        ConfigError: a side is no multiple of the stride.
    """
    if any(size % encoder.stride for size in image_size):
        raise ConfigError(
            f"image_size {image_size} is not a multiple of the encoder's stride {encoder.stride}",
            field="method.augmentation.image_size",
            remedy="round it to a multiple",
        )
