"""What a dataset on disk holds: does every frame load, and what are its numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

from lidarssl.datasets.base import Dataset, describe_missing
from lidarssl.datasets.measures import StatsReport, Sums, image_size, matched, sums_of
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.wording import counted

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
        points: whether frames have any.
        conditions: frames in each weather or light, where the dataset tells.
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
    points: bool = True
    conditions: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "ok": self.ok}, indent=1)

    def __str__(self) -> str:
        carried = [*(["points"] if self.points else []), *self.provides]
        conditions = ", ".join(f"{name} {count}" for name, count in self.conditions.items())
        lines = [
            f"{self.dataset} {self.split}: {counted(self.frames, 'frame')} in "
            f"{counted(self.sequences, 'sequence')}; "
            f"{self.checked} checked, {len(self.problems)} bad",
            f"  carry: {', '.join(carried)}",
            *([f"  conditions: {conditions}"] if conditions else []),
            *([f"  not here: {self.absent}"] if self.absent else []),
            *(f"  {name}: {pairs:.0f} points per image" for name, pairs in self.pairs.items()),
            *(f"  {problem.frame}: {problem.message}" for problem in self.problems),
        ]
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
    every camera sees some of its points, where it has any.

    Args:
        dataset, split: what to check.
        limit: frames, evenly spread over the split; None = all.
        workers: threads that load; 0 = none but this one.
        progress: show a bar.

    Raises:
        ConfigError: unknown split, or a dataset of which no frame can be read as it is set up.
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
        points=dataset.lidar,
        conditions=_condition_sizes(dataset, split, set(ids)),
    )


def _condition_sizes(dataset: Dataset, split: str, ids: set[FrameId]) -> dict[str, int]:
    """Frames of the split itself in each condition that it has."""
    sizes = {
        name: len(ids.intersection(frames)) for name, frames in dataset.conditions(split).items()
    }
    return {name: size for name, size in sizes.items() if size}


def _check_frame(dataset: Dataset, frame_id: FrameId, provided: Field) -> _Checked:
    try:
        frame = dataset.load(frame_id, provided)
        pairs = {}
        if dataset.of(frame_id).lidar:
            pairs = {camera.name: len(matched(frame, camera)) for camera in frame.cameras}
        _check_content(frame, provided, dataset, pairs)
    except ConfigError:
        raise
    except DataError as error:
        return _Checked(problem=Problem(str(frame_id), str(error)))
    return _Checked(pairs)


def _check_content(frame: Frame, provided: Field, dataset: Dataset, pairs: dict[str, int]) -> None:
    carried = {
        Field.IMAGES: bool(frame.cameras),
        Field.IMAGE_LABELS: all(camera.labels is not None for camera in frame.cameras),
        Field.SEMANTIC: frame.semantic is not None,
        Field.INSTANCE: frame.instance is not None,
        Field.BOXES: frame.boxes is not None,
        Field.POSE: frame.pose is not None,
    }
    missing = [name.name for name, there in carried.items() if name in provided and not there]
    if missing:
        raise DataError(f"lacks {', '.join(str(name).lower() for name in missing)}")
    if frame.semantic is not None:
        _check_ids(frame.semantic, len(dataset.classes), "semantic")
    for camera in frame.cameras:
        _check_labels(camera, len(dataset.classes))
    blind = [name for name, count in pairs.items() if count == 0]
    if blind:
        raise DataError(
            f"no lidar point falls into {', '.join(blind)}",
            field="camera_from_lidar",
            remedy="check the calibration: X_camera = camera_from_lidar @ X_lidar",
        )


def _check_labels(camera: Camera, classes: int) -> None:
    if camera.labels is None:
        return
    _check_ids(camera.labels, classes, "image_labels")
    if tuple(camera.labels.shape) != image_size(camera):
        raise DataError(
            f"labels of {camera.name} have shape {tuple(camera.labels.shape)}, its image "
            f"{image_size(camera)}",
            field="image_labels",
        )


def _check_ids(ids: Tensor, classes: int, field: str) -> None:
    low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise DataError(f"class ids {low}..{high} are not in 0..{classes - 1}", field=field)


def stats(
    dataset: Dataset,
    split: str,
    limit: int | None = None,
    workers: int = 0,
    progress: bool = True,
) -> StatsReport:
    """Numbers of a split: points, intensity, ranges, classes, images, pixels, pairs.

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
    fields = dataset.provides(split) & (Field.IMAGES | Field.IMAGE_LABELS | Field.SEMANTIC)

    def look(frame: FrameId) -> Sums:
        return sums_of(dataset.load(frame, fields), len(dataset.classes))

    total = Sums.nothing()
    for sums in _progress(_map(look, chosen, workers), len(chosen), "stats", progress):
        total = total.plus(sums)
    return total.report(dataset, split, len(chosen))


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
