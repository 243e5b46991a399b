"""A frame with everything in it, and a check that a transform leaves its input alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lidarssl.frame import Boxes, Camera, Frame, FrameId
from lidarssl.geometry.poses import invert_pose, pose_from_rotation, rotation_about_z

HEIGHT, WIDTH = 90, 160


def camera(name: str, yaw: float, generator: torch.Generator) -> Camera:
    """A camera at the lidar's height that looks along ``yaw``."""
    forward_x = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    mounting = pose_from_rotation(rotation_about_z(yaw) @ forward_x, (0.3, 0.1, -0.2))
    intrinsics = torch.tensor([[80.0, 0, 79.5], [0, 80.0, 44.5], [0, 0, 1]], dtype=torch.float64)
    return Camera(
        name,
        f"token_{name}",
        torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator),
        intrinsics,
        invert_pose(mounting),
        superpixels=torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 40,
        labels=torch.randint(0, 5, (HEIGHT, WIDTH), generator=generator),
    )


def make_frame(count: int = 3000, seed: int = 0, cameras: int = 3) -> Frame:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn((count, 3), generator=generator) * torch.tensor([15.0, 15.0, 1.5])
    return Frame(
        id=FrameId("scenes", "0", "0"),
        points=points,
        intensity=torch.arange(count).float(),
        semantic=torch.arange(count) % 7,
        cameras=tuple(
            camera(f"cam{i}", 2 * math.pi * i / max(1, cameras), generator) for i in range(cameras)
        ),
        pose=pose_from_rotation(rotation_about_z(0.3), (600.0, 1200.0, 1.8)),
        boxes=Boxes(
            points[:5].clone() + torch.tensor([0.1, -0.1, 0.2]),
            torch.tensor([[4.0, 2.0, 1.5]]).expand(5, 3).clone(),
            torch.linspace(-3, 3, 5),
            torch.arange(5),
        ),
    )


def same(first: Any, second: Any) -> bool:
    """Deep equality of frames, tensors included."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    if is_dataclass(first) and not isinstance(first, type):
        return all(same(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))
    return bool(first == second)


def apply_purely(transform: Callable, frame: Frame, seed: int = 0) -> Frame:
    """Apply; assert that the input is untouched and that the same seed gives the same frame."""
    before = copy.deepcopy(frame)
    result = transform(frame, np.random.default_rng(seed))
    assert same(frame, before), f"{transform} changed its input"
    assert same(result, transform(frame, np.random.default_rng(seed))), f"{transform} is random"
    return result
