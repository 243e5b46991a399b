"""Small stand-ins that several tests share: a dataset in memory and a module that trains on it."""

from __future__ import annotations

import torch
from torch import nn

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.errors import DataError
from lidarssl.frame import Batch, Camera, Field, Frame, FrameId, StepOutput


class MemoryDataset(Dataset):
    """Random points, one small image each; the frames named in ``bad`` raise a DataError."""

    name = "memory"
    classes = ClassTable(("ignored", "low", "high"), ((0, 0, 0), (0, 128, 0), (255, 0, 0)))
    splits = ("train", "val")

    def __init__(self, frames: int = 12, points: int = 200, bad: tuple[int, ...] = ()) -> None:
        self.count, self.points, self.bad = frames, points, bad

    def frames(self, split: str) -> list[FrameId]:
        first = 0 if split == "train" else self.count
        return [FrameId(self.name, split, f"{first + i:04d}") for i in range(self.count)]

    def provides(self, split: str) -> Field:
        return Field.IMAGES | Field.SEMANTIC

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        number = int(frame.token)
        if number in self.bad:
            raise DataError("points are not finite", path=f"{frame.token}.bin", field="points")
        generator = torch.Generator().manual_seed(number)
        points = torch.rand((self.points, 3), generator=generator) * torch.tensor([8, 8, 2.0])
        points += torch.tensor([2.0, -4.0, -1.0])
        cameras: tuple[Camera, ...] = ()
        if Field.IMAGES in fields:
            cameras = (self._camera(frame, generator),)
        return Frame(
            id=frame,
            points=points,
            intensity=torch.rand(self.points, generator=generator),
            cameras=cameras,
            semantic=1 + (points[:, 2] > 0).long() if Field.SEMANTIC in fields else None,
        )

    def _camera(self, frame: FrameId, generator: torch.Generator) -> Camera:
        forward_x = torch.eye(4, dtype=torch.float64)
        forward_x[:3, :3] = torch.tensor([[0, -1, 0], [0, 0, -1], [1, 0, 0]], dtype=torch.float64)
        image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=generator)
        intrinsics = torch.tensor([[32, 0, 31.5], [0, 32, 23.5], [0, 0, 1]], dtype=torch.float64)
        return Camera("front", f"front_{frame.token}", image, intrinsics, forward_x)


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
