"""The network and the sweeps that the scripts on sparse convolution measure."""

from __future__ import annotations

import math

import numpy as np
import torch
from measuring import data_folder
from torch import Tensor

from lidarssl.backbones.minkunet import MinkUNet, res16unet34c
from lidarssl.frame import PointBatch

POINTS, VOXEL_SIZE = 34_688, 0.1


def load_points() -> tuple[Tensor, str]:
    """(N, 4) points with intensity, and where they come from."""
    root = data_folder() / "nuscenes" / "samples" / "LIDAR_TOP"
    for path in sorted(root.glob("*.pcd.bin")):
        values = np.fromfile(path, np.float32).reshape(-1, 5)
        return torch.from_numpy(values[:, :4].copy()), "real nuScenes sweep"
    generator = torch.Generator().manual_seed(0)
    radius = 3 * 15 ** torch.rand(POINTS, generator=generator)
    angle = 2 * torch.pi * torch.rand(POINTS, generator=generator)
    x, y = radius * angle.cos(), radius * angle.sin()
    z = (0.3 * x).sin() + (0.2 * y).cos() + 0.02 * torch.randn(POINTS, generator=generator)
    return torch.stack([x, y, z, 255 * torch.rand(POINTS, generator=generator)], 1), "made-up"


def batch_of(points: Tensor, sweeps: int) -> PointBatch:
    """The sweep, turned by the golden angle from frame to frame."""
    turned = []
    for index in range(sweeps):
        angle = index * math.pi * (3 - math.sqrt(5))
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        turned.append(points[:, :3] @ turn.T)
    frame = torch.arange(sweeps).repeat_interleave(len(points))
    return PointBatch(torch.cat(turned), points[:, 3].repeat(sweeps), frame, sweeps)


def network() -> MinkUNet:
    """MinkUNet34 on cubic voxels."""
    torch.manual_seed(0)
    model = res16unet34c(64)
    model.grid = type(model.grid)("slidr_cartesian", VOXEL_SIZE, model.grid.inputs)
    return model.train()


def training_step(model: MinkUNet, batch: PointBatch) -> None:
    model.zero_grad(set_to_none=True)
    model(batch).features.float().square().mean().backward()
