"""The contract of a pretraining method: a plain module that knows no trainer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.transforms.base import Transform


@dataclass(frozen=True)
class PreparedFiles:
    """A file for each image, made by a pass over the dataset.

    Attributes:
        folder: of the files.
        suffix: of each; several where any of them will do.
        made_by: the pass.
    """

    folder: Path
    suffix: str | tuple[str, ...]
    made_by: str


class Method(nn.Module):
    """One way to pretrain.

    Attributes:
        needs: what every frame must carry.
        title: how the literature writes its name.
        student_argument: the constructor's argument that is the student.
        progress: fraction of the run that is done, in [0, 1); set before each step by who trains.
    """

    needs: Field
    title: str
    student_argument: str = "backbone"
    progress: float = 0.0

    @property
    @abstractmethod
    def student(self) -> Backbone | ImageEncoder:
        """The module that is the product."""

    @property
    def lidar_encoder(self) -> Backbone:
        """The network that reads the points: the student, or what teaches it."""
        assert isinstance(self.student, Backbone)
        return self.student

    @abstractmethod
    def transforms(self, training: bool) -> Sequence[Transform]:
        """What a frame goes through before it is collated."""

    @property
    def prepared(self) -> Sequence[PreparedFiles]:
        """What has to be on disk for every image that it meets; by default nothing."""
        return ()

    def check_dataset(self, dataset: Dataset, split: str) -> None:
        """Refuse frames that were prepared otherwise than it asks for; by default none.

        Raises:
            ConfigError: says what differs.
        """

    @abstractmethod
    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """Loss of a batch.

        Args:
            batch: on the module's device.
            generator: CPU generator, the same on every rank, seeded by (seed, step).
        """


def check_image_size(
    image_size: tuple[int, int], encoder: ImageEncoder, view: str = "augmentation"
) -> None:
    """Refuse images whose sides the cells of the encoder's map do not fill.

    Args:
        image_size: (height, width).
        encoder: of the images.
        view: the option of the method that holds the size.

    Raises:
        ConfigError: a side is no multiple of the stride.
    """
    if any(size % encoder.stride for size in image_size):
        raise ConfigError(
            f"image_size {image_size} is not a multiple of the encoder's stride {encoder.stride}",
            field=f"method.{view}.image_size",
            remedy="round it to a multiple",
        )


def zero_through(*tensors: Tensor) -> Tensor:
    """0 with a gradient of 0 for every tensor: some term has nothing to say of it in this batch."""
    return torch.cat([tensor.flatten()[:0] for tensor in tensors]).sum()
