"""What a dataset on disk holds: does every frame load, and what are its numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from lidarssl.datasets.base import Dataset, describe_missing
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.geometry.projection import match_pixels

RANGE_STEP = 0.1
RANGE_BINS = 3000
PERCENTILES = (5, 25, 50, 75, 95)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Problem:
    """A frame that cannot be used as it is, and why."""

    frame: str
    message: str


@dataclass
class CheckReport:
    """Result of ``check``.

    Attributes:
        dataset, split: what was checked.
        frames: in the split.
        checked: of them looked at.
        sequences: in the split.
        provides: names of the fields that frames carry.
        pairs: mean number of points that fall into each camera, by name.
        problems: one for each frame that is not good, in the order of the split.
        absent: what the split should have and the disk lacks, in words.
    """

    dataset: str
    split: str
    frames: int
    checked: int
    sequences: int
    provides: list[str]
    pairs: dict[str, float]
    problems: list[Problem]
    absent: str = ""

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "ok": self.ok}, indent=1)

    def __str__(self) -> str:
        lines = [
            f"{self.dataset} {self.split}: {self.frames} frames in {self.sequences} sequences; "
            f"{self.checked} checked, {len(self.problems)} bad",
            f"  carry: {', '.join(['points', *self.provides])}",
            *([f"  not here: {self.absent}"] if self.absent else []),
            *(f"  {name}: {pairs:.0f} points per image" for name, pairs in self.pairs.items()),
            *(f"  {problem.frame}: {problem.message}" for problem in self.problems),
        ]
        return "\n".join(lines)


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
        intensity: in the units of the files.
        range_percentiles: m, distance of points from the lidar, by percent.
        class_points: points of each class; empty without labels.
        image_sizes: number of images of each "camera WIDTHxHEIGHT".
        matched_fraction: share of the points that fall into at least one image; None without.
    """

    dataset: str
    split: str
    frames: int
    points: int
    points_per_frame: float
    intensity: IntensityStats
    range_percentiles: dict[str, float]
    class_points: dict[str, int] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=dict)
    matched_fraction: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        intensity = self.intensity
        ranges = ", ".join(f"{p} % {value:.1f} m" for p, value in self.range_percentiles.items())
        lines = [
            f"{self.dataset} {self.split}: {self.frames} frames, {self.points} points "
            f"({self.points_per_frame:.0f} per frame)",
            f"  intensity: mean {intensity.mean:.6g}, std {intensity.std:.6g}, "
            f"{intensity.minimum:.6g} to {intensity.maximum:.6g}",
            f"  range: {ranges}",
            *(
                f"  {name}: {count} points ({count / self.points:.2%})"
                for name, count in self.class_points.items()
            ),
            *(f"  {name}: {count} images" for name, count in self.image_sizes.items()),
        ]
        if self.matched_fraction is not None:
            lines.append(f"  in at least one image: {self.matched_fraction:.2%} of the points")
        return "\n".join(lines)


@dataclass
class _Checked:
    pairs: dict[str, int] = field(default_factory=dict)
    problem: Problem | None = None


def check(
    dataset: Dataset,
    split: str,
    limit: int | None = None,
    workers: int = 0,
    progress: bool = True,
) -> CheckReport:
    """Load frames with everything they have, and look for what training would stumble over.

    A frame is good when it loads, carries what the split provides, has only known class ids, and
    every camera sees some of its points.

    Args:
        dataset, split: what to check.
        limit: frames, evenly spread over the split; None = all.
        workers: threads that load; 0 = none but this one.
        progress: show a bar.

    Raises:
        ConfigError: unknown split.
        DataError: the split has no frames.
    """
    ids = dataset.frames(split)
    chosen = _spread(ids, limit)
    provided = dataset.provides(split)

    def look(frame: FrameId) -> _Checked:
        return _check_frame(dataset, frame, provided)

    results = list(_progress(_map(look, chosen, workers), len(chosen), "check", progress))
    pairs: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for result in results:
        pairs.update(result.pairs)
        seen.update(list(result.pairs))
    return CheckReport(
        dataset=dataset.name,
        split=split,
        frames=len(ids),
        checked=len(chosen),
        sequences=len({(frame.dataset, frame.sequence) for frame in ids}),
        provides=list(describe_missing(provided, Field.NONE)),
        pairs={name: pairs[name] / seen[name] for name in seen},
        problems=[result.problem for result in results if result.problem is not None],
        absent=dataset.absent(split),
    )


def _check_frame(dataset: Dataset, frame_id: FrameId, provided: Field) -> _Checked:
    try:
        frame = dataset.load(frame_id, provided)
        pairs = {camera.name: len(_matched(frame, camera)) for camera in frame.cameras}
        _check_content(frame, provided, dataset, pairs)
    except DataError as error:
        return _Checked(problem=Problem(str(frame_id), str(error)))
    return _Checked(pairs)


def _check_content(frame: Frame, provided: Field, dataset: Dataset, pairs: dict[str, int]) -> None:
    carried = {
        Field.IMAGES: bool(frame.cameras),
        Field.SEMANTIC: frame.semantic is not None,
        Field.INSTANCE: frame.instance is not None,
        Field.BOXES: frame.boxes is not None,
        Field.POSE: frame.pose is not None,
    }
    missing = [name.name for name, there in carried.items() if name in provided and not there]
    if missing:
        raise DataError(f"lacks {', '.join(str(name).lower() for name in missing)}")
    if frame.semantic is not None:
        low, high = int(frame.semantic.min()), int(frame.semantic.max())
        if low < 0 or high >= len(dataset.classes):
            raise DataError(
                f"class ids {low}..{high} are not in 0..{len(dataset.classes) - 1}",
                field="semantic",
            )
    blind = [name for name, count in pairs.items() if count == 0]
    if blind:
        raise DataError(
            f"no lidar point falls into {', '.join(blind)}",
            field="camera_from_lidar",
            remedy="check the calibration: X_camera = camera_from_lidar @ X_lidar",
        )


