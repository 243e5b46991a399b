from __future__ import annotations

import doctest
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lidarssl.metrics import segmentation_metric
from lidarssl.metrics.segmentation import confusion
from lidarssl.metrics.segmentation_metric import SegmentationMetric


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, (2, n), generator=generator).unbind() for n in (10, 1, 300)]


def test_accumulates_and_resets() -> None:
    metric = SegmentationMetric(5)
    for pred, target in batches():
        metric.update(pred, target)
    pred, target = (torch.cat(part) for part in zip(*batches(), strict=True))
    first = metric.compute()
    assert torch.equal(first.confusion, confusion(pred, target, 5))
    assert metric.to_json(tuple("abcde"))["frames"] == 3
    metric.reset()
    metric.update(*batches()[1])
    assert int(metric.compute().confusion.sum()) == 1
    assert int(first.confusion.sum()) == 311


def test_example_of_the_docstring() -> None:
    result = doctest.testmod(segmentation_metric)
    assert result.attempted == 3
    assert result.failed == 0


def test_counts_stay_integers_in_a_half_precision_module() -> None:
    metric = SegmentationMetric(2)
    torch.nn.ModuleList([metric]).half()
    metric.update(torch.ones(3001, dtype=torch.int64), torch.ones(3001, dtype=torch.int64))
    assert metric.compute().confusion.dtype is torch.int64
    assert int(metric.compute().gt_points[1]) == 3001


def _rank(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = SegmentationMetric(5)
    for pred, target in batches()[rank::2]:
        metric.update(pred, target)
    report = metric.compute()
    if rank == 0:
        torch.save(report.confusion, out)
    dist.destroy_process_group()


def test_two_processes_count_what_one_does(tmp_path: Path) -> None:
    out = tmp_path / "confusion.pt"
    mp.spawn(_rank, (str(tmp_path / "store"), str(out)), nprocs=2)
    pred, target = (torch.cat(part) for part in zip(*batches(), strict=True))
    assert torch.equal(torch.load(out, weights_only=True), confusion(pred, target, 5))
