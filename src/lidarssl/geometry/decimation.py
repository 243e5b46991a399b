"""One point per cell of a grid.

Source: Boulch et al., "ALSO: Automotive Lidar Self-supervision by Occupancy estimation",
CVPR 2023, which thins scans so before it makes queries.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.geometry.grouping import cell_keys, group_rows

Rounding = Literal["floor", "trunc"]


def decimate(points: Tensor, voxel_size: float, rounding: Rounding = "floor") -> Tensor:
    """The first point of every occupied cell.

    Args:
        points: (N, 3) m.
        voxel_size: m.
        rounding: of ``points / voxel_size``. ``trunc`` is that of the published code: cells that
            touch a coordinate plane are twice as wide.

    Returns:
        (M,) int64 point indices, ordered by cell: by x, then y, then z.

    Raises:
        ConfigError: unknown rounding.
    """
    if rounding not in ("floor", "trunc"):
        raise ConfigError(
            f"unknown rounding '{rounding}'", field="rounding", remedy="floor or trunc"
        )
    # A tensor on the points' device: CUDA multiplies by the reciprocal of a Python scalar.
    cells = torch.stack(points.unbind(1)) / points.new_tensor(voxel_size)
    cells = cells.floor() if rounding == "floor" else cells.trunc()
    return group_rows(cell_keys(cells)).first
