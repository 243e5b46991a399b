"""Random draws of a training step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lidarssl.distributed import rank


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of one training step: the same on every rank and after every restart."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))


@contextmanager
def layer_draws(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Inside, layers that draw by themselves (dropout) follow (seed, step, rank).

    The generators of the process are as before afterwards.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(((seed * 1_000_003 + step) * 65_536 + rank()) % 2**63)
        yield
