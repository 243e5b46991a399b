"""Random clouds on which two forms of a network are compared."""

from __future__ import annotations

import math

import numpy as np
import torch

from lidarssl.export.graph import one_frame
from lidarssl.frame import PointBatch

INTENSITY = (0.5, 0.3)


def random_cloud(rng: np.random.Generator, largest: int = 4000) -> PointBatch:
    """From one point to ``largest``, all sizes of numbers alike; clumps, strays and repetitions."""
    count = round(math.exp(rng.uniform(0, math.log(largest))))
    return cloud_of(rng, count)


def cloud_of(rng: np.random.Generator, count: int) -> PointBatch:
    """As ``random_cloud``, of so many points; half of them in clumps of a metre."""
    stray = rng.uniform((-40, -40, -2), (40, 40, 2), (count, 3))
    clump = stray[rng.integers(0, 1 + count // 50, count)] + rng.normal(0, 0.4, (count, 3))
    points = np.where(rng.random((count, 1)) < 0.5, stray, clump)
    repeated = rng.random(count) < 0.05
    points[repeated] = points[0]
    return one_frame(
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(rng.random(count).astype(np.float32)),
        intensity_statistics=torch.tensor([INTENSITY]),
    )
