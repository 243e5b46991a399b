"""From a labelled image to the crops that a task trains on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lidarssl.transforms.base import Transform
from lidarssl.transforms.image_crops import FlipImages, PadImages, ResizedCrop
from lidarssl.transforms.photometric import PhotometricDistortion

Range = tuple[float, float]


@dataclass(frozen=True)
class ImageAugmentation:
    """Resized crops, mirrored, with other light and colours; every image has its own draws.

    The defaults are those of Segmenter in mmsegmentation on Cityscapes, whose images are 1024
    pixels high.

    Args:
        crop: (height, width) in pixels.
        ratio: range of a uniform factor on the size of the image, aspect kept.
        base_height: pixels that the factor is of; None = the image's own height.
        cat_max_ratio: a crop is drawn again, up to ten times, until its most frequent class
            covers less than this share of its labelled pixels; 1 = the first crop is taken.
        flip: probability of a mirror image.
        brightness: largest change, in [0, 1] units; 0 = none.
        contrast, saturation: range of a uniform factor; None = none.
        hue: largest change, in turns of the colour circle; 0 = none.
    """

    crop: tuple[int, int] = (224, 224)
    ratio: Range = (0.5, 2.0)
    base_height: int | None = None
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    brightness: float = 32 / 255
    contrast: Range | None = (0.5, 1.5)
    saturation: Range | None = (0.5, 1.5)
    hue: float = 0.1

    def transforms(self, mean: Tensor) -> list[Transform]:
        """What a training frame goes through.

        Args:
            mean: 3 numbers in [0, 1], the colour beside an image that is smaller than the crop.
        """
        steps: list[Transform] = [
            ResizedCrop(self.crop, self.ratio, self.base_height, self.cat_max_ratio)
        ]
        if self.flip > 0:
            steps.append(FlipImages(self.flip))
        if self.brightness or self.contrast or self.saturation or self.hue:
            steps.append(
                PhotometricDistortion(self.brightness, self.contrast, self.saturation, self.hue)
            )
        # Last, so that the colour beside the image is neither changed nor mirrored.
        red, green, blue = mean.flatten().tolist()
        return [*steps, PadImages(self.crop, (red, green, blue))]
