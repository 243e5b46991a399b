"""Numbers of frames that add up over a split: points, intensity, ranges, classes, images."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.errors import DataError
from lidarssl.frame import Camera, Frame
from lidarssl.geometry.projection import match_pixels
from lidarssl.wording import counted

RANGE_STEP = 0.1
RANGE_BINS = 3000
PERCENTILES = (5, 25, 50, 75, 95)


@dataclass
class IntensityStats:
    mean: float
    std: float
    minimum: float
    maximum: float


@dataclass
class StatsReport:
    """Result of ``stats``.

    Attributes:
        dataset, split: what was measured.
        frames: looked at.
        points: of all frames.
        points_per_frame: mean.
        intensity: in the units of the files; None without points.
        range_percentiles: m, distance of points from the lidar, by percent.
        class_points: points of each class; empty without labels.
        class_pixels: pixels of each class; empty without labels of images.
        image_sizes: number of images of each "camera WIDTHxHEIGHT".
        matched_fraction: share of the points that fall into at least one image; None without
            images or points.
    """

    dataset: str
    split: str
    frames: int
    points: int
    points_per_frame: float
    intensity: IntensityStats | None
    range_percentiles: dict[str, float]
    class_points: dict[str, int] = field(default_factory=dict)
    class_pixels: dict[str, int] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=dict)
    matched_fraction: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        lines = [
            f"{self.dataset} {self.split}: {counted(self.frames, 'frame')}, {self._counted()}",
            *self._of_points(),
            *_shares(self.class_points, "points"),
            *_shares(self.class_pixels, "pixels"),
            *(f"  {name}: {counted(count, 'image')}" for name, count in self.image_sizes.items()),
        ]
        if self.matched_fraction is not None:
            lines.append(f"  in at least one image: {self.matched_fraction:.2%} of the points")
        return "\n".join(lines)

    def _counted(self) -> str:
        if self.intensity is None:
            return "images alone"
        return f"{counted(self.points, 'point')} ({self.points_per_frame:.0f} per frame)"

    def _of_points(self) -> list[str]:
        intensity = self.intensity
        if intensity is None:
            return []
        ranges = ", ".join(f"{p} % {value:.1f} m" for p, value in self.range_percentiles.items())
        return [
            f"  intensity: mean {intensity.mean:.6g}, std {intensity.std:.6g}, "
            f"{intensity.minimum:.6g} to {intensity.maximum:.6g}",
            f"  range: {ranges}",
        ]


def _shares(counts: Mapping[str, int], what: str) -> list[str]:
    total = max(sum(counts.values()), 1)
    return [f"  {name}: {count} {what} ({count / total:.2%})" for name, count in counts.items()]


@dataclass
class Points:
    """Points of some frames; spread about the mean merged as in Chan et al. 1979.

    Attributes:
        count: how many.
        mean, squares: of their intensities, and sum of squares about it.
        minimum, maximum: of their intensities.
        ranges: (RANGE_BINS,) int64 histogram of distances from the lidar.
        seen: that fall into at least one image.
    """

    count: int
    mean: float
    squares: float
    minimum: float
    maximum: float
    ranges: Tensor
    seen: int

    @classmethod
    def nothing(cls) -> Points:
        ranges = torch.zeros(RANGE_BINS, dtype=torch.int64)
        return cls(0, 0.0, 0.0, math.inf, -math.inf, ranges, 0)

    def plus(self, other: Points) -> Points:
        count = self.count + other.count
        apart = other.mean - self.mean
        share = other.count / max(count, 1)
        return Points(
            count=count,
            mean=self.mean + apart * share,
            squares=self.squares + other.squares + apart**2 * self.count * share,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            ranges=self.ranges + other.ranges,
            seen=self.seen + other.seen,
        )

    def intensity(self) -> IntensityStats | None:
        if not self.count:
            return None
        std = math.sqrt(self.squares / self.count)
        return IntensityStats(self.mean, std, self.minimum, self.maximum)

    def percentiles(self) -> dict[str, float]:
        """Of the ranges, by percent."""
        if not self.count:
            return {}
        return {str(percent): _percentile(self.ranges, percent) for percent in PERCENTILES}


@dataclass
class Sums:
    """What ``StatsReport`` is made of.

    Attributes:
        points: of the frames.
        classes, pixels: (C,) int64 points and pixels of each class, or None without labels.
        images: number of images of each "camera WIDTHxHEIGHT".
    """

    points: Points
    classes: Tensor | None
    pixels: Tensor | None
    images: Counter[str]

    @classmethod
    def nothing(cls) -> Sums:
        return cls(Points.nothing(), None, None, Counter())

    def plus(self, other: Sums) -> Sums:
        return Sums(
            points=self.points.plus(other.points),
            classes=_added(self.classes, other.classes),
            pixels=_added(self.pixels, other.pixels),
            images=self.images + other.images,
        )

    def report(self, dataset: Dataset, split: str, frames: int) -> StatsReport:
        points = self.points
        return StatsReport(
            dataset=dataset.name,
            split=split,
            frames=frames,
            points=points.count,
            points_per_frame=points.count / frames,
            intensity=points.intensity(),
            range_percentiles=points.percentiles(),
            class_points=_by_name(dataset, self.classes),
            class_pixels=_by_name(dataset, self.pixels),
            image_sizes=dict(sorted(self.images.items())),
            matched_fraction=points.seen / points.count if self.images and points.count else None,
        )


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _by_name(dataset: Dataset, counts: Tensor | None) -> dict[str, int]:
    return {} if counts is None else dict(zip(dataset.classes.names, counts.tolist(), strict=True))


def sums_of(frame: Frame, classes: int) -> Sums:
    """The numbers of one frame.

    Args:
        frame: with the images, labels and points that are to be counted.
        classes: of its dataset.

    Raises:
        DataError: a camera has no image.
    """
    images: Counter[str] = Counter()
    pixels = None
    for camera in frame.cameras:
        height, width = image_size(camera)
        images[f"{camera.name} {width}x{height}"] += 1
        if camera.labels is not None:
            counts = torch.bincount(camera.labels.flatten(), minlength=classes)
            pixels = _added(pixels, counts)
    return Sums(
        points=_points_of(frame) if len(frame) else Points.nothing(),
        classes=None
        if frame.semantic is None
        else torch.bincount(frame.semantic, minlength=classes),
        pixels=pixels,
        images=images,
    )


def _points_of(frame: Frame) -> Points:
    intensity = frame.intensity.double()
    bins = (frame.points.double().norm(dim=1) / RANGE_STEP).long().clamp(max=RANGE_BINS - 1)
    seen = torch.zeros(len(frame), dtype=torch.bool)
    for camera in frame.cameras:
        seen[matched(frame, camera)] = True
    return Points(
        count=len(frame),
        mean=float(intensity.mean()),
        squares=float((intensity - intensity.mean()).square().sum()),
        minimum=float(intensity.min()),
        maximum=float(intensity.max()),
        ranges=torch.bincount(bins, minlength=RANGE_BINS),
        seen=int(seen.sum()),
    )


def _percentile(histogram: Tensor, percent: float) -> float:
    """Upper edge of the first bin that reaches the share; the last bin is open."""
    reached = torch.cumsum(histogram, 0) >= percent / 100 * histogram.sum()
    return round(RANGE_STEP * (int(reached.long().argmax()) + 1), 3)


def matched(frame: Frame, camera: Camera) -> Tensor:
    """Rows of the points that fall into an image, (M,) int64.

    Raises:
        DataError: the camera has no image.
    """
    height, width = image_size(camera)
    return match_pixels(
        frame.points, camera.camera_from_lidar, camera.intrinsics, height, width
    ).point


def image_size(camera: Camera) -> tuple[int, int]:
    """(height, width).

    Raises:
        DataError: the camera has no image.
    """
    if camera.image is None:
        raise DataError(f"camera {camera.name} has no image", field="image")
    return camera.image.shape[1], camera.image.shape[2]
