"""Other colours, blur and noise for the images of a contrastive pretraining.

The augmentation of CLCP: the kinds of change, their ranges and odds are those of its code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.frame import Camera, Frame
from lidarssl.transforms.images import image_of
from lidarssl.transforms.photometric import change_colours

_LUMA = (0.299, 0.587, 0.114)


@dataclass
class ImageJitter:
    """Changes every image by itself, most of the time.

    One of: colours (odds 7 in 10), darker and flatter (2), gray (1); then, with probability
    ``degrade``, one of: blur, pixels swapped with their neighbours (frosted glass), noise.

    Args:
        probability: that an image is changed at all.
        strength: largest relative change of brightness, contrast and saturation.
        hue: largest shift of the hue, of a full turn of 1.
        degrade: see above.
    """

    probability: float = 0.9
    strength: float = 0.3
    hue: float = 0.1
    degrade: float = 0.5

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        return replace(frame, cameras=tuple(self._changed(one, rng) for one in frame.cameras))

    def _changed(self, camera: Camera, rng: np.random.Generator) -> Camera:
        if rng.random() >= self.probability:
            return camera
        image = image_of(camera)
        image = image.float() / 255 if image.dtype == torch.uint8 else image
        image = self._recolored(image, rng)
        if rng.random() < self.degrade:
            image = (_blurred, _shuffled, _noisy)[int(rng.integers(3))](image, rng)
        return replace(camera, image=image.clamp(0, 1))

    def _recolored(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        kind = rng.choice(3, p=(0.7, 0.2, 0.1))
        if kind == 1:
            brightness, contrast = rng.uniform(-0.35, -0.2, 2)
            return (image * (1 + contrast) + brightness).clamp(0, 1)
        if kind == 2:
            return _gray(image).expand_as(image)
        low, high = 1 - self.strength, 1 + self.strength
        for change in rng.permutation(4):
            factor = float(rng.uniform(low, high))
            if change == 3:
                image = change_colours(image, 1.0, float(rng.uniform(-self.hue, self.hue)))
            else:
                towards = (torch.zeros(1), _gray(image).mean(), _gray(image))[change]
                image = (towards + (image - towards) * factor).clamp(0, 1)
        return image


def _gray(image: Tensor) -> Tensor:
    return (image * image.new_tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)


def _blurred(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A Gaussian over 3 to 9 pixels; its width is the one OpenCV takes for such a window."""
    size = 3 + 2 * int(rng.integers(4))
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    offset = torch.arange(size, dtype=torch.float32) - size // 2
    weights = (-(offset**2) / (2 * sigma**2)).exp()
    weights = weights / weights.sum()
    reach = min(size // 2, image.shape[1] - 1, image.shape[2] - 1)
    weights = weights[size // 2 - reach : size // 2 + reach + 1]
    weights = (weights / weights.sum()).view(1, 1, -1)
    padded = F.pad(image[:, None], (reach,) * 4, mode="reflect")
    across = F.conv2d(padded, weights[:, :, None])
    return F.conv2d(across, weights[..., None])[:, 0]


def _shuffled(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Every pixel comes from a place at most one pixel away in each direction."""
    height, width = image.shape[1:]
    down, right = torch.from_numpy(rng.integers(-1, 2, (2, height, width)))
    rows = (torch.arange(height)[:, None] + down).clamp(0, height - 1)
    cols = (torch.arange(width) + right).clamp(0, width - 1)
    return image[:, rows, cols]


def _noisy(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Normal noise of variance 10 to 500, in units of 1/255."""
    sigma = np.sqrt(rng.uniform(10, 500)) / 255
    noise = rng.normal(0, sigma, tuple(image.shape)).astype(np.float32)
    return image + torch.from_numpy(noise)
