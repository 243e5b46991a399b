"""Labelled images in memory, in several weathers, and a small encoder that learns them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.errors import ConfigError
from lidarssl.frame import Camera, Field, Frame, FrameId
from lidarssl.images.base import ImageEncoder

NAMES = ("ignored", "grass", "brick", "ball")
DIMMED = {"clear": 1.0, "fog": 0.6, "night": 0.15}
SIZE = (16, 32)


class Weathers(Dataset):
    """Brick above grass, a ball somewhere, an unlabelled frame around: colours tell the class.

    Args:
        count: frames of a split in each weather.
        labelled: whether images have labels.
        names: classes.
    """

    name = "weathers"
    lidar = False
    splits = ("train", "val")

    def __init__(
        self, count: int = 6, labelled: bool = True, names: tuple[str, ...] = NAMES
    ) -> None:
        colors = ((0, 0, 0), (40, 160, 40), (180, 80, 40), (60, 60, 220))
        self.classes = ClassTable(names, colors[: len(names)])
        self.count, self.labelled = count, labelled

    def frames(self, split: str) -> list[FrameId]:
        if split not in self.splits:
            raise ConfigError(f"no split '{split}'", field="split", remedy="use train or val")
        return self._under("clear", split)

    def conditions(self, split: str) -> dict[str, list[FrameId]]:
        # Not in the order in which they are told.
        return {name: self._under(name, split) for name in ("fog", "clear", "night")}

    def provides(self, split: str) -> Field:
        assert self.frames(split)
        return Field.IMAGES | (Field.IMAGE_LABELS if self.labelled else Field.NONE)

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        image, labels = scene(frame)
        camera = Camera(
            "camera",
            f"{frame.sequence}_{frame.token}",
            torch.from_numpy(image) if Field.IMAGES in fields else None,
            torch.full((3, 3), torch.nan, dtype=torch.float64),
            torch.eye(4, dtype=torch.float64),
            labels=torch.from_numpy(labels) if Field.IMAGE_LABELS in fields else None,
        )
        return Frame(frame, torch.zeros((0, 3)), torch.zeros(0), cameras=(camera,))

    def _under(self, weather: str, split: str) -> list[FrameId]:
        return [FrameId(self.name, f"{split}_{weather}", f"{i:02d}") for i in range(self.count)]


class Elsewhere(Weathers):
    """The same scenes as another dataset with fewer frames at night; it knows no clear weather."""

    name = "elsewhere"

    def conditions(self, split: str) -> dict[str, list[FrameId]]:
        return {"fog": self._under("fog", split), "night": self._under("night", split)[:4]}


class Untold(Weathers):
    """Frames at night, of a dataset that does not tell its weather."""

    name = "untold"

    def frames(self, split: str) -> list[FrameId]:
        return self._under("night", split)

    def conditions(self, split: str) -> dict[str, list[FrameId]]:
        return {}


def scene(frame: FrameId) -> tuple[np.ndarray, np.ndarray]:
    """(3, H, W) uint8 and (H, W) int64 of a frame; the weather changes the image alone."""
    split, _, weather = frame.sequence.partition("_")
    rng = np.random.default_rng([int(frame.token), split == "val"])
    height, width = SIZE
    rows, cols = np.mgrid[:height, :width]
    labels = np.where(rows < rng.integers(5, 11), 2, 1)
    row, col = rng.integers(3, height - 3), rng.integers(3, width - 3)
    labels[(rows - row) ** 2 + (cols - col) ** 2 < 14] = 3
    colors = np.array([(0, 0, 0), (40, 160, 40), (180, 80, 40), (60, 60, 220)])
    image = colors[labels] + rng.normal(0, 12, (height, width, 3))
    labels[:1] = labels[:, :1] = 0
    image = DIMMED[weather] * image + rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8).transpose(2, 0, 1), labels.astype(np.int64)


class Patches(ImageEncoder):
    """Two convolutions of stride 2.

    Args:
        width: channels.
        weights: never read: the name of a file that made the weights.
    """

    def __init__(self, width: int = 16, weights: str | Path | None = None) -> None:
        super().__init__()
        self.out_channels, self.stride, self.frozen = width, 2, False
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.4), persistent=False)
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images - self.mean)
        return features


def recipe_file(folder: Path, **changes: object) -> Path:
    """A recipe that trains in a second; ``changes`` replace arguments of its task."""
    task = {
        "num_classes": len(NAMES),
        "head": "linear",
        "augmentation": {"crop": list(SIZE), "ratio": [1.0, 1.0], "cat_max_ratio": 1.0,
                         "brightness": 0.0, "contrast": None, "saturation": None, "hue": 0.0},
        "inference": {"window": None},
        "encoder": {"class_path": "image_toys.Patches", "init_args": {"width": 16}},
        **changes,
    }  # fmt: skip
    content = {
        "kind": "image_segmentation",
        "about": {"title": "Toy"},
        "dataset": {"class_path": "image_toys.Weathers", "init_args": {"count": 6}},
        "task": {"class_path": "ImageSegmentation", "init_args": task},
        "training": {
            "batch_size": 3, "steps": 60, "workers": 0, "accelerator": "cpu",
            "optimizer": {"name": "adamw", "lr": 0.02}, "schedule": {"name": "constant"},
        },
    }  # fmt: skip
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def true_confusion(
    predicted: np.ndarray, truth: np.ndarray, classes: int = len(NAMES)
) -> np.ndarray:
    """(C, C) counts, rows truth, one pixel at a time."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for true, said in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        matrix[true, said] += 1
    return matrix


def true_miou(matrix: np.ndarray) -> float:
    """Mean IoU over the classes that occur, the ignored one aside."""
    ious = []
    for one in range(1, len(matrix)):
        hits, truth, said = matrix[one, one], matrix[one].sum(), matrix[1:, one].sum()
        if truth + said > 0:
            ious.append(hits / (truth + said - hits))
    return float(np.mean(ious))
