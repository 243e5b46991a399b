"""A network that knows the truth, and errs or guesses where it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lidarssl.experiments.calibration_solving import (
    Sighting,
    sightings,
)
from lidarssl.frame import Batch, Field, Frame
from lidarssl.geometry.planar_search import fits
from lidarssl.geometry.poses import planar_motion
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.nclr_settings import CalibrationView, PoseTerm
from lidarssl.methods.soft_matching import ImageMatches
from lidarssl.transforms.grid_matches import grid_intrinsics
from methods.small import backbone, encoder
from toys import MemoryDataset

STRIDE, SIZE, FITTED = 4, (96, 128), 1024
CPU = torch.device("cpu")


@dataclass
class Errors:
    """What the oracle gets wrong.

    Attributes:
        noise: cells, standard deviation of every match.
        wrong: share of the points seen whose match is anywhere in the image.
        seen: overlap of the points seen; what is not said to be seen fits into no cell better.
        lost: images of a batch of which every match is wrong.
    """

    noise: float = 0.0
    wrong: float = 0.0
    seen: float = 0.95
    lost: tuple[int, ...] = ()


def knowing(errors: Errors | None = None, **view: Any) -> Nclr:
    """A network whose matches are the true ones, but for its ``errors``.

    No class of its own, which every list of methods would then have.
    """
    method = Nclr(
        backbone(), encoder(), 8, view=CalibrationView(SIZE, STRIDE, **view), pose=PoseTerm()
    )
    method.errors, method.asked = errors or Errors(), list[Batch]()
    method.match = Oracle(method).match
    return method


class Oracle:
    """Reads the pose from the batch instead of finding it."""

    def __init__(self, method: Any) -> None:
        self.view, self.errors, self.asked = method.view, method.errors, method.asked

    def match(self, batch: Batch) -> list[ImageMatches]:
        assert batch.images is not None
        assert batch.intrinsics is not None
        assert batch.camera_from_lidar is not None
        assert batch.frame_of_image is not None
        self.asked.append(batch)
        generator = torch.Generator().manual_seed(0)
        found = []
        for image, frame in enumerate(batch.frame_of_image.tolist()):
            points = batch.points.points[batch.points.batch == frame]
            lens = grid_intrinsics(batch.intrinsics[image], STRIDE, self.view.pixel_centers)
            pose = batch.camera_from_lidar[image]
            wrong = 1.0 if image in self.errors.lost else self.errors.wrong
            found.append(self._one(frame, points, pose, lens, wrong, generator))
        return found

    def _one(
        self, frame: int, points: Tensor, pose: Tensor, lens: Tensor, share: float,
        generator: torch.Generator,
    ) -> ImageMatches:  # fmt: skip
        there = points @ pose[:3, :3].T + pose[:3, 3]
        height, width = (length // STRIDE for length in SIZE)
        ray = there @ lens.T
        pixel = ray[:, :2] / ray[:, 2:]
        inside = (there[:, 2] > 0.1) & (pixel >= -0.5).all(1)
        inside &= (pixel < torch.tensor([width, height]) - 0.5).all(1)
        pixel = pixel + self.errors.noise * torch.randn(pixel.shape, generator=generator)
        anywhere = torch.rand(pixel.shape, generator=generator) * torch.tensor([width, height])
        wrong = torch.rand(len(pixel), generator=generator) < share
        pixel = torch.where((wrong | ~inside)[:, None], anywhere, pixel)
        overlap = torch.where(inside, self.errors.seen, 0.05)
        cells = torch.zeros(height, width)
        fit = fits_of(pixel, overlap, height, width)
        return ImageMatches(
            frame, points, overlap, pixel, torch.full_like(overlap, 0.5), fit, cells, lens
        )


def fits_of(pixel: Tensor, overlap: Tensor, height: int, width: int) -> Tensor:
    """Of the first points: high where the match is, for those that are said to be seen."""
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1)
    similarity = (6 - 2 * torch.cdist(pixel[:FITTED], cells.float())).clamp(min=0)
    similarity[overlap[:FITTED] < 0.5] = 0.0
    return fits(similarity).unflatten(1, (height, width))


def dataset(cameras: int = 1) -> MemoryDataset:
    return MemoryDataset(6, points=1200, cameras=cameras)


def frame(number: int = 0, cameras: int = 1) -> Frame:
    memory = dataset(cameras)
    return memory.load(memory.frames("val")[number], Field.IMAGES)


def sighted(errors: Errors | None = None, motion: Tensor | None = None) -> Sighting:
    moved = planar_motion([3.0, -2.0], 2.0) if motion is None else motion
    return sightings(knowing(errors), frame(), moved, CPU)[0]


def rig(errors: Sequence[Errors | None], motion: Tensor | None = None) -> list[Sighting]:
    """Images of a frame, each by an oracle of its own."""
    moved = planar_motion([1.5, -2.0], 2.0) if motion is None else motion
    whole = frame(cameras=len(errors))
    return [sightings(knowing(one), whole, moved, CPU)[number] for number, one in enumerate(errors)]
