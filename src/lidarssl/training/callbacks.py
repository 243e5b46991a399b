"""What happens after every optimiser step: log, validate, checkpoint, stop when asked to."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback, TQDMProgressBar

from lidarssl.training.logs import RunLog
from lidarssl.training.resume import ORDER, BatchOrder
from lidarssl.training.validation import Validation

_STOPPING = b"\nfinishing this step to save it; Ctrl-C again stops at once\n"


class LogSteps(Callback):
    """Writes the values of every ``every``-th step and of the last; of held-out frames when due.

    Done before the checkpoint of the same step, so that what a checkpoint has seen is logged.
    """

    def __init__(self, written: RunLog, every: int, validation: Validation | None) -> None:
        self.written, self.every, self.validation = written, every, validation

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            self.written.open(trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done, values = trainer.global_step, {}
        if done % self.every == 0 or done == trainer.max_steps:
            values = {name: float(value) for name, value in module.values.items()}
        if self.validation is not None and done % self.validation.every == 0:
            values |= self.validation.values(trainer, module.module)
        if values and trainer.is_global_zero:
            self.written.add(done - 1, values)
            for logger in trainer.loggers:
                logger.log_metrics(values, done - 1)


class SaveLast(Callback):
    """Writes ``last.ckpt`` every so many steps and at the end; a kill loses no finished file."""

    def __init__(self, folder: Path, every: int, order: BatchOrder) -> None:
        self.folder, self.every, self.order = folder, every, order

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = self.every > 0 and step % self.every == 0
        if due or step == trainer.max_steps or trainer.should_stop:
            self.save(trainer)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[ORDER] = asdict(self.order)
        # Otherwise a finished run could not go on with more steps.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def save(self, trainer: lightning.Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "last.ckpt.partial"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.folder / "last.ckpt")


class StopOnSignal(Callback):
    """Ctrl-C and SIGTERM (a scheduler's preemption) end the run after the step in progress.

    Used as a context: the signals are handled as before once it is left. A second Ctrl-C is not
    waited for. Must come before the callback that saves.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = False
        self.process = os.getpid()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python hands signals to the main thread alone; elsewhere they are not ours to take.
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.getsignal(number) for number in self.SIGNALS}
        self._listen()
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        self._listen()  # again: the trainer has put its own handlers, which end mid-epoch, on top

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.strategy.reduce_boolean_decision(self.received, all=False):
            trainer.should_stop = True

    def _listen(self) -> None:
        for number in self.before:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        if os.getpid() != self.process:
            return  # a worker that was forked with this handler
        if number == signal.SIGINT:
            if self.received:
                raise KeyboardInterrupt
            os.write(2, _STOPPING)
        self.received = True


class StepProgress(TQDMProgressBar):
    """The progress bar with the stage's name."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=5)
        self.stage = stage

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.stage)
        # A run that goes on in the middle starts no epoch, which would tell the total.
        bar.total = self.trainer.max_steps
        return bar

    def on_exception(self, *args: Any) -> None:
        """Leave the line of the bar, so that the message gets one of its own."""
        if self._train_progress_bar is not None:
            self.train_progress_bar.close()

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.stage)
