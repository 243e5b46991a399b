"""The contract of an image encoder: images -> feature map."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """Frozen parts are explicit: eval mode and no gradient, whatever the trainer does.

    Attributes:
        out_channels: width of the feature map.
        stride: pixels per cell of the feature map.
        mean, std: RGB statistics of the images it was trained on, in [0, 1] units.
        frozen: True when no parameter of the encoder trains.
    """

    out_channels: int
    stride: int
    frozen: bool

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: (I, 3, H, W) RGB in [0, 1], not normalised.

        Returns:
            (I, out_channels, H / stride, W / stride), sizes rounded up.
        """

    def pooled(self, images: Tensor) -> Tensor:
        """One vector of each image: by default the mean over the cells of its map.

        Args:
            images: (I, 3, H, W) RGB in [0, 1], not normalised.

        Returns:
            (I, out_channels).
        """
        return self(images).mean(dim=(2, 3))
