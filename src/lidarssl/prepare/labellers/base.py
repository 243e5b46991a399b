"""The contract of a labeller: images -> weak class labels of their pixels."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lidarssl.errors import ConfigError
from lidarssl.prepare.image_features import fingerprint


class Labeller(nn.Module):
    """Makes weak labels of images; never trains, whatever ``train()`` a parent calls.

    Attributes:
        classes: names in the order of the label values: value k is ``classes[k - 1]``.
        arguments: what the labeller was made with, as plain JSON values.

    Args:
        classes: at least one name, each once.
        arguments: everything beside the weights that changes a label.

    Raises:
        ConfigError: there is no class, or two have the same name.
    """

    classes: tuple[str, ...]
    arguments: dict[str, Any]

    def __init__(self, classes: Sequence[str], arguments: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.classes = checked_classes(classes)
        self.arguments = json.loads(json.dumps(dict(arguments or {})))

    @abstractmethod
    def label(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Labels of images, which may differ in size; each is labelled on its own.

        Args:
            images: each (3, H, W) RGB, uint8 or float32 in [0, 1], on any device.

        Returns:
            Of each image (H, W) int64 on the CPU: 0 = unpainted, k = ``classes[k - 1]``.
        """

    def description(self) -> dict[str, Any]:
        """Plain JSON values that tell these labels from those of any other labeller."""
        return {
            "class": type(self).__name__,
            "arguments": self.arguments,
            "weights": fingerprint(self),
        }

    def freeze(self) -> None:
        """Evaluation mode for good, and no gradient; called once the networks are built."""
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Labeller:
        """Stays in evaluation mode."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        weight = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if weight is None else weight.device


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The names, when there is at least one and each is there once."""
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice or not classes:
        raise ConfigError(
            f"named more than once: {', '.join(twice)}" if twice else "no class to label",
            field="classes",
            remedy="give every class one name",
        )
    return tuple(classes)


def as_unit_float(image: Tensor, device: torch.device) -> Tensor:
    """(3, H, W) float32 in [0, 1] of a uint8 or float image, on ``device``."""
    moved = image.to(device)
    return moved.float() / 255 if moved.dtype == torch.uint8 else moved.float()


def by_size(images: Sequence[Tensor]) -> Iterator[list[int]]:
    """Indices of images of one size at a time.

    Networks see padding (windows and convolutions reach into it), so images of different sizes in
    one batch would change each other's labels.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image.shape[-2:]), []).append(index)
    yield from groups.values()
