"""An image encoder that has already run: its feature maps come with the batch."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.images.base import ImageEncoder
from lidarssl.transforms.image_features import read_settings


class StoredTeacher(ImageEncoder):
    """What a method has to know of a teacher whose features are on disk.

    ``transforms.image_features.StoredFeatures`` of the same folder puts them into the frames, and
    the batch has them as ``image_features``.

    Attributes:
        folder: where they are.
        image_size: (height, width) of the resized images that they are of.
        antialias: whether the images were smoothed before they were reduced.

    Args:
        folder: of ``lidarssl prepare image-features``.

    Raises:
        DataError: the folder holds no features.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        settings = read_settings(self.folder)
        self.out_channels, self.stride, self.frozen = settings.channels, settings.stride, True
        self.image_size = settings.height, settings.width
        self.antialias = settings.antialias

    def forward(self, images: Tensor) -> Tensor:
        raise ConfigError(
            "this method asks its teacher for features of images that it crops or mirrors",
            path=self.folder,
            field="image_encoder",
            remedy="use features on disk with Scalr, or give the encoder itself",
        )
