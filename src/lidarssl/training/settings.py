"""How a run trains: the ``training`` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

from lidarssl.training.loading import BadSamples, batches_per_epoch
from lidarssl.training.optimizer import Optimizer, Schedule


@dataclass
class Training:
    """How a run trains.

    Args:
        batch_size: frames of a step over all processes.
        drop_last: leave out the frames of an epoch that do not fill a batch; false = they are a
            smaller one.
        epochs: passes over the frames; ignored when ``steps`` is given.
        steps: optimiser steps of the whole run.
        optimizer, schedule: see there.
        seed: of initialisation, shuffles and every draw.
        workers: loader processes of each training process; they never change the result.
        prefetch: batches that each of them makes ahead; more hold more memory, and even out
            frames that take long, as from a network.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``, which a CPU does as ``bf16-mixed``.
        accelerator: ``auto``, ``cpu``, ``cuda``, ``mps``.
        devices: processes on this machine (DDP); ``auto`` = every GPU, one on CPU.
        nodes: machines (DDP by torchrun or SLURM).
        checkpoint_every: steps between resumable checkpoints; 0 = only at the end.
        log_every: steps between logged values.
        validate_every: steps between two looks at held-out frames: the loss and its terms, and of
            methods that pair images and scans how they find each other; 0 = never.
        bad_samples: ``raise``, or ``skip`` to replace a bad sample by the next good one.
        max_skipped: bad samples of one process after which ``skip`` gives up.
        keep_memory: on a CPU, reuse the memory of large tensors from step to step: faster, up to a
            third more of it (``docs/performance.md``).
    """

    batch_size: int = 4
    drop_last: bool = True
    epochs: int = 50
    steps: int | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    workers: int = 2
    prefetch: int = 2
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    checkpoint_every: int = 200
    log_every: int = 10
    validate_every: int = 0
    bad_samples: BadSamples = "raise"
    max_skipped: int = 100
    keep_memory: bool = True

    def total_steps(self, frames: int) -> int:
        if self.steps is not None:
            return self.steps
        return self.epochs * batches_per_epoch(frames, self.batch_size, self.drop_last)
