"""`lidarssl pretrain`: from a recipe to a student, a log and a report."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lidarssl import checkpoints
from lidarssl.distributed import rank
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.method_pictures import add_method_pictures
from lidarssl.experiments.pictures import PictureBook, picture_frame, point_features
from lidarssl.experiments.record import (
    LIDAR_ENCODER_FILE,
    STUDENT_FILE,
    TASK_FILE,
    Recorder,
    architecture,
    refuse_finished_run,
    refuse_other_recipe,
    refuse_other_run,
    skipped_note,
)
from lidarssl.experiments.retrieval import add_retrieval
from lidarssl.frame import Batch, FrameId
from lidarssl.methods.base import Method
from lidarssl.recipes.kinds import PretrainRecipe
from lidarssl.recipes.schema import LoadedRecipe
from lidarssl.report.build import build_report
from lidarssl.report.schema import Results
from lidarssl.training.devices import autocast, choose_device
from lidarssl.training.draws import step_generator
from lidarssl.training.fit import fit
from lidarssl.training.loading import (
    EpochBatches,
    FrameSource,
    good_batch,
    training_loader,
)
from lidarssl.training.memory import peak_memory, step_memory_kept
from lidarssl.training.requirements import check_method, check_prepared
from lidarssl.wording import counted


@dataclass(frozen=True)
class Pretrained:
    """What a pretraining leaves behind.

    Attributes:
        report: page of the run; beside it the student.
        said: lines to print.
    """

    report: Path
    said: tuple[str, ...] = ()


def pretrain_recipe(
    loaded: LoadedRecipe,
    run: Path,
    resume: bool,
    progress: bool,
    command: str,
    overwrite: bool = False,
) -> Pretrained:
    """Run a pretraining recipe.

    Args:
        loaded: the recipe.
        run: the run folder.
        resume: continue a training.
        progress: show bars.
        command: what repeats the run.
        overwrite: replace a finished run.

    Raises:
        ConfigError: the folder holds a finished run, or one that another recipe started.
    """
    recipe: PretrainRecipe = loaded.recipe
    refuse_other_run(run, TASK_FILE)
    if resume:
        refuse_other_recipe(run, loaded.resolved)
    elif not overwrite:
        refuse_finished_run(run, STUDENT_FILE, resumable=True)
    recorder = Recorder(
        run, recipe.about.title or run.name, command, recipe.training.seed, loaded.resolved
    )
    with recorder.stage("pretrain", f"{recipe.method.title} on unlabelled frames"):
        train_student(recipe, loaded.resolved, run, resume, progress, notes=recorder.notes)
    if rank() != 0:
        return Pretrained(run / "report.html")
    book = PictureBook(run, recipe.dataset)
    add_pretraining_pictures(recipe, book)
    said = add_retrieval(recipe.method, recipe, run, book, progress) or ()
    Results("nothing yet: pretraining alone", pictures=tuple(book.records)).save(run)
    recorder.save()
    return Pretrained(build_report(run), tuple(said))


def train_student(
    recipe: PretrainRecipe,
    resolved: str,
    run: Path,
    resume: bool = False,
    progress: bool = True,
    stage: str | None = None,
    append_metrics: bool = False,
    notes: list[str] | None = None,
) -> Path:
    """Train the method and save its student with a card; beside it a lidar encoder that taught it.

    Args:
        recipe: what to run.
        resolved: the recipe as YAML.
        run, resume, progress, stage, append_metrics: see ``fit``.
        notes: receives what a reader of the run should know.

    Returns:
        The weights file.
    """
    method, dataset, training = recipe.method, recipe.dataset, recipe.training
    choose_device(training.accelerator)
    check_method(method, dataset, recipe.train_split)
    frames = dataset.frames(recipe.train_split)
    if training.bad_samples == "raise":
        check_prepared(method.prepared, dataset, frames)
    held_out = _held_out(recipe) if training.validate_every else []
    name = type(method).__name__.lower()
    result = fit(
        method, dataset, frames, method.needs,
        method.transforms(training=True), training, run, stage or f"pretrain/{name}",
        prepare=method.lidar_encoder.prepare, resume=resume, progress=progress,
        append_metrics=append_metrics, val_ids=held_out,
        val_transforms=method.transforms(training=False),
    )  # fmt: skip
    if result.interrupted:
        raise KeyboardInterrupt
    if notes is not None:
        notes.extend(skipped_note(result.skipped))
    card = checkpoints.Card(
        architecture(method.student, resolved, "method", method.student_argument),
        recipe=name,
        data=tuple(
            f"{seen}/{recipe.train_split}"
            for seen in dict.fromkeys(dataset.of(frame).name for frame in frames)
        ),
        step=result.steps,
    )
    if rank() == 0:
        checkpoints.save(run / STUDENT_FILE, method.student, card)
        if method.lidar_encoder is not method.student:
            built = architecture(method.lidar_encoder, resolved, "method", "backbone")
            beside = replace(card, architecture=built)
            checkpoints.save(run / LIDAR_ENCODER_FILE, method.lidar_encoder, beside)
    return run / STUDENT_FILE


def add_pretraining_pictures(
    recipe: PretrainRecipe, book: PictureBook, features: bool = True
) -> None:
    """Input with matches, what is particular to the method, and features of the student.

    On a held-out frame, of a mixed dataset one of each. Like pretraining itself it reads no label.
    """
    method, dataset = recipe.method, recipe.dataset
    split = picture_split(recipe)
    firsts = {frame.dataset: frame for frame in reversed(dataset.frames(split))}
    for name in sorted(firsts):
        part = book.of_part(name) if len(firsts) > 1 else book
        frame = picture_frame(dataset, firsts[name], split, labels=False)
        part.add_input(frame)
        add_method_pictures(method.cpu(), frame, part)
        if features:
            rows = point_features(method.lidar_encoder, frame, torch.device("cpu"))
            part.add_features(frame, rows, "pretrained", "Kinds of objects should share a colour.")


def picture_split(recipe: PretrainRecipe) -> str:
    """The held-out split where it has a frame, else that of training."""
    try:
        return recipe.val_split if recipe.dataset.frames(recipe.val_split) else recipe.train_split
    except ConfigError:
        raise
    except DataError:  # a root with training data alone; pictures need no more
        return recipe.train_split


@dataclass(frozen=True)
class DryRun:
    """What one step costs.

    Attributes:
        lines: shapes of the batch and of the features.
        seconds: median time of a step after the first.
        steps: of the whole run.
        memory: bytes, peak of the process or the device.
    """

    lines: tuple[str, ...]
    seconds: float
    steps: int
    memory: int
    where: str

    def __str__(self) -> str:
        hours = self.seconds * self.steps / 3600
        return "\n".join(
            [
                *self.lines,
                f"step        {self.seconds:.3f} s",
                f"memory      {self.memory / 1024**3:.2f} GiB peak on {self.where}",
                f"whole run   {counted(self.steps, 'step')}, about {_duration(hours)} "
                "(one process, loading included)",
            ]
        )


def dry_run(loaded: LoadedRecipe, repeats: int = 3) -> DryRun:
    """A few steps of a pretraining recipe, thrown away: shapes, memory and a time estimate."""
    recipe: PretrainRecipe = loaded.recipe
    method, dataset, training = recipe.method, recipe.dataset, recipe.training
    check_method(method, dataset, recipe.train_split)
    ids = dataset.frames(recipe.train_split)
    check_prepared(method.prepared, dataset, ids)
    device = choose_device(training.accelerator)
    source = FrameSource(dataset, ids, method.needs, method.transforms(True), training.seed)
    batches = EpochBatches(
        len(ids), training.batch_size, repeats, training.seed,
        drop_last=training.drop_last, streams=dataset.streams(ids),
    )  # fmt: skip
    method.to(device).train()
    loader = training_loader(source, batches, training.workers, method.lidar_encoder.prepare)
    seconds: list[float] = []
    lines: tuple[str, ...] = ()
    start = time.monotonic()
    with step_memory_kept(device, training.keep_memory):
        for step, found in enumerate(loader):
            batch = good_batch(found).to(device)
            with autocast(training.precision, device):
                output = method.training_step(batch, step_generator(training.seed, step))
            output.loss.backward()
            method.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            lines = (*_shapes(batch, method), f"loss        {output.loss.item():.4f}")
            seconds.append(time.monotonic() - start)
            start = time.monotonic()
    typical = sorted(seconds[1:])[len(seconds[1:]) // 2] if len(seconds) > 1 else seconds[0]
    return DryRun(lines, typical, training.total_steps(len(ids)), _memory(device), str(device))


def _held_out(recipe: PretrainRecipe) -> list[FrameId]:
    """Frames for the loss of ``training.validate_every``."""
    ids = recipe.dataset.frames(recipe.val_split)
    if ids:
        check_method(recipe.method, recipe.dataset, recipe.val_split)
        check_prepared(recipe.method.prepared, recipe.dataset, ids)
    return ids


def _shapes(batch: Batch, method: Method) -> tuple[str, ...]:
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    rows: list[tuple[str, Tensor | None]] = [
        ("points", batch.points.points),
        ("images", batch.images),
        ("superpixels", batch.superpixels),
        ("matches", None if batch.matches is None else batch.matches.point),
    ]
    shapes = [f"{name:<11} {tuple(value.shape)}" for name, value in rows if value is not None]
    return (f"frames      {batch.points.batch_size}", *shapes, f"parameters  {trainable:,} trained")


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_memory()


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
