"""The contract of a lidar backbone: points -> PointFeatures."""

from __future__ import annotations

from abc import abstractmethod

from torch import nn

from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch, PointFeatures
from lidarssl.geometry.boxes import Corner


class Backbone(nn.Module):
    """Invariant to the order of points; frames of a batch never mix (batch norm aside).

    Attributes:
        out_channels: width of the returned features.
        columns: whether tokens are vertical columns, whose height means nothing.
        fov: low and high corner of the box that it sees, m; None = everything.
        voxel_of_token: m, edge of the voxels of which a single point becomes a token: training
            draws that point at random (``transforms.thinning.Thin``). None = every point counts.
    """

    out_channels: int
    columns: bool = False
    fov: tuple[Corner, Corner] | None = None
    voxel_of_token: float | None = None

    @abstractmethod
    def forward(self, points: PointBatch) -> PointFeatures: ...

    def prepare(self, points: PointBatch) -> PointBatch:
        """Do ahead, in a loader worker, what needs no weights (voxels, neighbours).

        ``forward`` gives the same result with or without it.
        """
        return points

    def layers(self) -> list[list[nn.Module]]:
        """Modules of every layer from the input to the output: every parameter in one of them.

        Raises:
            ConfigError: the layers of this backbone have no order.
        """
        raise ConfigError(
            f"the layers of {type(self).__name__} have no order, which a rate of each would need",
            field="training.optimizer.layer_decay",
            remedy="set it to null, or choose another backbone",
        )
