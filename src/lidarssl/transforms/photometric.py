"""Other light and other colours: what a camera may do to a scene.

The rules are those of mmsegmentation's PhotoMetricDistortion, on [0, 1] instead of bytes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lidarssl.frame import Camera, Frame
from lidarssl.transforms.images import image_of

Range = tuple[float, float]


class PhotometricDistortion:
    """Brightness, contrast, saturation and hue of every image, each with probability 1/2.

    Contrast comes before or after the colours, with probability 1/2 each. Values are cut to
    [0, 1] after every step, as bytes are.

    Args:
        brightness: largest summand, uniform; 0 = none.
        contrast: range of a uniform factor; None = none.
        saturation: likewise, on the saturation of HSV.
        hue: largest change in turns of the colour circle, uniform; 0 = none.
    """

    def __init__(
        self,
        brightness: float = 32 / 255,
        contrast: Range | None = (0.5, 1.5),
        saturation: Range | None = (0.5, 1.5),
        hue: float = 0.1,
    ) -> None:
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        cameras = tuple(self._distorted(camera, rng) for camera in frame.cameras)
        return replace(frame, cameras=cameras)

    def _distorted(self, camera: Camera, rng: np.random.Generator) -> Camera:
        image = image_of(camera)
        image = image.float() / 255 if image.dtype == torch.uint8 else image
        if self.brightness and _coin(rng):
            image = (image + rng.uniform(-self.brightness, self.brightness)).clamp(0, 1)
        early = _coin(rng)
        if early:
            image = self._contrasted(image, rng)
        image = self._coloured(image, rng)
        if not early:
            image = self._contrasted(image, rng)
        return replace(camera, image=image, features=None)

    def _contrasted(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        if self.contrast is None or not _coin(rng):
            return image
        return (image * rng.uniform(*self.contrast)).clamp(0, 1)

    def _coloured(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        gain, turn = 1.0, 0.0
        if self.saturation is not None and _coin(rng):
            gain = rng.uniform(*self.saturation)
        if self.hue and _coin(rng):
            turn = rng.uniform(-self.hue, self.hue)
        return image if (gain, turn) == (1.0, 0.0) else change_colours(image, gain, turn)


def change_colours(image: Tensor, saturation: float, hue: float) -> Tensor:
    """An image (3, H, W) in [0, 1] with its saturation multiplied and its hue turned.

    Args:
        saturation: factor; the product is cut at 1.
        hue: in turns.
    """
    angle, purity, value = rgb_to_hsv(image)
    return hsv_to_rgb(
        torch.stack([(angle + hue).remainder(1), (purity * saturation).clamp(0, 1), value])
    )


def rgb_to_hsv(image: Tensor) -> Tensor:
    """(3, ...) RGB in [0, 1] -> hue in turns [0, 1), saturation and value in [0, 1].

    Grey has hue 0, black also saturation 0.
    """
    red, green, blue = image
    value, low = image.amax(0), image.amin(0)
    chroma = value - low
    unit = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / unit,
        torch.where(value == green, 2 + (blue - red) / unit, 4 + (red - green) / unit),
    )
    hue = torch.where(chroma > 0, sector / 6, 0.0).remainder(1)
    # The remainder of a tiny negative number is rounded to 1 itself.
    hue = torch.where(hue < 1, hue, 0.0)
    return torch.stack([hue, chroma / torch.where(value > 0, value, 1.0), value])


def hsv_to_rgb(image: Tensor) -> Tensor:
    """(3, ...) hue in turns, saturation and value in [0, 1] -> RGB in [0, 1]."""
    hue, saturation, value = image
    # How far each channel's place on the circle is; the nearest third of the circle is full.
    places = hue.new_tensor([5.0, 3.0, 1.0]).view(3, *[1] * hue.dim())
    sector = (places + 6 * hue).remainder(6)
    fall = torch.minimum(sector, 4 - sector).clamp(0, 1)
    return value - value * saturation * fall


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)