def stats(
    dataset: Dataset,
    split: str,
    limit: int | None = None,
    workers: int = 0,
    progress: bool = True,
) -> StatsReport:
    """Numbers of a split: points, intensity, ranges, classes, images, pairs.

    Args:
        dataset, split: what to measure.
        limit: frames, evenly spread over the split; None = all.
        workers: threads that load; 0 = none but this one.
        progress: show a bar.

    Raises:
        ConfigError: unknown split.
        DataError: the split has no frames, or a frame is bad.
    """
    chosen = _spread(dataset.frames(split), limit)
    fields = dataset.provides(split) & (Field.IMAGES | Field.SEMANTIC)

    def look(frame: FrameId) -> _Sums:
        return _sums_of(dataset.load(frame, fields), len(dataset.classes))

    total = _Sums.nothing(len(dataset.classes))
    for sums in _progress(_map(look, chosen, workers), len(chosen), "stats", progress):
        total = total.plus(sums)
    return total.report(dataset, split, len(chosen))


@dataclass
class _Sums:
    """Numbers that add up over frames; spread about the mean merged as in Chan et al. 1979."""

    points: int
    mean: float
    squares: float
    minimum: float
    maximum: float
    ranges: Tensor
    classes: Tensor
    labelled: bool
    images: Counter[str]
    matched: int

    @classmethod
    def nothing(cls, classes: int) -> _Sums:
        ranges = torch.zeros(RANGE_BINS, dtype=torch.int64)
        counts = torch.zeros(classes, dtype=torch.int64)
        return cls(0, 0.0, 0.0, math.inf, -math.inf, ranges, counts, False, Counter(), 0)

    def plus(self, other: _Sums) -> _Sums:
        points = self.points + other.points
        apart = other.mean - self.mean
        share = other.points / points
        return _Sums(
            points=points,
            mean=self.mean + apart * share,
            squares=self.squares + other.squares + apart**2 * self.points * share,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            ranges=self.ranges + other.ranges,
            classes=self.classes + other.classes,
            labelled=self.labelled or other.labelled,
            images=self.images + other.images,
            matched=self.matched + other.matched,
        )

    def report(self, dataset: Dataset, split: str, frames: int) -> StatsReport:
        names = dataset.classes.names if self.labelled else ()
        std = math.sqrt(self.squares / self.points)
        return StatsReport(
            dataset=dataset.name,
            split=split,
            frames=frames,
            points=self.points,
            points_per_frame=self.points / frames,
            intensity=IntensityStats(self.mean, std, self.minimum, self.maximum),
            range_percentiles={str(p): _percentile(self.ranges, p) for p in PERCENTILES},
            class_points=dict(zip(names, self.classes.tolist(), strict=False)),
            image_sizes=dict(sorted(self.images.items())),
            matched_fraction=self.matched / self.points if self.images else None,
        )


def _sums_of(frame: Frame, classes: int) -> _Sums:
    intensity = frame.intensity.double()
    bins = (frame.points.double().norm(dim=1) / RANGE_STEP).long().clamp(max=RANGE_BINS - 1)
    counts = torch.zeros(classes, dtype=torch.int64)
    if frame.semantic is not None:
        counts = torch.bincount(frame.semantic, minlength=classes)
    seen = torch.zeros(len(frame), dtype=torch.bool)
    images: Counter[str] = Counter()
    for camera in frame.cameras:
        seen[_matched(frame, camera)] = True
        height, width = _image_size(camera)
        images[f"{camera.name} {width}x{height}"] += 1
    return _Sums(
        points=len(frame),
        mean=float(intensity.mean()),
        squares=float((intensity - intensity.mean()).square().sum()),
        minimum=float(intensity.min()),
        maximum=float(intensity.max()),
        ranges=torch.bincount(bins, minlength=RANGE_BINS),
        classes=counts,
        labelled=frame.semantic is not None,
        images=images,
        matched=int(seen.sum()),
    )


def _percentile(histogram: Tensor, percent: float) -> float:
    """Upper edge of the first bin that reaches the share; the last bin is open."""
    reached = torch.cumsum(histogram, 0) >= percent / 100 * histogram.sum()
    return round(RANGE_STEP * (int(reached.long().argmax()) + 1), 3)


def _matched(frame: Frame, camera: Camera) -> Tensor:
    height, width = _image_size(camera)
    return match_pixels(
        frame.points, camera.camera_from_lidar, camera.intrinsics, height, width
    ).point


def _image_size(camera: Camera) -> tuple[int, int]:
    if camera.image is None:
        raise DataError(f"camera {camera.name} has no image", field="image")
    return camera.image.shape[1], camera.image.shape[2]


def _spread(ids: Sequence[FrameId], limit: int | None) -> list[FrameId]:
    if limit is None or limit >= len(ids):
        return list(ids)
    if limit < 1:
        raise ConfigError(f"limit is {limit}", field="limit", remedy="give 1 or more")
    return [ids[index * len(ids) // limit] for index in range(limit)]


def _map(
    look: Callable[[FrameId], Result], ids: Sequence[FrameId], workers: int
) -> Iterator[Result]:
    if workers == 0:
        yield from map(look, ids)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(look, ids)


def _progress(results: Iterator[Result], total: int, what: str, shown: bool) -> Iterator[Result]:
    yield from tqdm(results, total=total, desc=what, unit="frame", disable=not shown)
