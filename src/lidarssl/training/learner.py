"""Wraps any module with a ``training_step`` once for Lightning, with its optimiser and schedule."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from lidarssl.errors import DataError
from lidarssl.frame import Batch, StepOutput
from lidarssl.methods.base import Method
from lidarssl.training.draws import layer_draws, step_generator
from lidarssl.training.loading import LoadedBatch, good_batch
from lidarssl.training.optimizer import Optimizer, Schedule, build_optimizer
from lidarssl.wording import counted


@runtime_checkable
class Trainable(Protocol):
    """What can be trained: every method and every task."""

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput: ...


class Learner(lightning.LightningModule):
    """Lightning's view of a method or a task.

    Args:
        module: what trains.
        optimizer, schedule: see there.
        steps: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps of one pass over the frames.
        seed: of the draws inside a step.
        max_skipped: bad samples of this process after which the run stops.

    Attributes:
        values: what the last step has to log, by name.
    """

    def __init__(
        self,
        module: Trainable,
        optimizer: Optimizer,
        schedule: Schedule,
        steps: int,
        steps_per_epoch: int,
        seed: int,
        max_skipped: int = 0,
    ) -> None:
        super().__init__()
        assert isinstance(module, nn.Module)
        self.module: Any = module
        self.optimizer, self.schedule = optimizer, schedule
        self.steps, self.steps_per_epoch, self.seed = steps, steps_per_epoch, seed
        self.max_skipped, self.skipped = max_skipped, 0
        self.values: dict[str, Tensor | float] = {}

    def transfer_batch_to_device(
        self, batch: LoadedBatch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        self._count_skipped(batch)
        return good_batch(batch).to(device, non_blocking=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.trainer.global_step
        if isinstance(self.module, Method):
            self.module.progress = step / self.steps
        with layer_draws(self.seed, step, self.device):
            output = self.module.training_step(batch, step_generator(self.seed, step))
        loss = output.loss.detach()
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.values = {"loss": loss, **output.terms, "lr": rate}
        if self.max_skipped:
            self.values["skipped"] = self.skipped
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=batch.points.batch_size)
        return output.loss

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.module, self.optimizer)
        factor = self.schedule.factor(self.steps, self.steps_per_epoch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _count_skipped(self, batch: LoadedBatch) -> None:
        self.skipped += len(batch.skipped)
        if batch.error is None and self.skipped > self.max_skipped:
            raise DataError(
                f"{counted(self.skipped, 'bad sample')}, more than training.max_skipped = "
                f"{self.max_skipped}; the last:\n  {batch.skipped[-1]}",
                field="training.max_skipped",
                remedy="run `lidarssl data check`, mend the files or raise the ceiling",
            )
