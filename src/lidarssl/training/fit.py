"""One run on disk: train, log, checkpoint atomically, resume exactly."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.frame import Field, FrameId
from lidarssl.training.callbacks import LogSteps, SaveLast, StepProgress, StopOnSignal
from lidarssl.training.learner import Learner
from lidarssl.training.loading import (
    EpochBatches,
    FrameSource,
    Prepare,
    held_out_batches,
    training_loader,
)
from lidarssl.training.logs import RunLog, stage_folder
from lidarssl.training.memory import step_memory_kept
from lidarssl.training.resume import BatchOrder, resumable_step
from lidarssl.training.settings import Training
from lidarssl.training.validation import Validation
from lidarssl.transforms.base import Transform
from lidarssl.transforms.mixing import MixingTransform


@dataclass
class FitResult:
    """What a run leaves behind.

    Attributes:
        steps: optimiser steps done.
        skipped: bad samples replaced by this process.
        interrupted: stopped by Ctrl-C or SIGTERM before the last step.
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
    val_ids: Sequence[FrameId] = (),
    val_transforms: Sequence[Transform] = (),
    mixing: Sequence[MixingTransform] = (),
) -> FitResult:
    """Train ``module`` on frames.

    Args:
        module: a method or task (has ``training_step``).
        dataset, ids, fields, transforms: where batches come from.
        training: see there.
        run: folder that receives ``metrics.jsonl``, ``logs/`` and ``checkpoints/last.ckpt``.
        stage: name of this run in ``metrics.jsonl``.
        prepare: of the backbone, done in the workers.
        resume: continue from ``checkpoints/last.ckpt`` exactly as if never stopped; a finished
            run is left as it is, or goes on where ``training`` has more steps now.
        progress: show a progress bar.
        append_metrics: several stages share one ``metrics.jsonl``.
        val_ids, val_transforms: held-out frames of ``training.validate_every``.
        mixing: of the frames that are trained on, before the transforms.

    Raises:
        ConfigError: nothing to resume, or a checkpoint of another run; a batch larger than the
            dataset; a dataset with a weight but no frame; no held-out frame to validate on.
        DataError: a bad sample under the policy ``raise``; a damaged checkpoint.
    """
    steps, last = training.total_steps(len(ids)), run / "checkpoints" / "last.ckpt"
    streams = dataset.streams(ids)
    batches = EpochBatches(
        len(ids), training.batch_size, steps, training.seed,
        drop_last=training.drop_last, streams=streams,
    )  # fmt: skip
    learner = _learner(module, training, steps, batches.per_epoch)
    order = BatchOrder.of(training.seed, training.batch_size, ids, training.drop_last, streams)
    start = resumable_step(last, learner, order) if resume else 0
    source, held_out = (
        FrameSource(
            dataset, some, fields, through, training.seed, training.bad_samples, mixing=mixed
        )
        for some, through, mixed in ((ids, transforms, mixing), (val_ids, val_transforms, ()))
    )
    log = RunLog(run, stage, batches.per_epoch, append_metrics)
    validation = _validation(held_out, training, prepare)
    with _quiet_lightning(), StopOnSignal() as stop:
        callbacks: list[Callback] = [
            LogSteps(log, training.log_every, validation),
            stop,
            SaveLast(last.parent, training.checkpoint_every, order),
            *([StepProgress(stage)] if progress else []),
        ]
        trainer = _trainer(training, run, stage, steps, start, callbacks, progress)
        batches.split(trainer.global_rank, trainer.world_size)
        device = trainer.strategy.root_device
        loader = training_loader(
            source, batches, training.workers, prepare, device.type == "cuda", training.prefetch
        )
        try:
            with step_memory_kept(device, training.keep_memory):
                trainer.fit(learner, loader, ckpt_path=last if resume else None, weights_only=True)
        except SystemExit as error:  # how the trainer ends at a second Ctrl-C
            raise KeyboardInterrupt from error
        except RuntimeError as error:
            # A scheduler may end the loader's workers too; the last checkpoint stands.
            if not (stop.received and "DataLoader worker" in str(error)):
                raise
    done = trainer.global_step
    return FitResult(done, learner.skipped, interrupted=stop.received and done < steps)


def _learner(module: nn.Module, training: Training, steps: int, steps_per_epoch: int) -> Learner:
    learner = Learner(
        module,  # type: ignore[arg-type]
        training.optimizer,
        training.schedule,
        steps,
        steps_per_epoch,
        training.seed,
        training.max_skipped if training.bad_samples == "skip" else 0,
    )
    return learner.train()


def _validation(
    source: FrameSource, training: Training, prepare: Prepare | None
) -> Validation | None:
    if not training.validate_every:
        return None
    if not len(source):
        raise ConfigError(
            "there is no held-out frame to validate on",
            field="training.validate_every",
            remedy="set it to 0, or val_split to a split that has frames",
        )
    batches = partial(held_out_batches, source, training.batch_size, training.workers, prepare)
    return Validation(batches, training.seed, training.validate_every)


def _trainer(
    training: Training,
    run: Path,
    stage: str,
    steps: int,
    start: int,
    callbacks: list[Callback],
    progress: bool,
) -> lightning.Trainer:
    run.mkdir(parents=True, exist_ok=True)
    curves = stage_folder(run, stage)
    return lightning.Trainer(
        default_root_dir=run,
        max_steps=steps,
        max_epochs=1,
        accelerator="gpu" if training.accelerator == "cuda" else training.accelerator,
        devices=_devices(training),
        num_nodes=training.nodes,
        precision=training.precision,  # type: ignore[arg-type]
        gradient_clip_val=training.optimizer.gradient_clip,
        log_every_n_steps=1,  # of the trainer's own log, which is not used
        # Curves from ``start`` on are those of a run that was stopped: hidden.
        logger=TensorBoardLogger(curves.parent, curves.name, version="", purge_step=start),
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


# Remarks of the trainer that ask nothing of the user.
_HARMLESS = (
    r".*isinstance\(treespec, LeafSpec\)",
    r"Found \d+ module\(s\) in eval mode",
    r".*does not have many workers",
    r"(GPU|MPS) available but not used",
)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _HARMLESS:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
