"""Occupied space around a frame, as ALSO predicts it and as the rays of the frame tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from lidarssl.batching import collate
from lidarssl.frame import Frame
from lidarssl.geometry.rays import Cell, Grid, ground_height, seen_cells
from lidarssl.methods.also import Also
from lidarssl.report.occupancy import OccupancySlices, blend
from lidarssl.report.viewer import Cells, Scene
from lidarssl.transforms.base import Compose

OccupancyAt: TypeAlias = Callable[[Tensor], Tensor]
"""Probability that each of (Q, 3) places, m in the lidar frame, is full: (Q,), NaN = unknown."""


def also_occupancy(method: Also, frame: Frame) -> OccupancyAt:
    """What a trained ALSO says of the space around a frame; on the device of the method."""
    device = next(method.parameters()).device
    # Pictures need no label, whatever the method was trained with.
    thinning = replace(method.sampling, drop_unlabeled=False).transforms(training=False)
    bare = replace(frame, cameras=(), matches=None)
    thinned = Compose(thinning)(bare, np.random.default_rng(0))
    points = method.lidar_encoder.prepare(collate([thinned]).points).to(device)

    def occupancy(places: Tensor) -> Tensor:
        row = torch.zeros(len(places), dtype=torch.int64, device=device)
        return method.occupancy_at(points, places.to(device), row).cpu()

    return occupancy


def occupancy_slices(
    points: Tensor,
    occupancy: OccupancyAt,
    heights: Sequence[float] = (0.5, 1.5),
    extent: float = 20.0,
    cell: float = 0.2,
) -> OccupancySlices:
    """Horizontal slices for the report.

    Args:
        points: (N, 3) m, N > 0, the whole scan, x forward.
        occupancy: in the same frame.
        heights: m above the ground at the sensor, a plane.
        extent: half the side of the square, m.
        cell: side of a cell and thickness of a slice, m.
    """
    ground = ground_height(points)
    count = round(2 * extent / cell)
    truth, prediction = [], []
    for height in heights:
        low = (-extent, -extent, ground + height - cell / 2)
        grid = Grid(low, (cell, cell, cell), (count, count, 1))
        truth.append(seen_cells(points, grid)[..., 0])
        prediction.append(occupancy(grid.centers().view(-1, 3)).view(count, count))
    above = (points - points.new_tensor([0.0, 0.0, ground])).numpy()
    near = (np.abs(above[:, :2]) < extent).all(1)
    return OccupancySlices(
        np.array(heights), cell, extent,
        torch.stack(truth).numpy().astype(np.uint8),
        torch.stack(prediction).numpy().astype(np.float16),
        above[near],
    )  # fmt: skip


def occupancy_scene(
    frame: Frame, occupancy: OccupancyAt, extent: float = 15.0, top: float = 3.0, cell: float = 0.25
) -> Scene:
    """Cells for the 3-D viewer: those predicted full, and those with a return.

    Args:
        frame: its points are shown beside the cells, coloured by the probability at each.
        occupancy: in its lidar frame.
        extent: half the side of the square around the sensor, m.
        top: m above the ground at the sensor; the lowest cells reach half a metre below it.
        cell: side of a cell, m.
    """
    side, layers = round(2 * extent / cell), round((top + 0.5) / cell)
    low = (-extent, -extent, ground_height(frame.points) - 0.5)
    grid = Grid(low, (cell, cell, cell), (side, side, layers))
    centers = grid.centers().view(-1, 3)
    seen = seen_cells(frame.points, grid).flatten() == Cell.SURFACE
    probability = occupancy(centers)
    full = probability > 0.5
    return Scene(
        frame,
        {"points": _colors(occupancy(frame.points))},
        {
            "occupancy/predicted": Cells(centers[full], grid.size, _colors(probability[full])),
            "occupancy/returns": Cells(centers[seen], grid.size, _colors(seen[seen].float())),
        },
    )


def _colors(probability: Tensor) -> Tensor:
    """(N, 3) uint8; dark grey where there is none."""
    colors = np.nan_to_num(255 * blend(probability.numpy()), nan=60.0)
    return torch.from_numpy(np.round(colors).astype(np.uint8))
