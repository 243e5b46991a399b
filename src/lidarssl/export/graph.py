"""A network as a function of plain arrays: what an engine without lidarssl can run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lidarssl.frame import PointBatch


@dataclass(frozen=True)
class Port:
    """An input or an output.

    Attributes:
        name: in the file.
        shape: a number, or the name of a size that differs from cloud to cloud.
        dtype: ``float32`` or ``int64``.
        meaning: what it holds, in a sentence or two.
        offsets: of a table of neighbours: site read minus site written of each column, along
            x, y, z in cells of level 0; empty for other arrays.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    meaning: str
    offsets: tuple[tuple[int, int, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.shape))}) {self.dtype}"

    def described(self) -> dict[str, Any]:
        """As plain values."""
        return {name: value for name, value in asdict(self).items() if value or name != "offsets"}


@dataclass(frozen=True)
class Arrays:
    """One cloud as the inputs of a graph.

    Attributes:
        inputs: name -> array.
        token_of_point: (N,) int64 output row of each point.
    """

    inputs: dict[str, Tensor]
    token_of_point: Tensor


class Graph(nn.Module):
    """A backbone behind plain arrays, in eval mode.

    Attributes:
        inputs: what it reads.
        rows: name of the size that counts its output rows.
        channels: of its output.
    """

    inputs: tuple[Port, ...]
    rows: str
    channels: int

    @abstractmethod
    def arrays(self, points: PointBatch) -> Arrays:
        """The inputs of a single frame."""

    @abstractmethod
    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(rows, channels)."""


class Classifier(nn.Module):
    """A graph with the linear head of a task.

    Args:
        graph: of the backbone.
        head: channels -> classes, the ignored class 0 included.
    """

    def __init__(self, graph: Graph, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = graph, head

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (rows, classes), and the class of each row, (rows,) int64, never 0."""
        logits: Tensor = self.head(self.backbone(inputs))
        return logits, logits[:, 1:].argmax(1) + 1


def one_frame(points: Tensor, intensity: Tensor, **columns: Any) -> PointBatch:
    """A cloud as a batch.

    Args:
        points: (N, 3) float32 m.
        intensity: (N,) float32.
        columns: other fields of ``PointBatch``.
    """
    frame = torch.zeros(len(points), dtype=torch.int64)
    return PointBatch(points, intensity, frame, 1, **columns)
