"""Small stand-ins that several tests share: a dataset in memory and a module that trains on it."""

from __future__ import annotations

import math

import torch
from torch import nn

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.errors import DataError
from lidarssl.frame import Batch, Camera, Field, Frame, FrameId, StepOutput


class MemoryDataset(Dataset):
    """Random points before one or two small cameras; the frames named in ``bad`` raise a DataError.

    Args:
        frames: of each split.
        points: of each frame.
        bad: numbers of the frames of both splits that raise.
        lacking: what frames do not carry.
        cameras: of each frame, 1 or 2.
    """

    name = "memory"
    classes = ClassTable(("ignored", "low", "high"), ((0, 0, 0), (0, 128, 0), (255, 0, 0)))
    splits = ("train", "val")

    def __init__(
        self,
        frames: int = 12,
        points: int = 200,
        bad: tuple[int, ...] = (),
        lacking: Field = Field.NONE,
        cameras: int = 1,
    ) -> None:
        self.count, self.points, self.bad = frames, points, bad
        self.yaws = dict(list({"front": 0.0, "left": 0.7}.items())[:cameras])
        self.carried = (Field.IMAGES | Field.SEMANTIC) & ~lacking

    def frames(self, split: str) -> list[FrameId]:
        first = 0 if split == "train" else self.count
        return [FrameId(self.name, split, f"{first + i:04d}") for i in range(self.count)]

    def provides(self, split: str) -> Field:
        return self.carried

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        number = int(frame.token)
        if number in self.bad:
            raise DataError("points are not finite", path=f"{frame.token}.bin", field="points")
        generator = torch.Generator().manual_seed(number)
        points = torch.rand((self.points, 3), generator=generator) * torch.tensor([8, 8, 2.0])
        points += torch.tensor([2.0, -4.0, -1.0])
        cameras: tuple[Camera, ...] = ()
        if Field.IMAGES in fields & self.carried:
            cameras = tuple(self._camera(frame, *item, generator) for item in self.yaws.items())
        return Frame(
            id=frame,
            points=points,
            intensity=torch.rand(self.points, generator=generator),
            cameras=cameras,
            semantic=1 + (points[:, 2] > 0).long() if Field.SEMANTIC in fields else None,
        )

    def _camera(self, frame: FrameId, name: str, yaw: float, generator: torch.Generator) -> Camera:
        """At the lidar, looking along ``yaw``; its image is a chequerboard of noisy colours."""
        forward, left = (math.cos(yaw), math.sin(yaw)), (-math.sin(yaw), math.cos(yaw))
        axes = [[-left[0], -left[1], 0.0], [0.0, 0.0, -1.0], [*forward, 0.0]]
        camera_from_lidar = torch.eye(4, dtype=torch.float64)
        camera_from_lidar[:3, :3] = torch.tensor(axes, dtype=torch.float64)
        colours = torch.randint(0, 200, (3, 6, 8), generator=generator)
        image = colours.repeat_interleave(8, 1).repeat_interleave(8, 2)
        image += torch.randint(0, 20, image.shape, generator=generator)
        intrinsics = torch.tensor([[32, 0, 31.5], [0, 32, 23.5], [0, 0, 1]], dtype=torch.float64)
        token = f"{name}_{frame.token}"
        return Camera(name, token, image.to(torch.uint8), intrinsics, camera_from_lidar)


class ToyModule(nn.Module):
    """Predicts height from position and a random draw: exercises the step's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        self.head = nn.Linear(1, 1)

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        points = batch.points.points
        noise = torch.randn(1, generator=generator).to(points).expand(points.shape[0], 1)
        inputs = torch.cat([points, noise], 1)
        error = self.head(self.layers(inputs))[:, 0] - batch.points.points[:, 2]
        loss = error.square().mean()
        return StepOutput(loss, {"error": error.abs().mean().detach()})
