"""`lidarssl probe | finetune | evaluate`: what features are worth with few labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lidarssl import checkpoints
from lidarssl.distributed import rank
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.image_downstream import evaluate_frames, judged_recipe, run_images
from lidarssl.experiments.labelled import (
    IMAGE_FIELDS,
    Labelled,
    check_classes,
    labelled_frames,
    lookup_confusion,
)
from lidarssl.experiments.pictures import (
    PictureBook,
    picture_frame,
    point_features,
    point_predictions,
)
from lidarssl.experiments.probing import Judged, ProbeRun
from lidarssl.experiments.record import (
    RECIPE_FILE,
    STUDENT_FILE,
    TASK_FILE,
    Recorder,
    architecture,
    load_backbone,
    refuse_finished_run,
    refuse_other_recipe,
    refuse_other_run,
    skipped_note,
)
from lidarssl.experiments.scoring import save_scores, score_table
from lidarssl.experiments.voting import check_votes, voted_confusion
from lidarssl.frame import Field
from lidarssl.metrics.segmentation import PROTOCOLS
from lidarssl.recipes import files
from lidarssl.recipes.kinds import ImageSegmentationRecipe, ProbeRecipe, SegmentationRecipe
from lidarssl.recipes.schema import LoadedRecipe, load
from lidarssl.report.build import HTML_FILE, build_report
from lidarssl.report.schema import LOOK_UP, RANDOM_INIT, Protocol, ProtocolNote
from lidarssl.tasks.semantic import (
    SemanticSegmentation,
    adapt_batch_norm,
    evaluate,
    label_counts,
)
from lidarssl.training.devices import choose_device
from lidarssl.training.fit import fit
from lidarssl.training.requirements import check_needs
from lidarssl.transforms.base import Transform
from lidarssl.wording import counted

POINTS = {
    "all": "Every point of every scan counts.",
    "decimated": "Scans are thinned as in training; only the points that are left count.",
    "nearest": "Scans are thinned as in training; every point counts, with the class of the "
    "nearest one that is left.",
}
DESCRIPTIONS = {
    Protocol.PROBE: "The backbone is frozen; a linear classifier of its features is fitted.",
    Protocol.FINETUNE: "All weights are trained on the labelled frames.",
}


def run_downstream(
    loaded: LoadedRecipe,
    verb: str,
    run: Path,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    command: str = "",
    baseline: bool = True,
    seeds: int = 1,
    overwrite: bool = False,
) -> Path:
    """Run a probe or segmentation recipe, with the look-up baseline beside it.

    Args:
        loaded: a recipe of any kind but a pretraining.
        verb: ``probe`` or ``finetune``.
        run: the run folder.
        checkpoint: pretrained weights; None = random initialisation.
        resume: continue a training.
        progress: show bars.
        command: what repeats the run.
        baseline: with a checkpoint, probe the untrained network too (``probe`` recipes).
        seeds: how often to probe (``probe`` recipes).
        overwrite: replace a finished run.

    Returns:
        The report.

    Raises:
        ConfigError: the recipe, its options, the checkpoint or the folder do not fit.
        DataError: a frame is bad.
    """
    recipe: Any = loaded.recipe
    cached = isinstance(recipe, ProbeRecipe)
    _check_options(recipe, verb, resume, seeds)
    refuse_other_run(run, STUDENT_FILE)
    if resume:
        refuse_other_recipe(run, loaded.resolved)
    elif not overwrite:
        refuse_finished_run(run, TASK_FILE, resumable=not cached)
    settings = recipe if cached else recipe.training
    recorder = Recorder(
        run, recipe.about.title or run.name, command, settings.seed, loaded.resolved
    )
    images = isinstance(recipe, ImageSegmentationRecipe)
    frames = labelled_frames(
        recipe.dataset, recipe.train_split, recipe.val_split, recipe.label_skip,
        settings.workers, recipe.eval_batch_size, IMAGE_FIELDS if images else Field.SEMANTIC,
    )  # fmt: skip
    recorder.notes.extend(frames.notes)
    note = recipe.dataset.fraction_note(recipe.train_split, recipe.label_skip)
    recorder.notes.extend([note] if note else [])
    device = choose_device(settings.accelerator)
    if images:
        run_images(loaded, frames, device, recorder, checkpoint, resume, progress)
        return build_report(run) if rank() == 0 else run / HTML_FILE
    if cached:
        probes = ProbeRun(loaded, frames, device, recorder, seeds, progress)
        judged = probes.judge(checkpoint, baseline)
    else:
        judged = [_train(loaded, frames, device, recorder, checkpoint, resume, progress)]
    if rank() == 0:
        keys = ("backbone",) if cached else ("task", "backbone")
        _finish(loaded, keys, judged, frames, device, recorder)
        return build_report(run)
    return run / HTML_FILE


def _check_options(recipe: Any, verb: str, resume: bool, seeds: int) -> None:
    cached = isinstance(recipe, ProbeRecipe)
    if verb == "finetune" and recipe.task.freeze:
        raise ConfigError(
            "the recipe's task freezes what was pretrained",
            field="task.freeze",
            remedy="run it with `lidarssl probe`, or set --task.freeze false",
        )
    if cached and resume:
        raise ConfigError(
            "a probe on cached features has nothing to resume",
            field="--resume",
            remedy="run it again without --resume",
        )
    if not cached and seeds != 1:
        raise ConfigError(
            "this recipe trains once",
            field="--seeds",
            remedy="run it again with other --training.seed and --run",
        )


def _train(
    loaded: LoadedRecipe,
    frames: Labelled,
    device: torch.device,
    recorder: Recorder,
    checkpoint: Path | None,
    resume: bool,
    progress: bool,
) -> Judged:
    """Train and judge the task of a segmentation recipe."""
    recipe: SegmentationRecipe = loaded.recipe
    backbone, method = recipe.task.backbone, RANDOM_INIT
    if checkpoint is not None:
        built = architecture(backbone, loaded.resolved, "task", "backbone")
        method = load_backbone(backbone, checkpoint, built)
    elif recipe.task.freeze:
        few = frames.train[: recipe.adapt_frames]
        adapt_batch_norm(backbone, frames.batches(few, backbone), device)
    name = _protocol(recipe).value
    with recorder.stage(name, f"{method}, {counted(len(frames.train), 'labelled frame')}"):
        task = train_task(recipe, frames, recorder, resume, progress)
    with recorder.stage("evaluate", f"{counted(len(frames.val), 'frame')} of {recipe.val_split}"):
        val = frames.batches(frames.val, backbone)
        matrix = evaluate(task, val, device, frames.val_batches, progress)
    return Judged(method, task, [matrix])


def train_task(
    recipe: SegmentationRecipe, frames: Labelled, recorder: Recorder, resume: bool, progress: bool
) -> SemanticSegmentation:
    """Train all weights, or the head alone when the task freezes its backbone."""
    task = recipe.task
    check_classes(task.num_classes, recipe.dataset)
    mixing = task.mixing_of(recipe.dataset, frames.train)
    if task.weighting != "none":
        task.set_class_weights(label_counts(frames.batches(frames.train), task.num_classes))
    result = fit(
        task, recipe.dataset, frames.train, Field.SEMANTIC, task.transforms(True),
        recipe.training, recorder.run, _protocol(recipe).value,
        prepare=task.backbone.prepare, resume=resume, progress=progress,
        val_ids=frames.val, val_transforms=task.transforms(False),
        mixing=mixing,
    )  # fmt: skip
    if result.interrupted:
        raise KeyboardInterrupt
    recorder.notes.extend(skipped_note(result.skipped))
    return task


def _protocol(recipe: ProbeRecipe | SegmentationRecipe) -> Protocol:
    frozen = isinstance(recipe, ProbeRecipe) or recipe.task.freeze
    return Protocol.PROBE if frozen else Protocol.FINETUNE


def _finish(
    loaded: LoadedRecipe,
    keys: tuple[str, ...],
    judged: Sequence[Judged],
    frames: Labelled,
    device: torch.device,
    recorder: Recorder,
) -> None:
    """Write the task, the scores and the pictures into the run folder."""
    recipe, run, protocol = loaded.recipe, recorder.run, _protocol(loaded.recipe)
    first = judged[0]
    built = architecture(first.task.backbone, loaded.resolved, *keys)
    checkpoints.save(run / TASK_FILE, first.task, checkpoints.Card(built, recipe=first.method))
    matrices = {one.method: one.matrices for one in judged}
    with recorder.stage("look-up", "the baseline without a network"):
        matrices[LOOK_UP] = [lookup_confusion(frames)]
    book = PictureBook(run, frames.dataset)
    for one in judged:
        add_downstream_pictures(one.task, frames, recipe.val_split, book, one.method, device)
    note = ProtocolNote(protocol, DESCRIPTIONS[protocol], recorder.command)
    save_scores(run, matrices, note, frames, recipe.val_split, book.records)
    recorder.save()


def evaluate_run(
    run: Path,
    split: str | None = None,
    protocol: str = "nan",
    overrides: Sequence[str] = (),
    progress: bool = True,
    points: str = "all",
    votes: int = 1,
    votes_drop_path: bool = False,
) -> str:
    """Score a finished run again: another split, another mIoU variant, several votes.

    Args:
        run: its folder.
        split: default: the recipe's ``val_split``.
        protocol: see ``iou_report``.
        overrides: command line words for the recipe.
        progress: show a bar.
        points: key of ``POINTS``.
        votes: how often each scan is seen, moved; 1 = once, as it is.
        votes_drop_path: the backbone leaves out mixes at random in every vote, as in training.

    Returns:
        A per-class table and the means, as text.

    Raises:
        ConfigError: unknown split, protocol or points, a task that does not thin its scans, or
            votes that do not go with the rest.
        DataError: the folder holds no finished run.
    """
    for option, value, known in (("protocol", protocol, PROTOCOLS), ("points", points, POINTS)):
        if value not in known:
            raise ConfigError(
                f"unknown {option} '{value}'",
                field=f"--{option}",
                remedy=f"choose one of {', '.join(known)}",
            )
    check_votes(votes, votes_drop_path, points)
    path = recipe_of(run)
    if files.read(path)["kind"] == "image_segmentation":
        _refuse_point_options(points, votes)
        return _evaluate_images(run, path, split, protocol, overrides, progress)
    loaded = load(str(path), overrides)
    recipe: Any = loaded.recipe
    cached = isinstance(recipe, ProbeRecipe)
    task = _judged_task(recipe, run)
    val_split = split or recipe.val_split
    check_needs(Field.SEMANTIC, recipe.dataset, val_split, "evaluation")
    ids = recipe.dataset.frames(val_split)
    settings = recipe if cached else recipe.training
    frames = Labelled(recipe.dataset, [], 1.0, ids, settings.workers, recipe.eval_batch_size)
    device = choose_device(settings.accelerator)
    notes = [] if points == "all" else [POINTS[points]]
    if votes > 1:
        matrix = voted_confusion(
            task, frames, votes, votes_drop_path, settings.seed, device, progress
        )
        dropped = "; mixes are left out at random" if votes_drop_path else ""
        notes.append(f"{votes} votes on every scan, turned, mirrored and scaled{dropped}.")
    else:
        thinning = [] if points == "all" else _thinning(task, points)
        val = frames.batches(ids, task.backbone, thinning)
        scored = frames.batches(ids) if points == "nearest" else None
        matrix = evaluate(task, val, device, frames.val_batches, progress, scored)
    return "\n\n".join([score_table(matrix, recipe.dataset, protocol), *notes])


def _evaluate_images(
    run: Path,
    path: Path,
    split: str | None,
    protocol: str,
    overrides: Sequence[str],
    progress: bool,
) -> str:
    """The same of a run that segments images."""
    recipe = judged_recipe(run, path, overrides)
    dataset, asked = recipe.dataset, split or recipe.val_split
    check_needs(IMAGE_FIELDS, dataset, asked, "evaluation", points=False)
    matrices = evaluate_frames(recipe, dataset, dataset.frames(asked), progress)
    return score_table(matrices.sum(0), dataset, protocol, "pixels")


def _refuse_point_options(points: str, votes: int) -> None:
    for option, asked in (("--points", points != "all"), ("--votes", votes > 1)):
        if asked:
            raise ConfigError(
                "the run segments images, and the option is about scans",
                field=option,
                remedy="leave it out",
            )


def _judged_task(recipe: ProbeRecipe | SegmentationRecipe, run: Path) -> SemanticSegmentation:
    """The task of a recipe with the weights of a finished run."""
    task = (
        SemanticSegmentation(recipe.backbone, len(recipe.dataset.classes), freeze=True)
        if isinstance(recipe, ProbeRecipe)
        else recipe.task
    )
    checkpoints.load_into(task, checkpoints.load(run / TASK_FILE).state)
    return task


def _thinning(task: SemanticSegmentation, points: str) -> list[Transform]:
    steps = task.augmentation.thinning()
    if not steps:
        raise ConfigError(
            f"the task was trained on whole scans: there are no '{points}' points",
            field="--points",
            remedy="use --points all, or set --task.augmentation.voxel_size",
        )
    return steps


def recipe_of(run: Path) -> Path:
    """The recipe of a run that has been judged.

    Raises:
        DataError: there is no such run, it is a pretraining, or it has not finished.
    """
    path, task = run / RECIPE_FILE, run / TASK_FILE
    if not path.is_file() or not path.stat().st_size:
        raise DataError(
            "holds no run" if run.is_dir() else "no such run folder",
            path=run,
            remedy="give a folder that `lidarssl probe` or `lidarssl finetune` has written",
        )
    if files.read(path)["kind"] == "pretrain":
        raise DataError(
            "is a pretraining, which has no classifier to evaluate",
            path=run,
            remedy=f"probe it first: lidarssl probe RECIPE --checkpoint {run}",
        )
    if not task.is_file():
        raise DataError(
            "the run has not finished: it holds no trained task",
            path=task,
            remedy="run it again; `lidarssl finetune` goes on with --resume",
        )
    return path


def add_downstream_pictures(
    task: SemanticSegmentation,
    frames: Labelled,
    split: str,
    book: PictureBook,
    name: str,
    device: torch.device,
) -> None:
    """Truth, prediction, mistakes and features of the first evaluated frame."""
    frame = picture_frame(frames.dataset, frames.val[0], split)
    book.add_prediction(frame, point_predictions(task, frame, device), name)
    features = point_features(task.backbone, frame, device)
    book.add_features(frame, features, name, "Compare it with another network's.")
