"""The contract of a lidar backbone: points -> PointFeatures."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from lidarssl.frame import PointBatch, PointFeatures


class Backbone(nn.Module):
    """Invariant to the order of points; frames of a batch never mix (batch norm aside).

    Attributes:
        out_channels: width of the returned features.
        columns: whether tokens are vertical columns, whose height means nothing.
    """

    out_channels: int
    columns: bool = False

    @abstractmethod
    def forward(self, points: PointBatch) -> PointFeatures: ...

    def prepare(self, points: PointBatch) -> PointBatch:
        """Do ahead, in a loader worker, what needs no weights (voxels, neighbours).

        ``forward`` gives the same result with or without it.
        """
        return points
