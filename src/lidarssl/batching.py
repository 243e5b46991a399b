"""Frames -> Batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.frame import Batch, Frame, Matches, PointBatch, Queries


def collate(frames: Sequence[Frame]) -> Batch:
    """Concatenate frames into a batch.

    Raises:
        DataError: the frames disagree in what they carry, or images in size.
    """
    if not frames:
        raise DataError("cannot make a batch of no frames")
    sizes = torch.tensor([len(frame) for frame in frames])
    cameras = [camera for frame in frames for camera in frame.cameras]
    camera_counts = torch.tensor([len(frame.cameras) for frame in frames])
    images = _stack_images(frames, [camera.image for camera in cameras])
    return Batch(
        ids=tuple(frame.id for frame in frames),
        points=_concatenate_points(frames),
        images=images,
        frame_of_image=torch.repeat_interleave(torch.arange(len(frames)), camera_counts),
        superpixels=_stack(frames, [camera.superpixels for camera in cameras], "superpixels"),
        image_labels=_stack(frames, [camera.labels for camera in cameras], "labels"),
        image_features=_stack(frames, [camera.features for camera in cameras], "features"),
        intrinsics=_stack_matrices([camera.intrinsics for camera in cameras]),
        camera_from_lidar=_stack_matrices([camera.camera_from_lidar for camera in cameras]),
        matches=_concatenate_matches(frames, sizes, camera_counts),
        queries=_concatenate_queries(frames, sizes),
        semantic=_concatenate(frames, "semantic"),
        instance=_concatenate(frames, "instance"),
    )


def sizes_of(points: PointBatch) -> list[int]:
    """Number of points of each frame."""
    frames = torch.arange(points.batch_size, device=points.batch.device)
    ends = torch.searchsorted(points.batch, frames, right=True)
    sizes: list[int] = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return sizes


def _concatenate_points(frames: Sequence[Frame]) -> PointBatch:
    statistics = [frame.intensity_statistics for frame in frames]
    thinned_to = {frame.thinned_to for frame in frames}
    if len(thinned_to) > 1:
        raise DataError(f"frames of one batch are thinned to different voxels: {thinned_to}")
    return PointBatch(
        points=torch.cat([frame.points for frame in frames]),
        intensity=torch.cat([frame.intensity for frame in frames]),
        batch=torch.cat([torch.full((len(one),), row) for row, one in enumerate(frames)]),
        batch_size=len(frames),
        input_points=_concatenate(frames, "input_points"),
        intensity_statistics=None if None in statistics else torch.tensor(statistics),
        thinned_to=thinned_to.pop(),
    )


def _concatenate(frames: Sequence[Frame], name: str) -> Tensor | None:
    values = [getattr(frame, name) for frame in frames]
    _check_all_or_none(frames, values, name)
    return None if values[0] is None else torch.cat(values)


def _concatenate_matches(
    frames: Sequence[Frame], sizes: Tensor, camera_counts: Tensor
) -> Matches | None:
    values = [frame.matches for frame in frames]
    _check_all_or_none(frames, values, "matches")
    if values[0] is None:
        return None
    first_point = torch.cumsum(sizes, 0) - sizes
    first_image = torch.cumsum(camera_counts, 0) - camera_counts
    found = [match for match in values if match is not None]
    _check_all_or_none(frames, [match.label for match in found], "labels of matches")
    return Matches.joined(
        [
            replace(match, point=match.point + point, image=match.image + image)
            for match, point, image in zip(found, first_point, first_image, strict=True)
        ]
    )


def _concatenate_queries(frames: Sequence[Frame], sizes: Tensor) -> Queries | None:
    values = [frame.queries for frame in frames]
    _check_all_or_none(frames, values, "queries")
    found = [queries for queries in values if queries is not None]
    if not found:
        return None
    counts = torch.tensor([len(queries) for queries in found])
    return Queries(
        positions=torch.cat([queries.positions for queries in found]),
        occupancy=torch.cat([queries.occupancy for queries in found]),
        intensity=torch.cat([queries.intensity for queries in found]),
        batch=torch.repeat_interleave(torch.arange(len(found)), counts),
        query=_concatenate_rows(frames, [queries.query for queries in found], counts),
        point=_concatenate_rows(frames, [queries.point for queries in found], sizes),
    )


def _concatenate_rows(
    frames: Sequence[Frame], values: Sequence[Tensor | None], sizes: Tensor
) -> Tensor | None:
    """Row numbers of each frame, counted through all frames of the given sizes."""
    _check_all_or_none(frames, values, "pairs of queries")
    first = torch.cumsum(sizes, 0) - sizes
    rows = [value + start for value, start in zip(values, first, strict=True) if value is not None]
    return torch.cat(rows) if rows else None


def _stack(frames: Sequence[Frame], values: list[Tensor | None], name: str) -> Tensor | None:
    found = _all_of_one_shape(frames, values, name)
    return torch.stack(found) if found else None


def _all_of_one_shape(
    frames: Sequence[Frame], values: list[Tensor | None], name: str
) -> list[Tensor]:
    found = [value for value in values if value is not None]
    if not found:
        return []
    shapes = {tuple(value.shape) for value in found}
    if len(found) != len(values) or len(shapes) > 1:
        raise DataError(
            f"cameras of one batch differ in '{name}': {len(found)} of {len(values)} have it, "
            f"shapes {sorted(shapes)} (frames {', '.join(str(frame.id) for frame in frames)})",
            field=name,
            remedy="add a transform that brings every image to one size",
        )
    return found


def _stack_images(frames: Sequence[Frame], values: list[Tensor | None]) -> Tensor | None:
    """In float32 [0, 1], channel after channel, however each lies in memory."""
    found = _all_of_one_shape(frames, values, "image")
    if not found:
        return None
    images = torch.empty((len(found), *found[0].shape))
    for image, value in zip(images, found, strict=True):
        image.copy_(value)
        if value.dtype == torch.uint8:
            image.div_(255)
    return images


def _stack_matrices(matrices: Sequence[Tensor]) -> Tensor | None:
    """In float32, which every device has; None of none."""
    return torch.stack([matrix.float() for matrix in matrices]) if matrices else None


def _check_all_or_none(frames: Sequence[Frame], values: Sequence[object], name: str) -> None:
    missing = [frame for frame, value in zip(frames, values, strict=True) if value is None]
    if missing and len(missing) < len(frames):
        raise DataError(
            f"frame {missing[0].id} has no '{name}' but others of its batch do",
            field=name,
        )
