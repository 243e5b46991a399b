"""Inference by windows: a network trained on small crops sees a large image piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import ConfigError

Size = tuple[int, int]


@dataclass(frozen=True)
class SlidingWindow:
    """How an image of any size is brought to a network.

    Args:
        window: (height, width) in pixels of what the network sees at once; None = the whole
            image.
        stride: (down, right) in pixels from one window to the next.
        height: in pixels, to which images are resized before, aspect kept; the scores go back to
            the image's own size. None = as they are.
        chunk: windows of one pass, a matter of memory alone.

    Raises:
        ConfigError: the stride leaves pixels out, or a number is below 1.
    """

    window: Size | None = (224, 224)
    stride: Size = (168, 168)
    height: int | None = None
    chunk: int = 8

    def __post_init__(self) -> None:
        height = self.stride[0] if self.height is None else self.height
        numbers = [*self.stride, *(self.window or ()), height, self.chunk]
        if min(numbers) < 1:
            raise ConfigError(
                f"{min(numbers)} in {self}", field="inference", remedy="give numbers from 1 on"
            )
        pairs = zip(self.stride, self.window or self.stride, strict=True)
        if any(step > side for step, side in pairs):
            raise ConfigError(
                f"windows of {self.window} that move by {self.stride} leave pixels out",
                field="inference.stride",
                remedy="give a stride of at most the window",
            )

    def logits(self, images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Scores of every pixel.

        Args:
            images: (I, 3, H, W).
            network: (J, 3, h, w) -> (J, K, h, w), any size.

        Returns:
            (I, K, H, W).
        """
        size = (images.shape[-2], images.shape[-1])
        worked = size if self.height is None else size_at_height(size, self.height)
        scores = sliding_logits(
            resized(images, worked), network, self.window or worked, self.stride, self.chunk
        )
        return resized(scores, size)


def sliding_logits(
    images: Tensor,
    network: Callable[[Tensor], Tensor],
    window: Size,
    stride: Size,
    chunk: int = 8,
) -> Tensor:
    """Scores of every pixel, the mean over the windows that hold it.

    Windows start every ``stride`` pixels; the last ones are moved back to end with the image. An
    axis shorter than the window has one window, as long as the axis.

    Args:
        images: (I, 3, H, W).
        network: (J, 3, h, w) -> (J, K, h, w).
        window, stride: (down, right) in pixels.
        chunk: windows of one pass.

    Returns:
        (I, K, H, W).
    """
    size = (images.shape[-2], images.shape[-1])
    down, right = (min(side, whole) for side, whole in zip(window, size, strict=True))
    places = [
        (image, top, left)
        for image in range(len(images))
        for top in window_starts(size[0], window[0], stride[0])
        for left in window_starts(size[1], window[1], stride[1])
    ]
    total, visits = None, images.new_zeros((len(images), 1, *size))
    for first in range(0, len(places), chunk):
        now = places[first : first + chunk]
        scores = network(
            torch.stack([images[i, :, t : t + down, x : x + right] for i, t, x in now])
        )
        if total is None:
            total = scores.new_zeros((len(images), scores.shape[1], *size))
        for (image, top, left), score in zip(now, scores, strict=True):
            total[image, :, top : top + down, left : left + right] += score
            visits[image, :, top : top + down, left : left + right] += 1
    assert total is not None
    return total / visits


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis of ``length`` pixels."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride, length - window), 0) for number in range(count)]


def size_at_height(size: Size, height: int) -> Size:
    """(height, width) of an image resized to a height, aspect kept, halves rounded up."""
    return height, max(1, int(size[1] * height / size[0] + 0.5))


def resized(maps: Tensor, size: Size) -> Tensor:
    """Maps (I, C, H, W) brought to a size bilinearly, pixel centres at halves."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
