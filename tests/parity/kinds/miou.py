"""The IoU definitions of the reference evaluation scripts."""

from __future__ import annotations

import numpy as np
import torch

from lidarssl.metrics.segmentation import IouReport, confusion, iou_report
from parity.case import Case

SCORES = {
    "slidr_miou",
    "slidr_fwiou",
    "slidr_iou",
    "slidr_hist",
    "also_miou",
    "also_fwiou",
    "also_iou",
    "also_stats_miou",
    "also_stats_iou",
    "scalr_iou",
    "scalr_nanmean",
}


def recognises(case: Case) -> bool:
    arrays = set(case.manifest.get("arrays", {}))
    inputs = {"labels", "preds"}
    return (
        set(case.args) >= {"num_classes", "ignore_index"}
        and arrays > inputs
        and arrays - inputs <= SCORES
    )


def check(case: Case) -> None:
    ignore, classes = case.args["ignore_index"], case.args["num_classes"]
    labels, preds = (torch.from_numpy(case.arrays[n]).long() for n in ("labels", "preds"))
    matrix = confusion(preds, labels, classes)
    slidr, also, stats, scalr = (
        iou_report(matrix, name, ignore) for name in ("slidr", "also", "also_stats", "scalr")
    )
    actual = {
        "slidr_miou": slidr.miou,
        "slidr_fwiou": slidr.fwiou_micro,
        "slidr_iou": _without_ignored(slidr),
        "slidr_hist": matrix.numpy(),
        "also_miou": also.miou,
        "also_fwiou": also.fwiou_true,
        "also_iou": also.iou.numpy(),
        "also_stats_miou": stats.miou,
        # The ignored class has no truth left, so the reference gives it the mean as well.
        "also_stats_iou": stats.iou.nan_to_num(stats.miou).numpy(),
        "scalr_iou": _without_ignored(scalr),
        "scalr_nanmean": scalr.miou,
    }
    for name in set(case.arrays) & SCORES:
        np.testing.assert_allclose(actual[name], case.arrays[name], rtol=0, atol=1e-6, err_msg=name)


def _without_ignored(report: IouReport) -> np.ndarray:
    if report.ignore_index is None:
        return report.iou.numpy()
    return np.delete(report.iou.numpy(), report.ignore_index)
