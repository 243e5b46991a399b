"""Labels of the small image encoder that `lidarssl prepare teacher` trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.images.unet import SmallUNet, read_shape
from lidarssl.prepare.labellers.base import Labeller, as_unit_float, by_size
from lidarssl.wording import counted


class SmallUNetLabeller(Labeller):
    """The class that a ``SmallUNet`` gives every pixel.

    Args:
        weights: file of `lidarssl prepare teacher`.
        classes: names of its classes without the ignored one; None for those of the file, which
            are ``class_1``, ``class_2``, ... where it does not tell them.
        threshold: pixels whose class has a lower probability stay unpainted.

    Raises:
        ConfigError: a file without a classifier, as many names as it has no classes, or a
            threshold that no probability is.
        DataError: the file is missing, damaged, or holds something else.
    """

    def __init__(
        self,
        weights: str | Path,
        classes: list[str] | None = None,
        threshold: float = 0.0,
    ) -> None:
        shape = read_shape(Path(weights))
        if not 0 <= threshold <= 1:
            raise ConfigError(
                f"{threshold} is no probability", field="threshold", remedy="give one in [0, 1]"
            )
        if shape.num_classes is None:
            raise ConfigError(
                "this encoder has no classifier",
                path=weights,
                field="weights",
                remedy="give a file of `lidarssl prepare teacher`",
            )
        count = shape.num_classes - 1
        names = classes or shape.classes[1:] or [f"class_{k}" for k in range(1, count + 1)]
        if len(names) != count:
            raise ConfigError(
                f"{counted(len(names), 'name')} for {counted(count, 'class', 'classes')} beside "
                "the ignored one",
                path=weights,
                field="classes",
                remedy=f"name {count}",
            )
        super().__init__(names, {"threshold": threshold})
        self.encoder = SmallUNet(shape.out_channels, shape.num_classes, weights)
        self.threshold = threshold
        self.freeze()

    def label(self, images: Sequence[Tensor]) -> list[Tensor]:
        floats = [as_unit_float(image, self.device) for image in images]
        labels: list[Tensor] = [torch.empty(0)] * len(images)
        for indices in by_size(floats):
            batch = torch.stack([floats[index] for index in indices])
            for index, one in zip(indices, self.encoder.labels(batch, self.threshold), strict=True):
                labels[index] = one.cpu()
        return labels
