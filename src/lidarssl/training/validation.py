"""The training loss on held-out frames, comparable from step to step and from run to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as lightning
import torch

from lidarssl.frame import Batch
from lidarssl.training.learner import step_generator


class Validation:
    """Mean loss of some batches in eval mode; leaves weights, statistics and draws untouched.

    Args:
        batches: (rank, world) -> that process's part of every held-out batch, always the same.
        seed: of the draws inside a step: batch i always sees the same ones.
        every: optimiser steps between two validations.
    """

    def __init__(
        self, batches: Callable[[int, int], Iterator[Batch]], seed: int, every: int
    ) -> None:
        self.batches, self.seed, self.every = batches, seed, every

    @torch.no_grad()
    def loss(self, trainer: lightning.Trainer, module: Any) -> float:
        """Mean over batches and processes.

        Args:
            trainer: knows device, precision and processes.
            module: a method or task.
        """
        device, losses = trainer.strategy.root_device, []
        batches = self.batches(trainer.global_rank, trainer.world_size)
        was_training = module.training
        module.eval()
        for number, batch in enumerate(batches):
            with trainer.precision_plugin.val_step_context():
                output = module.training_step(batch.to(device), step_generator(self.seed, number))
            losses.append(output.loss.float())
        module.train(was_training)
        mean = trainer.strategy.reduce(torch.stack(losses).mean(), reduce_op="mean")
        return float(mean)
