"""What the scripts that time the preparation of scans share."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


def made_up_scan(beams: int = 64, steps: int = 1900) -> Tensor:
    """A street seen by a spinning lidar 1.7 m above the ground, (N, 4)."""
    generator = torch.Generator().manual_seed(0)
    elevation = torch.linspace(math.radians(-24.8), math.radians(2.0), beams)[:, None]
    azimuth = torch.linspace(-math.pi, math.pi, steps + 1)[:-1]
    ground = 1.7 / (-elevation).tan().clamp(min=1e-3)
    wall = 7 / azimuth.sin().abs().clamp(min=0.05) + 2 * torch.rand(steps, generator=generator)
    reach = torch.minimum(ground, wall.expand(beams, -1)).clamp(max=80)
    reach = reach * (1 + 0.002 * torch.randn(reach.shape, generator=generator))
    z = (reach * elevation.tan()).expand_as(reach)
    points = torch.stack([reach * azimuth.cos(), reach * azimuth.sin(), z], -1).view(-1, 3)
    return torch.cat([points, torch.rand(len(points), 1, generator=generator)], 1)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median after a warm-up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)
