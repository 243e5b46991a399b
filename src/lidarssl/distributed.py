"""What several processes must share so that they compute what one process would.

Every function is the identity when no process group is initialised. With gradients averaged
over ranks (DDP), a loss computed by every rank on gathered rows has exactly the gradient of
the loss of the whole batch in one process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_counts(count: int, device: torch.device) -> list[int]:
    """The value of ``count`` on every rank, in rank order."""
    if world_size() == 1:
        return [count]
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([count], dtype=torch.int64, device=device))
    return [int(value) for value in counts]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of every rank, in rank order, with gradients to each owner.

    Args:
        rows: (R, ...), R may differ between ranks.

    Returns:
        (sum of R over ranks, ...).
    """
    if world_size() == 1:
        return rows
    counts = gather_counts(rows.shape[0], rows.device)
    return _GatherRows.apply(rows, counts)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over ranks, with gradients."""
    return value if world_size() == 1 else _AllReduceSum.apply(value)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int]) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.counts = counts
        longest = max(counts)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        first = sum(ctx.counts[: rank()])
        return total[first : first + ctx.counts[rank()]], None


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        total = value.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total
