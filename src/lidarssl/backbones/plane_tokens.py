"""From points to the tokens of WaffleIron: voxels, neighbours, and cells on flat grids.

Source: Puy et al., "Using a Waffle Iron for Automotive Point Cloud Semantic Segmentation",
ICCV 2023, section 3, and its code (``datasets/pc_dataset.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.backbones.voxelize import PointInputs
from lidarssl.batching import sizes_of
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch
from lidarssl.geometry.boxes import Corner, inside_box
from lidarssl.geometry.knn import nearest_table, neighbour_table
from lidarssl.geometry.voxels import voxelize
from lidarssl.rows import true_rows

Grid = tuple[int, int]
# Axes of the plane that is left when one is projected out.
_AXES = {0: (1, 2), 1: (0, 2), 2: (0, 1)}


@dataclass(frozen=True)
class PlaneGrids:
    """Grids that points are projected to along coordinate axes.

    Attributes:
        fov: low and high corner of the field of view, m.
        planes: axis projected out of each grid: 2 leaves (x, y), 1 (x, z), 0 (y, z).
        grids: cells of each grid along its first and its second axis.

    Raises:
        ConfigError: an empty field of view, an unknown axis, or lists that do not fit.
    """

    fov: tuple[Corner, Corner]
    planes: tuple[int, ...]
    grids: tuple[Grid, ...]

    def __post_init__(self) -> None:
        low, high = self.fov
        if not all(-math.inf < a < b < math.inf for a, b in zip(low, high, strict=True)):
            raise ConfigError(f"the field of view from {low} to {high} is empty", field="fov")
        if not self.planes or any(axis not in _AXES for axis in self.planes):
            raise ConfigError(
                f"{list(self.planes)} are not axes", field="planes", remedy="use 0, 1 and 2"
            )
        if len(self.grids) != len(self.planes) or any(min(grid) < 1 for grid in self.grids):
            raise ConfigError(
                f"{list(self.grids)} do not describe {len(self.planes)} grids",
                field="grids",
                remedy="give the two sizes of one grid for each of the planes",
            )

    def cells(self, points: Tensor) -> Tensor:
        """Flat cell of every point in every grid, (P, N) int64; outside = the nearest cell."""
        low, high = points.new_tensor(self.fov, dtype=torch.float64)[..., None]
        axes = torch.tensor([_AXES[axis] for axis in self.planes], device=points.device)
        shape = low.new_tensor(self.grids)[..., None]
        size = (high[axes] - low[axes]) / shape
        cell = (torch.stack(points.unbind(1)).double()[axes] - low[axes]).div_(size).trunc_()
        row, column = torch.minimum(cell.clamp_(min=0), shape - 1).long().unbind(1)
        return row * shape[:, 1].long() + column


@dataclass
class PlaneTokens:
    """One token per occupied voxel of several frames, frame after frame.

    Rows beyond ``real`` are padding: no point, no weight.

    Attributes:
        features: (T, C) float32 input values.
        neighbours: (T, K) int64 rows of the nearest tokens of the frame; the token itself where
            the frame has fewer.
        cells: (P, T) int64 cell in each grid, those of frame b after those of frame b - 1.
        weights: (P, T) float32 of a token in the mean of its cell.
        positions: (T, 3) float32 m.
        batch: (T,) int64 frame index.
        token_of_point: (N,) int64 nearest token of each point.
        batch_size: number of frames.
        real: number of tokens that are points.
    """

    features: Tensor
    neighbours: Tensor
    cells: Tensor
    weights: Tensor
    positions: Tensor
    batch: Tensor
    token_of_point: Tensor
    batch_size: int
    real: int


@dataclass(frozen=True)
class TokenRule:
    """How points become tokens.

    Attributes:
        grids: see there.
        neighbours: number of nearest tokens.
        voxel_size: m; one token per voxel, its first point. None = every point is one.
        inputs: values of a token; ``reduce`` says nothing here.
        padded: fill every frame up to the longest, as the published code, whose batch norms
            count such rows.

    Raises:
        ConfigError: a size of voxels that makes no sense.
    """

    grids: PlaneGrids
    neighbours: int
    voxel_size: float | None
    inputs: PointInputs
    padded: bool = False

    def __post_init__(self) -> None:
        if self.voxel_size is not None and not 0 < self.voxel_size < math.inf:
            raise ConfigError(
                f"voxels cannot be {self.voxel_size} m wide",
                field="voxel_size",
                remedy="give their edge in metres, or null for every point a token",
            )

    def __call__(self, points: PointBatch) -> PlaneTokens:
        """Tokens of the points of several frames."""
        values = self.inputs.of_points(points)
        thinned = self.voxel_size is None or points.thinned_to == self.voxel_size
        chosen, near, owner, first_point, first_token = [], [], [], 0, 0
        for cloud in points.points.split(sizes_of(points)):
            kept = self._kept(cloud, thinned)
            chosen.append(kept + first_point)
            centers = cloud.index_select(0, kept)
            near.append(neighbour_table(centers, self.neighbours) + first_token)
            owner.append(_owners(cloud, kept) + first_token)
            first_point, first_token = first_point + len(cloud), first_token + len(kept)
        rows = torch.cat(chosen)
        positions = points.points.index_select(0, rows)
        tokens = PlaneTokens(
            features=values.index_select(0, rows),
            neighbours=torch.cat(near),
            cells=self.grids.cells(positions),
            weights=values.new_ones(len(self.grids.planes), len(rows)),
            positions=positions,
            batch=points.batch[rows],
            token_of_point=torch.cat(owner),
            batch_size=points.batch_size,
            real=len(rows),
        )
        return self._projected(_padded(tokens) if self.padded else tokens)

    def _kept(self, cloud: Tensor, thinned: bool) -> Tensor:
        """Points of a frame that become tokens, (M,) int64; at least one of those there are."""
        rows = torch.arange(len(cloud), device=cloud.device)
        if not thinned and len(cloud):
            assert self.voxel_size is not None
            rows = voxelize(cloud, "waffleiron", self.voxel_size).index
        inside = true_rows(inside_box(cloud.index_select(0, rows), *self.grids.fov))
        return rows.index_select(0, inside) if len(inside) else rows

    def _projected(self, tokens: PlaneTokens) -> PlaneTokens:
        """Number the cells through the batch, and weight the tokens of each."""
        for plane, (rows, columns) in enumerate(self.grids.grids):
            cells, weights = tokens.cells[plane], tokens.weights[plane]
            cells += tokens.batch * (rows * columns)
            counts = weights.new_zeros(tokens.batch_size * rows * columns)
            counts.index_add_(0, cells, weights)
            weights /= counts[cells] + 1e-6
        return tokens


def _owners(cloud: Tensor, kept: Tensor) -> Tensor:
    """Nearest kept point of every point, (N,) int64 counted among the kept."""
    owner = torch.full((len(cloud),), -1, dtype=torch.int64, device=cloud.device)
    owner[kept] = torch.arange(len(kept), device=cloud.device)
    others = (owner < 0).nonzero()[:, 0]
    owner[others] = nearest_table(cloud[others], cloud[kept], 1)[:, 0]
    return owner


def _padded(tokens: PlaneTokens) -> PlaneTokens:
    """Rows of zeros after the tokens, as many as would make all frames equally long."""
    sizes = torch.bincount(tokens.batch, minlength=tokens.batch_size)
    missing = sizes.max() - sizes
    frames = torch.arange(tokens.batch_size, device=missing.device)
    batch = torch.repeat_interleave(frames, missing)
    count, start = len(batch), tokens.real
    itself = torch.arange(start, start + count, device=batch.device)
    return PlaneTokens(
        features=_extended(tokens.features, count),
        neighbours=torch.cat(
            [tokens.neighbours, itself[:, None].expand(-1, tokens.neighbours.shape[1])]
        ),
        cells=torch.nn.functional.pad(tokens.cells, (0, count)),
        weights=torch.nn.functional.pad(tokens.weights, (0, count)),
        positions=_extended(tokens.positions, count),
        batch=torch.cat([tokens.batch, batch]),
        token_of_point=tokens.token_of_point,
        batch_size=tokens.batch_size,
        real=start,
    )


def _extended(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count, rows.shape[1])])
