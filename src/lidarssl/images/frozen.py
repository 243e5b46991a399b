"""What every image encoder shares: normalisation inside, and frozen parts that stay frozen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Self

import torch
from torch import Tensor

from lidarssl.images.base import ImageEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Colours from -1 to 1, which many vision transformers of timm were trained on.
HALF = (0.5, 0.5, 0.5)


class FreezableEncoder(ImageEncoder):
    """An encoder that normalises its input and can be frozen as a whole.

    A frozen encoder stays in eval mode (batch norm, dropout, stochastic depth) through
    ``train()`` of any parent module, holds no trainable parameter and records no graph.

    Attributes:
        mean, std: (3, 1, 1) RGB statistics in [0, 1] units, not part of the state dict.

    Args:
        out_channels: width of the feature map.
        stride: pixels per cell of the feature map.
        mean, std: RGB statistics of the images the encoder was trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        out_channels: int,
        stride: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.out_channels, self.stride, self.frozen = out_channels, stride, False
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features of images that are already normalised: the network itself."""

    def forward(self, images: Tensor) -> Tensor:
        with self.recording():
            return self.features(self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] by the statistics of those that the encoder was trained on."""
        return (images - self.mean) / self.std

    def recording(self) -> AbstractContextManager[object]:
        """Record no graph while the encoder is frozen."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen)

    def freeze(self) -> Self:
        """Stop every parameter from training, for good."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)
