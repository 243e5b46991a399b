"""`lidarssl finetune | probe | evaluate` of images: what a pretrained image encoder is worth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lidarssl import checkpoints
from lidarssl.datasets.base import Dataset
from lidarssl.distributed import rank
from lidarssl.errors import DataError
from lidarssl.experiments.image_pictures import add_image_prediction
from lidarssl.experiments.image_weights import load_encoder
from lidarssl.experiments.labelled import IMAGE_FIELDS, Labelled, check_classes
from lidarssl.experiments.pictures import PictureBook
from lidarssl.experiments.record import TASK_FILE, Recorder, architecture, skipped_note
from lidarssl.experiments.scoring import save_scores
from lidarssl.frame import Field, FrameId
from lidarssl.metrics.pixel_position import count_positions, position_classes, predict_positions
from lidarssl.metrics.segmentation import confusion
from lidarssl.recipes import files
from lidarssl.recipes.kinds import ImageSegmentationRecipe
from lidarssl.recipes.schema import LoadedRecipe, load
from lidarssl.replacing import replacing
from lidarssl.report.schema import PIXEL_POSITION, RANDOM_INIT, Protocol, ProtocolNote
from lidarssl.tasks.image_segmentation import ImageSegmentation, evaluate_images
from lidarssl.training.devices import choose_device
from lidarssl.training.fit import fit
from lidarssl.weights import read_safetensors
from lidarssl.wording import counted

CONFUSIONS_FILE = "confusions.safetensors"
"""Confusion matrix of every frame that a run was judged on."""

POSITION_FRAMES = 500
"""Training frames that the baseline without a network looks at, evenly spread."""

DESCRIPTIONS = {
    Protocol.PROBE: "The image encoder is frozen; a head on its map is trained.",
    Protocol.FINETUNE: "All weights are trained on the labelled images.",
}


@dataclass(frozen=True)
class JudgedImages:
    """A method and how it did.

    Attributes:
        method: how the encoder was pretrained.
        task: trained.
        matrices: (F, C, C) int64, of each evaluated frame.
    """

    method: str
    task: ImageSegmentation
    matrices: Tensor


def run_images(
    loaded: LoadedRecipe,
    frames: Labelled,
    device: torch.device,
    recorder: Recorder,
    checkpoint: Path | None,
    resume: bool,
    progress: bool,
) -> None:
    """Train the task of an image segmentation recipe, judge it, and write what came out.

    Raises:
        ConfigError: the recipe or the checkpoint does not fit.
        DataError: a frame is bad, or the checkpoint is none.
    """
    judged = _train(loaded, frames, device, recorder, checkpoint, resume, progress)
    if rank() == 0:
        _finish(loaded, judged, frames, device, recorder, progress)


def initial_method(task: ImageSegmentation, resolved: str) -> str:
    """What the weights that a recipe builds are called: random, or the name of their file."""
    weights = architecture(task.encoder, resolved, "task", "encoder").init_args.get("weights")
    return RANDOM_INIT if weights is None else Path(str(weights)).stem


def protocol_of(recipe: ImageSegmentationRecipe) -> Protocol:
    """How a recipe judges."""
    return Protocol.PROBE if recipe.task.freeze else Protocol.FINETUNE


def _train(
    loaded: LoadedRecipe,
    frames: Labelled,
    device: torch.device,
    recorder: Recorder,
    checkpoint: Path | None,
    resume: bool,
    progress: bool,
) -> JudgedImages:
    recipe: ImageSegmentationRecipe = loaded.recipe
    task, method = recipe.task, initial_method(recipe.task, loaded.resolved)
    check_classes(task.num_classes, recipe.dataset)
    if checkpoint is not None:
        built = architecture(task.encoder, loaded.resolved, "task", "encoder")
        method = load_encoder(task.encoder, checkpoint, built)
    stage = protocol_of(recipe).value
    with recorder.stage(stage, f"{method}, {counted(len(frames.train), 'labelled frame')}"):
        result = fit(
            task, recipe.dataset, frames.train, frames.fields, task.transforms(True),
            recipe.training, recorder.run, stage, resume=resume, progress=progress,
            val_ids=frames.val, val_transforms=task.transforms(False),
        )  # fmt: skip
    if result.interrupted:
        raise KeyboardInterrupt
    recorder.notes.extend(skipped_note(result.skipped))
    with recorder.stage("evaluate", f"{counted(len(frames.val), 'frame')} of {recipe.val_split}"):
        val = frames.batches(frames.val)
        matrices = evaluate_images(task, val, device, frames.val_batches, progress)
    return JudgedImages(method, task, matrices)


def _finish(
    loaded: LoadedRecipe,
    judged: JudgedImages,
    frames: Labelled,
    device: torch.device,
    recorder: Recorder,
    progress: bool,
) -> None:
    """Write the task, the scores and the pictures into the run folder."""
    recipe, run = loaded.recipe, recorder.run
    built = architecture(judged.task.encoder, loaded.resolved, "task", "encoder")
    checkpoints.save(run / TASK_FILE, judged.task, checkpoints.Card(built, recipe=judged.method))
    save_confusions(run, judged.matrices, frames)
    with recorder.stage(PIXEL_POSITION, "the baseline without a network"):
        position = position_confusion(frames, progress)
    book = PictureBook(run, frames.dataset)
    add_image_prediction(book, judged.task, frames.val[0], judged.method, device)
    protocol = protocol_of(recipe)
    note = ProtocolNote(protocol, DESCRIPTIONS[protocol], recorder.command)
    matrices = {judged.method: [judged.matrices.sum(0)], PIXEL_POSITION: [position]}
    save_scores(run, matrices, note, frames, recipe.val_split, book.records)
    recorder.save()


def position_confusion(frames: Labelled, progress: bool = False) -> Tensor:
    """Confusion matrix of the most frequent class at each place in the image, (C, C) int64.

    Raises:
        DataError: no pixel of the training frames has a label.
    """
    classes = len(frames.dataset.classes)
    few = frames.train[:: -(-len(frames.train) // POSITION_FRAMES)]
    counts = torch.zeros((), dtype=torch.int64)
    for labels in _labels(frames, few, progress):
        counts = counts + count_positions(labels, classes)
    table = position_classes(counts)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for labels in _labels(frames, frames.val, progress):
        predicted = predict_positions(table, labels.shape[1], labels.shape[2])
        matrix += confusion(predicted.expand_as(labels), labels, classes)
    return matrix


def _labels(frames: Labelled, ids: Sequence[FrameId], progress: bool) -> Iterator[Tensor]:
    """Labels of the images of each batch, (I, H, W)."""
    batches = frames.batches(ids, fields=Field.IMAGE_LABELS)
    total = -(-len(ids) // frames.batch_size)
    for batch in tqdm(batches, PIXEL_POSITION, total, disable=not progress, leave=False):
        assert batch.image_labels is not None
        yield batch.image_labels


def save_confusions(run: Path, matrices: Tensor, frames: Labelled) -> None:
    """Keep what a run was judged on frame by frame, so that intervals can be drawn later."""
    names = json.dumps([str(frame) for frame in frames.val])
    with replacing(run / CONFUSIONS_FILE, durable=True) as partial:
        save_file({"confusions": matrices}, partial, metadata={"frames": names})


def load_confusions(run: Path, classes: int) -> Tensor | None:
    """Confusion matrix of every frame that a run was judged on, (F, C, C) int64, or None.

    Raises:
        DataError: the file is damaged, or of other classes.
    """
    path = run / CONFUSIONS_FILE
    if not path.is_file():
        return None
    matrices = read_safetensors(path)[0].get("confusions")
    if (
        matrices is None
        or matrices.dtype != torch.int64
        or matrices.ndim != 3
        or matrices.shape[1:] != (classes, classes)
        or not len(matrices)
    ):
        raise DataError(
            f"does not hold confusion matrices of {classes} classes",
            path=path,
            field="confusions",
            remedy="delete it: the frames are then evaluated again",
        )
    return matrices


def judged_recipe(run: Path, path: Path, overrides: Sequence[str] = ()) -> ImageSegmentationRecipe:
    """The recipe of a finished run, its task with the weights of the run.

    Args:
        path: of the recipe.
        overrides: command line words.

    Raises:
        ConfigError: an option does not fit.
        DataError: the weights are damaged or of another task.
    """
    recipe: ImageSegmentationRecipe = load(str(path), [*_without_weights(path), *overrides]).recipe
    checkpoints.load_into(recipe.task, checkpoints.load(run / TASK_FILE).state)
    return recipe


def _without_weights(path: Path) -> list[str]:
    """The word that drops the encoder's first weights, which the run's own replace, if gone."""
    encoder = files.read(path)["task"]["init_args"]["encoder"]
    weights = encoder.get("init_args", {}).get("weights")
    gone = weights is not None and not Path(weights).exists()
    return ["--task.encoder.weights=null"] if gone else []


def evaluate_frames(
    recipe: ImageSegmentationRecipe, dataset: Dataset, ids: Sequence[FrameId], progress: bool
) -> Tensor:
    """Confusion matrix of each of some frames, (F, C, C) int64."""
    training = recipe.training
    frames = Labelled(
        dataset, [], 1.0, list(ids), training.workers, recipe.eval_batch_size, fields=IMAGE_FIELDS
    )
    device = choose_device(training.accelerator)
    batches = frames.batches(ids)
    return evaluate_images(recipe.task, batches, device, frames.val_batches, progress)
