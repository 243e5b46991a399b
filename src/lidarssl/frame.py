"""The types that flow through the library: ``Frame`` -> ``Batch`` -> ``PointFeatures``.

Conventions: metres; points in the lidar frame of the dataset (see the dataset for its axes);
camera frame x right, y down, z forward; a pixel is (row, col), integer at pixel centres;
``a_from_b`` is the 4x4 matrix that takes homogeneous coordinates of frame b to frame a.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.rows import true_rows


class Field(enum.Flag):
    """What a frame carries beside points and intensity; what a method needs of it."""

    NONE = 0
    IMAGES = enum.auto()
    SUPERPIXELS = enum.auto()
    IMAGE_LABELS = enum.auto()
    SEMANTIC = enum.auto()
    INSTANCE = enum.auto()
    BOXES = enum.auto()
    POSE = enum.auto()
    UNDECODED = enum.auto()  # of images: they may stay so until a transform needs their pixels
    ALL = IMAGES | SUPERPIXELS | IMAGE_LABELS | SEMANTIC | INSTANCE | BOXES | POSE


@dataclass(frozen=True, order=True)
class FrameId:
    """Identity of a frame; ``token`` is unique within ``sequence``, neither has a slash."""

    dataset: str
    sequence: str
    token: str

    def __str__(self) -> str:
        return f"{self.dataset}/{self.sequence}/{self.token}"


class Undecoded(Protocol):
    """Pixels as their file holds them: (3, H, W) uint8 RGB, or (H, W) ids of any integer type."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""

    def decode(self, rows: slice = ..., columns: slice = ...) -> Tensor:
        """A rectangle of them, or all; raises DataError when they do not decode."""


@dataclass
class Camera:
    """One image of a frame and how the lidar projects onto it.

    Attributes:
        name: sensor name, e.g. ``CAM_FRONT`` or ``image_2``.
        token: unique name of this image within the dataset: key of offline caches.
        image: (3, H, W) RGB, uint8 or float32 in [0, 1]; None when not asked for.
        intrinsics: (3, 3) float64, in pixels of ``image``; NaN where nobody knows them.
        camera_from_lidar: (4, 4) float64, ego motion between the two exposures included.
        superpixels: (H, W) int64 segment ids from 0, or None.
        labels: (H, W) int64 class ids, 0 = ignored (weak or synthetic labels), or None.
        features: (C, h, w) float16 or float32 map that an image encoder made of all of the image
            ahead of time, or None.
        undecoded: stands for ``image`` while that is None, see ``Field.UNDECODED``.
        undecoded_superpixels: stands for ``superpixels`` while those are None.
    """

    name: str
    token: str
    image: Tensor | None
    intrinsics: Tensor
    camera_from_lidar: Tensor
    superpixels: Tensor | None = None
    labels: Tensor | None = None
    features: Tensor | None = None
    undecoded: Undecoded | None = None
    undecoded_superpixels: Undecoded | None = None


@dataclass
class Boxes:
    """3-D boxes in the lidar frame.

    Attributes:
        center: (B, 3) float32 m, geometric centre.
        size: (B, 3) float32 m, length (along heading), width, height.
        yaw: (B,) float32 rad, counter-clockwise about +z, 0 = +x.
        label: (B,) int64 index into the dataset's ``box_classes``.
    """

    center: Tensor
    size: Tensor
    yaw: Tensor
    label: Tensor


@dataclass
class Matches:
    """Pairs of a lidar point and a pixel, one row each.

    In a frame ``image`` counts the frame's cameras and ``point`` its points; in a batch both
    count the rows of the whole batch.

    Attributes:
        point, image, row, col: (M,) int64.
        label: (M,) int64 class that the pixel has in the full-size image, 0 = unknown, or None.
    """

    point: Tensor
    image: Tensor
    row: Tensor
    col: Tensor
    label: Tensor | None = None

    def __len__(self) -> int:
        return self.point.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Matches:
        if isinstance(index, slice):
            return map_tensors(self, lambda column: column[index])
        rows = true_rows(index) if index.dtype == torch.bool else index
        return map_tensors(self, lambda column: column.index_select(0, rows))

    @classmethod
    def joined(cls, parts: Sequence[Matches]) -> Matches:
        """The rows of all ``parts``, at least one; the label where each has it."""
        labels = [part.label for part in parts if part.label is not None]
        return cls(
            torch.cat([part.point for part in parts]),
            torch.cat([part.image for part in parts]),
            torch.cat([part.row for part in parts]),
            torch.cat([part.col for part in parts]),
            torch.cat(labels) if len(labels) == len(parts) else None,
        )


