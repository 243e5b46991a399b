"""Cross-entropy of pixels by explicit loops in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from lidarssl.losses.pixel_cross_entropy import Average, pixel_cross_entropy


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Four images of 3 classes; the first has few labels, the last none."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((4, 3, 5, 6), dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (4, 5, 6), generator=generator)
    labels[0, 1:] = 0
    labels[3] = 0
    return logits, labels


def by_loops(logits: Tensor, labels: Tensor, average: Average) -> float:
    total, labelled = 0.0, 0
    for image in range(len(labels)):
        for row in range(labels.shape[1]):
            for column in range(labels.shape[2]):
                label = int(labels[image, row, column])
                if label:
                    scores = logits[image, :, row, column].tolist()
                    log_sum = math.log(sum(math.exp(score) for score in scores))
                    total += log_sum - scores[label - 1]
                    labelled += 1
    return total / (labelled if average == "labelled" else labels.numel())


@pytest.mark.parametrize("average", ["labelled", "all"])
def test_equals_the_loops(average: Average) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    loss = pixel_cross_entropy(logits, labels, average)
    expected = by_loops(logits.detach(), labels, average)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: pixel_cross_entropy(x, labels, average), logits)


def test_half_precision_is_summed_in_float32() -> None:
    logits, labels = batch()
    found = pixel_cross_entropy(logits.bfloat16(), labels)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(
        by_loops(logits.bfloat16().double(), labels, "labelled"), rel=1e-5
    )


@pytest.mark.parametrize("average", ["labelled", "all"])
def test_without_labels_the_loss_is_0(average: Average) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.zeros(2, 4, 4, dtype=torch.int64), average)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    found = {}
    for average in ("labelled", "all"):
        logits, labels = batch()
        mine = slice(2 * rank, 2 * rank + 2)
        half = logits[mine].clone().requires_grad_()
        loss = pixel_cross_entropy(half, labels[mine], average)
        loss.backward()
        found[average] = (loss.detach(), half.grad)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Each has the loss of both; gradients halve when they are averaged over processes."""
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for average in ("labelled", "all"):
        logits, labels = batch()
        logits.requires_grad_()
        expected = pixel_cross_entropy(logits, labels, average)
        expected.backward()
        halves = torch.cat([rank[average][1] for rank in ranks])
        torch.testing.assert_close(halves / 2, logits.grad)
        for rank in ranks:
            torch.testing.assert_close(rank[average][0], expected.detach())
