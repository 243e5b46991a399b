"""The confusion matrix as a torchmetrics metric: accumulates over batches, syncs over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lidarssl.metrics.segmentation import IouReport, confusion, iou_report


class SegmentationMetric(Metric):
    """Scores of all points seen so far.

    Args:
        num_classes: ignored class included.
        ignore_index: class of the unlabelled points, or None.
        protocol: definition of the scores, see :data:`lidarssl.metrics.segmentation.PROTOCOLS`.

    Example:
        >>> metric = SegmentationMetric(num_classes=3)
        >>> metric.update(torch.tensor([1, 2, 2, 1]), torch.tensor([1, 2, 1, 0]))
        >>> metric.compute().miou
        0.5
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    confusion: Tensor
    frames: Tensor

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = 0,
        protocol: str = "nan",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.ignore_index, self.protocol = num_classes, ignore_index, protocol
        empty = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", empty, dist_reduce_fx="sum")
        self.add_state("frames", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Tensor, target: Tensor, frames: int = 1) -> None:
        """Count the points of ``frames`` frames; shapes as :func:`confusion`."""
        self.confusion += confusion(pred, target, self.num_classes)
        self.frames += frames

    def compute(self) -> IouReport:
        return iou_report(self.confusion, self.protocol, self.ignore_index)

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """The report of everything seen as plain JSON values; ``names`` of all classes."""
        report: IouReport = self.compute()
        return report.to_json(names, int(self.frames))
