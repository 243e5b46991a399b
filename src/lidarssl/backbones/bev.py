"""The bird's-eye view of a backbone: where its cells are, and reading it at points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reading = Literal["centers", "corners"]


@dataclass(frozen=True)
class BevGrid:
    """Cells of a map (B, C, H, W): rows along y, columns along x.

    Attributes:
        origin: x, y of the corner of cell (0, 0), m.
        cell: size along x, y, m.
        width, height: columns and rows.
    """

    origin: tuple[float, float]
    cell: tuple[float, float]
    width: int
    height: int

    def coordinates(self, points: Tensor) -> Tensor:
        """Column and row of (N, 2 or 3) points as real numbers, (N, 2); 0 is a cell's edge."""
        origin, cell = points.new_tensor(self.origin), points.new_tensor(self.cell)
        return (points[:, :2] - origin) / cell

    def cell_of(self, points: Tensor, batch: Tensor) -> Tensor:
        """(N,) int64 cell (frame, row, column) in row-major order; outside, the nearest one."""
        column, row = torch.floor(self.coordinates(points)).unbind(1)
        column = column.clamp(0, self.width - 1).long()
        row = row.clamp(0, self.height - 1).long()
        return (batch * self.height + row) * self.width + column

    def positions(self, stretched: bool = False) -> Tensor:
        """(H * W, 3) float32 m, row-major, z = 0: the centres of the cells.

        Args:
            stretched: from edge to edge of the map instead, as ALSO's published code places
                them: half a cell too far out at the borders, right in the middle.
        """
        x, y = (
            torch.linspace(start, start + count * size, count, dtype=torch.float64)
            if stretched
            else start + (torch.arange(count, dtype=torch.float64) + 0.5) * size
            for start, count, size in zip(
                self.origin, (self.width, self.height), self.cell, strict=True
            )
        )
        row, column = torch.meshgrid(y, x, indexing="ij")
        return torch.stack([column, row, torch.zeros_like(row)], 2).flatten(0, 1).float()

    def read(
        self, maps: Tensor, points: Tensor, batch: Tensor, reading: Reading = "centers"
    ) -> Tensor:
        """Bilinear interpolation of a map at points, (N, C).

        Args:
            maps: (B, C, H, W).
            points: (N, 2 or 3) m.
            batch: (N,) int64 frame of each.
            reading: ``centers``: a cell's features are at its centre, and beyond the outermost
                centres they stay. ``corners``, as SLidR, OLIVINE and NCLR publish it: they are
                at its lowest corner, and beyond the last corner they fall to zero.
        """
        place = self.coordinates(points)
        last = place.new_tensor((self.width - 1, self.height - 1))
        if reading == "centers":
            place = (place - 0.5).clamp(torch.zeros_like(last), last)
        low = torch.floor(place)
        high = (low + 1).clamp(torch.zeros_like(last), last)
        low = low.clamp(torch.zeros_like(last), last)
        after = place - low
        before = 1 - after if reading == "centers" else high - place
        rows, weights = [], []
        for y, weight_y in ((low[:, 1], before[:, 1]), (high[:, 1], after[:, 1])):
            for x, weight_x in ((low[:, 0], before[:, 0]), (high[:, 0], after[:, 0])):
                rows.append((batch * self.height + y.long()) * self.width + x.long())
                weights.append(weight_y * weight_x)
        table = maps.permute(0, 2, 3, 1).flatten(0, 2)
        return F.embedding_bag(
            torch.stack(rows, 1),
            table,
            per_sample_weights=torch.stack(weights, 1).to(table.dtype),
            mode="sum",
        )