@dataclass
class Queries:
    """Places around a scan of which its own rays tell whether they are free or behind a surface.

    Attributes:
        positions: (Q, 3) float32 m, lidar frame.
        occupancy: (Q,) int64, 1 = behind a surface, 0 = free.
        intensity: (Q,) float32 of the return that made the query; negative = no target.
        batch: (Q,) int64 frame index, 0 inside a frame.
        query, point: (P,) int64 pairs of a query and a point near it, sorted by (query, point);
            None until a transform has searched them.
    """

    positions: Tensor
    occupancy: Tensor
    intensity: Tensor
    batch: Tensor
    query: Tensor | None = None
    point: Tensor | None = None

    def __len__(self) -> int:
        return self.positions.shape[0]


@dataclass
class Frame:
    """One moment of driving.

    Attributes:
        id: identity.
        points: (N, 3) float32 m, lidar frame.
        intensity: (N,) float32, in the units of the dataset's files.
        ring: (N,) int64 beam index, or None.
        time: (N,) float32 s relative to the frame's timestamp, or None.
        cameras: images with calibration.
        pose: (4, 4) float64 world_from_lidar, or None.
        semantic: (N,) int64 train ids, 0 = ignored, or None.
        instance: (N,) int64, 0 = no instance, or None.
        boxes: or None.
        matches: point-pixel pairs, made by a paired transform, or None.
        queries: places of known occupancy, made by a transform, or None.
        input_points: (N, 3) float32 m, the coordinates that a network reads as input values where
            an augmentation has moved them away from ``points``, or None.
        intensity_statistics: mean and standard deviation of the intensities of its dataset, in
            the units of ``intensity``, or None when they are not known.
        thinned_to: m, edge of the voxels of which a transform has kept one point each, or None.
    """

    id: FrameId
    points: Tensor
    intensity: Tensor
    ring: Tensor | None = None
    time: Tensor | None = None
    cameras: tuple[Camera, ...] = ()
    pose: Tensor | None = None
    semantic: Tensor | None = None
    instance: Tensor | None = None
    boxes: Boxes | None = None
    matches: Matches | None = None
    queries: Queries | None = None
    input_points: Tensor | None = None
    intensity_statistics: tuple[float, float] | None = None
    thinned_to: float | None = None

    POINT_COLUMNS = (
        "points", "intensity", "ring", "time", "semantic", "instance", "input_points",
    )  # fmt: skip

    def __len__(self) -> int:
        return self.points.shape[0]

    def select(self, index: Tensor) -> Frame:
        """Keep the points ``index``, an (N,) bool mask; pairs are dropped or re-numbered.

        Returns:
            A new frame; every per-point column, the matches and the pairs of queries follow.
        """
        rows = true_rows(index)
        columns = {
            name: value.index_select(0, rows)
            for name in self.POINT_COLUMNS
            if (value := getattr(self, name)) is not None
        }
        matches, queries = self.matches, self.queries
        new_row = torch.cumsum(index, 0) - 1
        if matches is not None:
            matches = matches[index.index_select(0, matches.point)]
            matches = replace(matches, point=new_row.index_select(0, matches.point))
        if queries is not None and queries.query is not None and queries.point is not None:
            kept = true_rows(index.index_select(0, queries.point))
            query, point = (pairs.index_select(0, kept) for pairs in (queries.query, queries.point))
            queries = replace(queries, query=query, point=new_row.index_select(0, point))
        return replace(self, matches=matches, queries=queries, **columns)


