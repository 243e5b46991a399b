"""`lidarssl probe | finetune | evaluate`: what features are worth with few labels."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl import checkpoints
from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.distributed import rank
from lidarssl.errors import ConfigError
from lidarssl.experiments.pictures import (
    PictureBook,
    picture_frame,
    point_features,
    point_predictions,
)
from lidarssl.experiments.record import RECIPE_FILE, Recorder, architecture, load_backbone
from lidarssl.frame import Batch, Field, FrameId
from lidarssl.metrics.lookup import LookupBins, count_cells, predict, table_from_counts
from lidarssl.metrics.segmentation import confusion, iou_report
from lidarssl.recipes.schema import LoadedRecipe, ProbeRecipe, SegmentationRecipe, load
from lidarssl.report.build import build_report
from lidarssl.report.schema import (
    LOOK_UP,
    RANDOM_INIT,
    ClassTableRow,
    EfficiencyRow,
    Protocol,
    ProtocolNote,
    Results,
)
from lidarssl.tasks.probe import probe_task
from lidarssl.tasks.semantic import (
    SemanticSegmentation,
    adapt_batch_norm,
    evaluate,
    label_counts,
)
from lidarssl.training.fit import choose_device, fit
from lidarssl.training.loading import FrameSource, check_needs, evaluation_batches

TASK_FILE = "task.safetensors"


@dataclass(frozen=True)
class Labelled:
    """Labelled frames to learn from and to be judged on.

    Attributes:
        train: ids of the chosen fraction.
        fraction: share of the split's frames that they are.
        val: ids to evaluate on.
    """

    dataset: Dataset
    train: list[FrameId]
    fraction: float
    val: list[FrameId]
    workers: int
    batch_size: int

    def batches(self, ids: Sequence[FrameId], backbone: Backbone | None = None) -> Iterator[Batch]:
        """Frames with labels and without images, in order."""
        source = FrameSource(self.dataset, ids, Field.SEMANTIC, [], seed=0)
        prepare = None if backbone is None else backbone.prepare
        return evaluation_batches(source, self.batch_size, self.workers, prepare)

    @property
    def val_batches(self) -> int:
        return math.ceil(len(self.val) / self.batch_size)


def labelled_frames(
    dataset: Dataset, train_split: str, val_split: str, skip: int, workers: int, batch_size: int
) -> Labelled:
    """The frames of a downstream experiment.

    Raises:
        ConfigError: a split has no labels or no frames.
    """
    for split in (train_split, val_split):
        check_needs(Field.SEMANTIC, dataset, split, "semantic segmentation")
    pool, train = dataset.frames(train_split), dataset.label_fraction(train_split, skip)
    val = dataset.frames(val_split)
    for split, ids in ((train_split, train), (val_split, val)):
        if not ids:
            raise ConfigError(
                f"split '{split}' of '{dataset.name}' leaves no labelled frame",
                field="label_skip" if split == train_split else "val_split",
                remedy="lower label_skip or choose another split",
            )
    return Labelled(dataset, train, len(train) / len(pool), val, workers, batch_size)


def run_downstream(
    loaded: LoadedRecipe,
    verb: str,
    run: Path,
    checkpoint: Path | None,
    resume: bool,
    progress: bool,
    command: str,
) -> Path:
    """Run a probe or segmentation recipe, with the look-up baseline beside it.

    Returns:
        The report.
    """
    recipe: Any = loaded.recipe
    cached = isinstance(recipe, ProbeRecipe)
    if verb == "finetune" and recipe.task.freeze:
        raise ConfigError(
            "the recipe's task freezes its backbone",
            field="task.freeze",
            remedy="run it with `lidarssl probe`, or set --task.freeze false",
        )
    backbone: Backbone = recipe.backbone if cached else recipe.task.backbone
    keys = ("backbone",) if cached else ("task", "backbone")
    seed = recipe.seed if cached else recipe.training.seed
    recorder = Recorder(run, recipe.about.title or run.name, command, seed, loaded.resolved)
    method = RANDOM_INIT
    if checkpoint is not None:
        method = load_backbone(backbone, checkpoint, architecture(backbone, loaded.resolved, *keys))
    frames = labelled_frames(
        recipe.dataset, recipe.train_split, recipe.val_split, recipe.label_skip,
        recipe.workers if cached else recipe.training.workers, recipe.eval_batch_size,
    )  # fmt: skip
    device = choose_device(recipe.accelerator if cached else recipe.training.accelerator)
    protocol = Protocol.PROBE if cached or recipe.task.freeze else Protocol.FINETUNE
    if checkpoint is None and protocol is Protocol.PROBE:
        adapt_batch_norm(backbone, frames.batches(frames.train[: recipe.adapt_frames]), device)
    with recorder.stage(protocol.value, f"{method}, {len(frames.train)} labelled frames"):
        if cached:
            generator = torch.Generator().manual_seed(seed)
            task = probe_task(
                backbone, frames.batches(frames.train, backbone), len(recipe.dataset.classes),
                recipe.probe, device, generator, progress,
            )  # fmt: skip
        else:
            task = train_task(recipe, frames, run, resume, progress)
    if rank() != 0:
        return run / "report.html"
    save_task(task, run, architecture(backbone, loaded.resolved, *keys), method)
    with recorder.stage("evaluate", f"{len(frames.val)} frames of {recipe.val_split}"):
        val = frames.batches(frames.val, backbone)
        matrix = evaluate(task, val, device, frames.val_batches, progress)
        baseline = lookup_confusion(frames)
    book = PictureBook(run)
    add_downstream_pictures(task, frames, recipe.val_split, book, method, device)
    results = Results(
        f"{len(frames.val)} frames of {recipe.dataset.name}/{recipe.val_split}, "
        f"{len(recipe.dataset.classes) - 1} classes",
        protocols=(ProtocolNote(protocol, DESCRIPTIONS[protocol], command),),
        efficiency=(
            efficiency_row(method, protocol, frames, [matrix]),
            efficiency_row(LOOK_UP, Protocol.LOOKUP, frames, [baseline]),
        ),
        classes=(
            class_row(method, protocol, frames, matrix),
            class_row(LOOK_UP, Protocol.LOOKUP, frames, baseline),
        ),
        pictures=tuple(book.records),
    )
    results.save(run)
    write_metrics(run, {method: matrix, LOOK_UP: baseline}, frames)
    recorder.save()
    return build_report(run)


def write_metrics(run: Path, matrices: Mapping[str, Tensor], frames: Labelled) -> None:
    """``metrics.json``: every score of every method, with the integer confusion matrix."""
    names, count = frames.dataset.classes.names, len(frames.val)
    content = {name: iou_report(matrix).to_json(names, count) for name, matrix in matrices.items()}
    (run / "metrics.json").write_text(json.dumps(content, indent=1))


DESCRIPTIONS = {
    Protocol.PROBE: "The backbone is frozen; a linear classifier of its features is fitted.",
    Protocol.FINETUNE: "All weights are trained on the labelled frames.",
}


def train_task(
    recipe: SegmentationRecipe, frames: Labelled, run: Path, resume: bool, progress: bool
) -> SemanticSegmentation:
    """Train all weights, or the head alone when the task freezes its backbone."""
    task = recipe.task
    if task.num_classes != len(recipe.dataset.classes):
        raise ConfigError(
            f"the task has {task.num_classes} classes, '{recipe.dataset.name}' has "
            f"{len(recipe.dataset.classes)} (the ignored one included)",
            field="task.num_classes",
            remedy=f"set it to {len(recipe.dataset.classes)}",
        )
    if task.weighting != "none":
        task.set_class_weights(label_counts(frames.batches(frames.train), task.num_classes))
    result = fit(
        task, recipe.dataset, frames.train, Field.SEMANTIC, task.transforms(True),
        recipe.training, run, "probe" if task.freeze else "finetune",
        prepare=task.backbone.prepare, resume=resume, progress=progress,
    )  # fmt: skip
    if result.interrupted:
        raise KeyboardInterrupt
    return task


def save_task(
    task: SemanticSegmentation, run: Path, built: checkpoints.Architecture, method: str
) -> None:
    """Write backbone and head, so that ``lidarssl evaluate`` can judge them again."""
    card = checkpoints.Card(built, recipe=method)
    checkpoints.save(run / TASK_FILE, task, card)


def evaluate_run(run: Path, split: str | None, protocol: str, overrides: Sequence[str]) -> str:
    """Score a finished run again: another split, another mIoU variant.

    Returns:
        A per-class table and the means, as text.

    Raises:
        DataError: the folder holds no finished run.
    """
    loaded = load(str(run / RECIPE_FILE), overrides, kinds=("probe", "segmentation"))
    recipe: Any = loaded.recipe
    cached = isinstance(recipe, ProbeRecipe)
    task = (
        SemanticSegmentation(recipe.backbone, len(recipe.dataset.classes), freeze=True)
        if cached
        else recipe.task
    )
    saved = checkpoints.load(run / TASK_FILE)
    checkpoints.load_into(task, saved.state)
    val_split = split or recipe.val_split
    check_needs(Field.SEMANTIC, recipe.dataset, val_split, "evaluation")
    ids = recipe.dataset.frames(val_split)
    workers = recipe.workers if cached else recipe.training.workers
    frames = Labelled(recipe.dataset, [], 1.0, ids, workers, recipe.eval_batch_size)
    device = choose_device(recipe.accelerator if cached else recipe.training.accelerator)
    matrix = evaluate(task, frames.batches(ids, task.backbone), device, frames.val_batches)
    return score_table(matrix, recipe.dataset, protocol)


def score_table(matrix: Tensor, dataset: Dataset, protocol: str) -> str:
    """Per-class IoU and the means of a confusion matrix, as text."""
    report = iou_report(matrix, protocol)
    width = max(map(len, dataset.classes.names))
    lines = [f"{'class':<{width}}   IoU %   points"]
    for number, name in enumerate(dataset.classes.names[1:], 1):
        value = float(report.iou[number])
        shown = "    -" if math.isnan(value) else f"{100 * value:5.1f}"
        lines.append(f"{name:<{width}}   {shown}   {int(report.gt_points[number]):,}")
    means = [
        (f"mIoU ({report.protocol})", report.miou),
        ("accuracy", report.oacc),
        ("mean accuracy", report.macc),
        ("fwIoU, frequency weighted", report.fwiou_true),
        ("fwIoU, micro", report.fwiou_micro),
    ]
    return "\n".join([*lines, "", *(f"{100 * value:5.1f}  {name}" for name, value in means)])


def lookup_confusion(frames: Labelled) -> Tensor:
    """Confusion matrix of the look-up on height, range and intensity, (C, C) int64."""
    classes = len(frames.dataset.classes)
    bins, counts = None, torch.zeros(0)
    for batch in frames.batches(frames.train):
        assert batch.semantic is not None
        points, intensity = batch.points.points, batch.points.intensity
        if bins is None:
            bins = LookupBins.from_points(points, intensity)
            counts = count_cells(points, intensity, batch.semantic, classes, bins)
        else:
            counts = counts + count_cells(points, intensity, batch.semantic, classes, bins)
    assert bins is not None
    table = table_from_counts(counts, bins)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for batch in frames.batches(frames.val):
        assert batch.semantic is not None
        predicted = predict(table, batch.points.points, batch.points.intensity)
        matrix += confusion(predicted, batch.semantic, classes)
    return matrix


def efficiency_row(
    method: str, protocol: Protocol, frames: Labelled, matrices: Sequence[Tensor]
) -> EfficiencyRow:
    """mIoU of every seed."""
    scores = tuple(_score(float(iou_report(matrix).miou)) for matrix in matrices)
    return EfficiencyRow(method, protocol, frames.fraction, scores, len(frames.train))


def class_row(method: str, protocol: Protocol, frames: Labelled, matrix: Tensor) -> ClassTableRow:
    """IoU of every class but the ignored one."""
    report = iou_report(matrix)
    return ClassTableRow(
        method,
        protocol,
        frames.fraction,
        frames.dataset.classes.names[1:],
        tuple(_score(float(value)) for value in report.iou[1:]),
        tuple(int(value) for value in report.gt_points[1:]),
        tuple(tuple(int(value) for value in row) for row in matrix[1:, 1:].tolist()),
    )


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
    classes = frames.dataset.classes
    book.add_prediction(frame, point_predictions(task, frame, device), classes, name)
    features = point_features(task.backbone, frame, device)
    book.add_features(frame, features, classes, name, "Compare it with another network's.")


def _score(value: float) -> float | None:
    return None if math.isnan(value) else value
