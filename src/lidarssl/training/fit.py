"""One run on disk: train, log, checkpoint atomically, resume exactly."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.frame import Field, FrameId
from lidarssl.training.learner import Learner, Optimizer, Schedule
from lidarssl.training.loading import (
    BadSamples,
    EpochBatches,
    FrameSource,
    Prepare,
    training_loader,
)
from lidarssl.transforms.base import Transform


@dataclass
class Training:
    """How a run trains.

    Args:
        batch_size: frames of a step over all processes.
        epochs: passes over the frames; ignored when ``steps`` is given.
        steps: optimiser steps of the whole run.
        optimizer, schedule: see there.
        seed: of initialisation, shuffles and every draw.
        workers: loader processes of each training process; they never change the result.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        accelerator: ``auto``, ``cpu``, ``cuda``, ``mps``.
        devices: processes on this machine (DDP); ``auto`` = every GPU, one on CPU.
        nodes: machines (DDP by torchrun or SLURM).
        checkpoint_every: steps between resumable checkpoints; 0 = only at the end.
        log_every: steps between logged values.
        bad_samples: ``raise``, or ``skip`` to replace a bad sample by the next good one.
        max_skipped: bad samples of one process after which ``skip`` gives up.
    """

    batch_size: int = 4
    epochs: int = 50
    steps: int | None = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    workers: int = 2
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    checkpoint_every: int = 200
    log_every: int = 10
    bad_samples: BadSamples = "raise"
    max_skipped: int = 100

    def total_steps(self, frames: int) -> int:
        return self.steps if self.steps is not None else self.epochs * (frames // self.batch_size)


@dataclass
class FitResult:
    """What a run leaves behind.

    Attributes:
        steps: optimiser steps done.
        skipped: bad samples replaced by this process.
        interrupted: stopped by Ctrl-C before the last step.
    """

    steps: int
    skipped: int
    interrupted: bool


def fit(
    module: nn.Module,
    dataset: Dataset,
    ids: Sequence[FrameId],
    fields: Field,
    transforms: Sequence[Transform],
    training: Training,
    run: Path,
    stage: str,
    prepare: Prepare | None = None,
    resume: bool = False,
    progress: bool = True,
    append_metrics: bool = False,
) -> FitResult:
    """Train ``module`` on frames.

    Args:
        module: a method or task (has ``training_step``).
        dataset, ids, fields, transforms: where batches come from.
        training: see there.
        run: folder that receives ``metrics.jsonl``, ``logs/`` and ``checkpoints/last.ckpt``.
        stage: name of this run in ``metrics.jsonl``.
        prepare: of the backbone, done in the workers.
        resume: continue from ``checkpoints/last.ckpt`` exactly as if never stopped.
        progress: show a progress bar.
        append_metrics: several stages share one ``metrics.jsonl``.

    Raises:
        ConfigError: nothing to resume, or a batch larger than the dataset.
        DataError: a bad sample under the policy ``raise``.
    """
    last = run / "checkpoints" / "last.ckpt"
    if resume and not last.is_file():
        raise ConfigError(
            "there is no checkpoint to resume from",
            path=last,
            remedy="start the run without --resume",
        )
    steps = training.total_steps(len(ids))
    trainer = _trainer(training, run, stage, steps, progress, append_metrics or resume)
    source = FrameSource(dataset, ids, fields, transforms, training.seed, training.bad_samples)
    batches = EpochBatches(
        len(ids), training.batch_size, steps, training.seed, trainer.global_rank, trainer.world_size
    )
    loader = training_loader(
        source,
        batches,
        training.workers,
        prepare,
        pin_memory=trainer.strategy.root_device.type == "cuda",
    )
    learner = Learner(
        module,  # type: ignore[arg-type]
        training.optimizer,
        training.schedule,
        steps,
        batches.per_epoch,
        training.seed,
        training.max_skipped if training.bad_samples == "skip" else 0,
    )
    if resume:
        _check_resumable(last, learner)
    trainer.fit(learner, loader, ckpt_path=last if resume else None, weights_only=True)
    return FitResult(trainer.global_step, learner.skipped, trainer.interrupted)


def choose_device(accelerator: str) -> torch.device:
    """The device behind an ``accelerator`` of ``Training``, for work without a trainer.

    Raises:
        ConfigError: this machine does not have it.
    """
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(accelerator, False):
        raise ConfigError(
            f"there is no '{accelerator}' device here",
            field="accelerator",
            remedy=f"choose auto or one of {[name for name, here in present.items() if here]}",
        )
    return torch.device(accelerator)


def _trainer(
    training: Training, run: Path, stage: str, steps: int, progress: bool, append: bool
) -> lightning.Trainer:
    _quiet_lightning()
    run.mkdir(parents=True, exist_ok=True)
    callbacks: list[Callback] = [SaveLast(run / "checkpoints", training.checkpoint_every)]
    if progress:
        callbacks.append(StepProgress(stage))
    return lightning.Trainer(
        max_steps=steps,
        max_epochs=1,
        accelerator="gpu" if training.accelerator == "cuda" else training.accelerator,
        devices=_devices(training),
        num_nodes=training.nodes,
        precision=training.precision,  # type: ignore[arg-type]
        gradient_clip_val=training.optimizer.gradient_clip,
        logger=[
            JsonlLogger(run / "metrics.jsonl", stage, append),
            CSVLogger(run / "logs", name=stage.replace("/", "_"), version=""),
            TensorBoardLogger(run / "logs", name=stage.replace("/", "_"), version=""),
        ],
        log_every_n_steps=training.log_every,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        use_distributed_sampler=False,
    )


def _devices(training: Training) -> int | str:
    on_cpu = training.accelerator == "cpu" or (
        training.accelerator == "auto" and not torch.cuda.is_available()
    )
    if training.devices == "auto" and on_cpu:
        return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return training.devices


def _quiet_lightning() -> None:
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _check_resumable(path: Path, learner: Learner) -> None:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    found = set(saved["state_dict"])
    expected = set(learner.state_dict())
    if found != expected:
        example = sorted(found ^ expected)[0]
        raise ConfigError(
            f"the checkpoint is of another architecture ({len(found ^ expected)} keys differ)",
            path=path,
            field=example,
            remedy="resume with the recipe that started the run",
        )


class SaveLast(Callback):
    """Writes ``last.ckpt`` every so many steps and at the end; a kill loses no finished file."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        if not trainer.interrupted:
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "last.ckpt.partial"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.folder / "last.ckpt")


class JsonlLogger(Logger):
    """One JSON object per logged step: {"stage", "step", "epoch", names: values}."""

    def __init__(self, path: Path, stage: str, append: bool) -> None:
        super().__init__()
        self.path, self.stage = path, stage
        if not append:
            self.path.unlink(missing_ok=True)

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return None

    @lightning.utilities.rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"stage": self.stage, "step": step, **metrics}
        finite = {
            key: (value if not isinstance(value, float) or math.isfinite(value) else None)
            for key, value in row.items()
        }
        with self.path.open("a") as file:
            file.write(json.dumps(finite) + "\n")


class StepProgress(lightning.callbacks.TQDMProgressBar):
    """The progress bar with the stage's name."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=5)
        self.stage = stage

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.stage)
        return bar

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.stage)
