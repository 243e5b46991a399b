"""A square of an image and the points inside it: the view of CLCP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Frame, Matches
from lidarssl.transforms.images import Crop, crop_camera, image_size
from lidarssl.transforms.paired import matches_of
from lidarssl.wording import counted

Place = Literal["random", "center"]


class SquareCrop:
    """Cut a square out of every image and bring it to one size; matches outside are dropped.

    Squares are drawn until one keeps enough matches, at most ``max_draws`` times.

    Args:
        side: pixels of the image as loaded; images with a shorter side give the largest square.
        size: (height, width) of the result.
        place: where the square lies.
        min_matches: that a square must keep.
        antialias: smooth before reducing.
        max_draws: see above.

    Raises:
        DataError: no square keeps enough.
    """

    def __init__(
        self,
        side: int = 896,
        size: tuple[int, int] = (224, 224),
        place: Place = "random",
        min_matches: int = 1,
        antialias: bool = True,
        max_draws: int = 100,
    ) -> None:
        if side < 1:
            raise ConfigError(f"a square of {side} pixels is none", field="side")
        self.side, self.place, self.antialias = side, place, antialias
        self.size: tuple[int, int] = (size[0], size[1])
        self.min_matches, self.max_draws = min_matches, max_draws

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        matches, cameras, parts = matches_of(frame), [], []
        for number, camera in enumerate(frame.cameras):
            pairs = matches[matches.image == number]
            crop = self._draw(frame, camera, pairs, rng)
            cameras.append(crop_camera(camera, crop, self.size, self.antialias))
            parts.append(_moved(pairs[_inside(pairs, crop)], crop, self.size))
        return replace(frame, cameras=tuple(cameras), matches=Matches.joined(parts))

    def _draw(self, frame: Frame, camera: Camera, pairs: Matches, rng: np.random.Generator) -> Crop:
        height, width = image_size(camera)
        side = min(self.side, height, width)
        for top, left in self._places(height - side, width - side, rng):
            crop = Crop(top, left, side, side)
            if int(_inside(pairs, crop).sum()) >= self.min_matches:
                return crop
        raise DataError(
            f"frame {frame.id}: no square of {side} pixels of camera {camera.name} holds "
            f"{counted(self.min_matches, 'point')}",
            field="matches",
            remedy="ask for a larger square (method.view.side) or fewer points "
            "(method.view.min_points), set training.bad_samples to skip, or check the calibration "
            "with `lidarssl data check`",
        )

    def _places(
        self, most_down: int, most_right: int, rng: np.random.Generator
    ) -> Iterator[tuple[int, int]]:
        """Where the upper left corner of a square may lie, in the order in which it is tried."""
        if self.place == "center":
            yield most_down // 2, most_right // 2
            return
        for _ in range(self.max_draws):
            top, left = rng.integers(0, (most_down + 1, most_right + 1))
            yield int(top), int(left)


def _moved(pairs: Matches, crop: Crop, size: tuple[int, int]) -> Matches:
    """Matches inside a crop, in the pixels that hold the centres of theirs after resizing."""
    rows = (2 * (pairs.row - crop.top) + 1) * size[0] // (2 * crop.height)
    cols = (2 * (pairs.col - crop.left) + 1) * size[1] // (2 * crop.width)
    return replace(pairs, row=rows, col=cols)


def _inside(pairs: Matches, crop: Crop) -> torch.Tensor:
    rows, cols = pairs.row - crop.top, pairs.col - crop.left
    return (rows >= 0) & (rows < crop.height) & (cols >= 0) & (cols < crop.width)
