"""Point-wise segmentation scores from an integer confusion matrix, ``C[truth, prediction]``.

One definition with switches: the published numbers of the field differ in how they treat ignored
points, predictions of the ignored class, and classes that never occur.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lidarssl.errors import DataError, unknown_name


@dataclass(frozen=True)
class IouProtocol:
    """How a confusion matrix becomes per-class IoU; points of the ignored class never count.

    Attributes:
        name: written into reports.
        ignored_prediction: a labelled point predicted as the ignored class is a ``miss`` of its
            class, is ``removed`` from the counts, or is ``forbidden``.
        absent: IoU of an absent class: ``excluded`` from the mean, ``one``, ``zero``, or the
            ``mean`` of the others.
        absent_means: absent is a class without truth and prediction (``union``), or without
            ``truth``.
    """

    name: str
    ignored_prediction: Literal["miss", "removed", "forbidden"] = "miss"
    absent: Literal["excluded", "one", "zero", "mean"] = "excluded"
    absent_means: Literal["union", "truth"] = "union"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        IouProtocol("nan"),
        IouProtocol("slidr", absent="one"),
        IouProtocol("also", ignored_prediction="removed"),
        IouProtocol(
            "also_stats", ignored_prediction="removed", absent="mean", absent_means="truth"
        ),
        IouProtocol("scalr"),
        IouProtocol("semantic_kitti_api", absent="zero"),
        IouProtocol("nuscenes_devkit", ignored_prediction="forbidden"),
    )
}


@dataclass  # not frozen: torchmetrics rebuilds what a metric computes field by field
class IouReport:
    """Scores in [0, 1], NaN where undefined; per-class rows are NaN (or 0) for the ignored class.

    Attributes:
        protocol: name of the definition.
        ignore_index: the ignored class, or None.
        miou: mean of ``iou``, NaN left out.
        fwiou_true: IoU weighted by the frequency of each class in the truth.
        fwiou_micro: pooled intersection / pooled union (what SLidR calls fwIoU).
        oacc: fraction of labelled points predicted right.
        macc: mean of ``accuracy`` over the classes in the truth.
        iou, accuracy, precision: (C,) float64.
        gt_points, pred_points: (C,) int64, labelled points only.
        confusion: (C, C) int64 as counted, ignored class included.
    """

    protocol: str
    ignore_index: int | None
    miou: float
    fwiou_true: float
    fwiou_micro: float
    oacc: float
    macc: float
    iou: Tensor
    accuracy: Tensor
    precision: Tensor
    gt_points: Tensor
    pred_points: Tensor
    confusion: Tensor

    def to_json(self, names: Sequence[str], frames: int) -> dict[str, Any]:
        """Plain JSON values; undefined scores are None.

        Args:
            names: of all C classes, ignored one included.
            frames: number of frames evaluated.
        """
        if len(names) != len(self.iou):
            raise ValueError(f"{len(names)} names for {len(self.iou)} classes")
        return {
            "protocol": self.protocol,
            "ignore": self.ignore_index,
            "frames": frames,
            **{
                name: _finite(getattr(self, name))
                for name in ("miou", "fwiou_true", "fwiou_micro", "oacc", "macc")
            },
            "per_class": {
                name: {
                    "iou": _finite(float(self.iou[index])),
                    "acc": _finite(float(self.accuracy[index])),
                    "precision": _finite(float(self.precision[index])),
                    "gt_points": int(self.gt_points[index]),
                    "pred_points": int(self.pred_points[index]),
                }
                for index, name in enumerate(names)
                if index != self.ignore_index
            },
            "confusion": self.confusion.tolist(),
        }


def confusion(pred: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count (truth, prediction) pairs.

    Args:
        pred, target: integer tensors of one shape, in [0, num_classes).

    Returns:
        (num_classes, num_classes) int64, rows truth, columns prediction.

    Raises:
        DataError: shapes differ or a class is out of range.
    """
    if pred.shape != target.shape:
        raise DataError(f"{tuple(pred.shape)} predictions for {tuple(target.shape)} labels")
    _check_classes(pred, num_classes, "prediction")
    _check_classes(target, num_classes, "label")
    pairs = target.flatten().long() * num_classes + pred.flatten().long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def confusion_by_distance(
    pred: Tensor, target: Tensor, points: Tensor, edges: Sequence[float], num_classes: int
) -> Tensor:
    """One confusion matrix per range bin ``edges[i] <= |xyz| < edges[i + 1]``.

    Args:
        pred, target: (N,) in [0, num_classes).
        points: (N, 3) m, sensor at the origin.
        edges: B + 1 increasing distances in m; points outside are left out.

    Returns:
        (B, num_classes, num_classes) int64.
    """
    distance = points.double().norm(dim=1)
    matrices = [
        confusion(pred[inside], target[inside], num_classes)
        for near, far in itertools.pairwise(edges)
        for inside in [(distance >= near) & (distance < far)]
    ]
    return torch.stack(matrices)