@dataclass
class PointBatch:
    """The points of several frames, frame after frame.

    Attributes:
        points: (N, 3) float32 m, each in its own lidar frame.
        intensity: (N,) float32.
        batch: (N,) int64, non-decreasing frame index.
        batch_size: number of frames (a frame may have no points).
        prepared: what the backbone's ``prepare`` made ahead for these points, or None.
        input_points: (N, 3) float32 m, see ``Frame``, or None where they are ``points``.
        intensity_statistics: (batch_size, 2) float32 mean and standard deviation of the
            intensities of each frame's dataset, or None.
        thinned_to: m, see ``Frame``.
    """

    points: Tensor
    intensity: Tensor
    batch: Tensor
    batch_size: int
    prepared: Any = None
    input_points: Tensor | None = None
    intensity_statistics: Tensor | None = None
    thinned_to: float | None = None

    def standard_intensity(self) -> Tensor:
        """Intensities with mean 0 and standard deviation 1 over their dataset, (N,).

        Raises:
            DataError: the statistics of a dataset are not known.
        """
        if self.intensity_statistics is None:
            raise DataError(
                "mean and standard deviation of the intensities are not known",
                field="intensity_statistics",
                remedy="set the dataset's intensity_statistics to [mean, std], "
                "as `lidarssl data stats` prints them",
            )
        mean, std = self.intensity_statistics[self.batch].unbind(1)
        return (self.intensity - mean) / std

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PointBatch:
        return _move(self, torch.device(device), non_blocking)


@dataclass
class Batch:
    """Frames ready for a network.

    Attributes:
        ids: identity of each frame.
        points: their points.
        images: (I, 3, H, W) float32 in [0, 1], all cameras of frame 0, then of frame 1, ...
        frame_of_image: (I,) int64.
        superpixels: (I, H, W) int64.
        image_labels: (I, H, W) int64, 0 = ignored.
        image_features: (I, C, h, w) float16 or float32, see ``Camera.features``.
        intrinsics: (I, 3, 3) float32, in pixels of ``images``.
        camera_from_lidar: (I, 4, 4) float32.
        matches: rows count points and images of the batch.
        queries: pairs count queries and points of the batch.
        semantic, instance: (N,) int64, 0 = ignored / none.
    """

    ids: tuple[FrameId, ...]
    points: PointBatch
    images: Tensor | None = None
    frame_of_image: Tensor | None = None
    superpixels: Tensor | None = None
    image_labels: Tensor | None = None
    image_features: Tensor | None = None
    intrinsics: Tensor | None = None
    camera_from_lidar: Tensor | None = None
    matches: Matches | None = None
    queries: Queries | None = None
    semantic: Tensor | None = None
    instance: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return _move(self, torch.device(device), non_blocking)

    def pin_memory(self) -> Batch:
        return map_tensors(self, Tensor.pin_memory)


@dataclass
class PointFeatures:
    """What a backbone returns: one row per token (voxel, pillar, point), and who owns it.

    Attributes:
        positions: (T, 3) float32 m, where each token is, lidar frame.
        features: (T, C).
        batch: (T,) int64 frame index.
        token_of_point: (N,) int64 token of each input point.
    """

    positions: Tensor
    features: Tensor
    batch: Tensor
    token_of_point: Tensor

    def at_points(self) -> Tensor:
        """Features of every input point, (N, C)."""
        return self.features[self.token_of_point]


@dataclass
class Pairs:
    """Embeddings of two views of the same moments, row by row, on which retrieval is judged.

    Attributes:
        image, lidar: (B, D) unit rows of this process, detached.
    """

    image: Tensor
    lidar: Tensor


@dataclass
class StepOutput:
    """What a training step returns.

    Attributes:
        loss: scalar to minimise.
        terms: named scalars to log, detached.
        pairs: of a method that embeds whole images and whole scans, or None.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    pairs: Pairs | None = None


_T = TypeVar("_T")


def map_tensors(value: _T, function: Any) -> _T:
    """Apply ``function`` to every tensor inside nested dataclasses, tuples, lists and dicts."""
    result: Any = value
    if isinstance(value, Tensor):
        result = function(value)
    elif isinstance(value, tuple | list):
        mapped = [map_tensors(item, function) for item in value]
        result = mapped if isinstance(value, list) else tuple(mapped)
    elif isinstance(value, dict):
        result = {key: map_tensors(item, function) for key, item in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        changed = {
            item.name: map_tensors(getattr(value, item.name), function)
            for item in fields(value)
            if item.init
        }
        result = replace(value, **changed)
    return result


def _move(value: _T, device: torch.device, non_blocking: bool) -> _T:
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=non_blocking))