def iou_report(
    confusion: Tensor, protocol: str | IouProtocol = "nan", ignore_index: int | None = 0
) -> IouReport:
    """Scores of a confusion matrix.

    Args:
        confusion: (C, C) int64, rows truth, columns prediction.
        protocol: a name of ``PROTOCOLS`` or a definition of one's own.
        ignore_index: class of the unlabelled points, or None when every class counts.

    Raises:
        ConfigError: unknown protocol.
        DataError: a forbidden prediction of the ignored class.
    """
    protocol = _protocol(protocol)
    counted = _labelled(confusion, protocol, ignore_index).double()
    hits, truth, predicted = counted.diagonal(), counted.sum(1), counted.sum(0)
    union = truth + predicted - hits
    iou = _fill_absent(hits / union, truth if protocol.absent_means == "truth" else union, protocol)
    if ignore_index is not None:
        iou[ignore_index] = torch.nan
    accuracy, total = hits / truth, counted.sum()
    return IouReport(
        protocol=protocol.name,
        ignore_index=ignore_index,
        miou=float(iou.nanmean()),
        fwiou_true=float((truth * iou).nansum() / total),
        fwiou_micro=float(hits.sum() / (2 * total - hits.sum())),
        oacc=float(hits.sum() / total),
        macc=float(accuracy.nanmean()),
        iou=iou,
        accuracy=accuracy,
        precision=hits / predicted,
        gt_points=truth.long(),
        pred_points=predicted.long(),
        confusion=confusion.clone(),
    )


def _protocol(protocol: str | IouProtocol) -> IouProtocol:
    if isinstance(protocol, IouProtocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    return PROTOCOLS[protocol]


def _labelled(confusion: Tensor, protocol: IouProtocol, ignore_index: int | None) -> Tensor:
    """The counts that matter: no ignored truth, predictions of it by the protocol's rule."""
    counted = confusion.clone()
    if ignore_index is None:
        return counted
    if protocol.ignored_prediction == "forbidden" and counted[:, ignore_index].any():
        raise DataError(
            f"{int(counted[:, ignore_index].sum())} points are predicted as the ignored class, "
            f"which the protocol '{protocol.name}' forbids",
            remedy="take the arg-max over the other classes",
        )
    counted[ignore_index] = 0
    if protocol.ignored_prediction == "removed":
        counted[:, ignore_index] = 0
    return counted


def _fill_absent(iou: Tensor, occurrences: Tensor, protocol: IouProtocol) -> Tensor:
    present = occurrences > 0
    value = {
        "excluded": torch.nan,
        "one": 1.0,
        "zero": 0.0,
        "mean": float(iou[present].mean()),
    }[protocol.absent]
    return torch.where(present, iou, value)


def _check_classes(values: Tensor, num_classes: int, what: str) -> None:
    if values.numel() == 0:
        return
    lowest, highest = (int(value) for value in torch.aminmax(values))
    if lowest < 0 or highest >= num_classes:
        raise DataError(
            f"{what}s span {lowest}..{highest}, outside 0..{num_classes - 1}",
            field=what,
            remedy="map raw labels to train classes first; 0 is the ignored class",
        )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
