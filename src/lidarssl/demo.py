"""The whole story in minutes: a world, a teacher, a student without labels, and its worth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.config import WorldConfig
from lidarssl.experiments.downstream import (
    DESCRIPTIONS,
    Labelled,
    add_downstream_pictures,
    class_row,
    efficiency_row,
    labelled_frames,
    lookup_confusion,
)
from lidarssl.experiments.pictures import PictureBook, picture_frame
from lidarssl.experiments.pretrain import add_pretraining_pictures, train_student
from lidarssl.experiments.record import Recorder, load_backbone, architecture
from lidarssl.experiments.teacher import score_teacher, train_teacher
from lidarssl.images.unet import SmallUNet
from lidarssl.metrics.segmentation import iou_report
from lidarssl.prepare.superpixels import prepare_superpixels
from lidarssl.recipes.schema import ProbeRecipe, load
from lidarssl.report.build import build_report
from lidarssl.report.schema import LOOK_UP, RANDOM_INIT, Protocol, ProtocolNote, Results
from lidarssl.tasks.image_labels import predict_labels
from lidarssl.tasks.probe import probe_task
from lidarssl.tasks.semantic import SemanticSegmentation, adapt_batch_norm, evaluate

PRETRAIN_RECIPE = "slidr_minkunet_synthetic"
PROBE_RECIPE = "probe_minkunet_synthetic"

NOTES = (
    "The images are taught by a small encoder trained here on the image labels of other "
    "synthetic scenes: a stand-in for a foundation model, whose weights cannot be assumed offline.",
    "The lidar network saw no label while it was pretrained. The scenes of teacher, pretraining "
    "and test are disjoint.",
    "One seed on a toy world: it shows that the machinery works, not which method is better.",
)


@dataclass(frozen=True)
class DemoSettings:
    """How big the demo is.

    Attributes:
        seed: of the world, the weights and every draw.
        steps: of pretraining.
        teacher_steps: of the stand-in image encoder.
        workers: processes that generate and load.
        world: size of the synthetic world; None = the default of ``WorldConfig``.
    """

    seed: int = 0
    steps: int = 400
    teacher_steps: int = 300
    workers: int = 2
    world: WorldConfig | None = None


def run_demo(run: Path, settings: DemoSettings, progress: bool = True) -> Path:
    """Generate, teach, pretrain, probe, report.

    Returns:
        The report; beside it ``metrics.json``, ``student.safetensors`` and the world.
    """
    command = f"lidarssl demo --run {run} --seed {settings.seed} --steps {settings.steps}"
    root, teacher = run / "world", run / "teacher.safetensors"
    (run / "metrics.jsonl").unlink(missing_ok=True)
    recorder = Recorder(run, "SLidR on a synthetic driving world", command, settings.seed, "")
    recorder.notes.extend(NOTES)
    with recorder.stage("world", "streets, a lidar and three cameras, ray-cast"):
        world = settings.world or WorldConfig(seed=settings.seed)
        dataset = Synthetic.generate(root, world, workers=settings.workers, progress=progress)
    with recorder.stage("teacher", "an image encoder trained on labels of other scenes"):
        train_teacher(
            dataset, teacher, steps=settings.teacher_steps, seed=settings.seed,
            workers=1, progress=progress, run=run,
        )  # fmt: skip
    with recorder.stage("superpixels", "SLIC outlines of every training image"):
        prepare_superpixels(
            dataset, "train", run / "superpixels", segments=100, compactness=6.0, sigma=1.0,
            workers=settings.workers, progress=progress,
        )  # fmt: skip
    pretraining = load(PRETRAIN_RECIPE, _pretrain_overrides(root, run, teacher, settings))
    recorder.recipe = pretraining.resolved
    with recorder.stage("pretrain", "SLidR: the lidar network learns from images, no label"):
        train_student(
            pretraining.recipe, pretraining.resolved, run, progress=progress, append_metrics=True
        )
    with recorder.stage("probe", "a linear classifier on frozen features, and the baselines"):
        results = _judge(run, root, dataset, settings, pretraining.recipe, teacher, command, progress)
    results.save(run)
    recorder.save()
    return build_report(run)


def _pretrain_overrides(
    root: Path, run: Path, teacher: Path, settings: DemoSettings
) -> list[str]:
    return [
        f"--dataset.root={root}",
        f"--method.image_encoder.weights={teacher}",
        f"--method.superpixels.folder={run / 'superpixels'}",
        f"--training.steps={settings.steps}",
        f"--training.seed={settings.seed}",
    ]


def _judge(
    run: Path, root: Path, dataset: Dataset, settings: DemoSettings, pretraining: Any,
    teacher: Path, command: str, progress: bool,
) -> Results:  # fmt: skip
    """Probe the student and a random network on the same frames; look-up beside them."""
    device = torch.device("cpu")
    recipe, frames, resolved = _probe_recipe(root, settings)
    tasks: dict[str, SemanticSegmentation] = {}
    matrices: dict[str, Tensor] = {}
    for name in ("SLidR", RANDOM_INIT):
        recipe, _, resolved = _probe_recipe(root, settings)
        backbone = recipe.backbone
        if name == RANDOM_INIT:
            few = frames.train[: recipe.adapt_frames]
            adapt_batch_norm(backbone, frames.batches(few, backbone), device)
        else:
            load_backbone(backbone, run, architecture(backbone, resolved, "backbone"))
        tasks[name] = probe_task(
            backbone, frames.batches(frames.train, backbone), len(dataset.classes),
            recipe.probe, device, torch.Generator().manual_seed(settings.seed), progress,
        )  # fmt: skip
        val = frames.batches(frames.val, backbone)
        matrices[name] = evaluate(tasks[name], val, device, frames.val_batches, progress)
    matrices[LOOK_UP] = lookup_confusion(frames)
    _write_metrics(run, matrices, dataset, frames, teacher, settings)
    book = PictureBook(run)
    _draw(book, pretraining, dataset, frames, recipe.val_split, teacher, tasks)
    protocol = {name: Protocol.PROBE for name in tasks} | {LOOK_UP: Protocol.LOOKUP}
    return Results(
        f"{len(frames.val)} held-out frames of the synthetic world, "
        f"{len(dataset.classes) - 1} classes",
        protocols=(ProtocolNote(Protocol.PROBE, DESCRIPTIONS[Protocol.PROBE], command),),
        efficiency=tuple(
            efficiency_row(name, protocol[name], frames, [matrix])
            for name, matrix in matrices.items()
        ),
        classes=tuple(
            class_row(name, protocol[name], frames, matrix) for name, matrix in matrices.items()
        ),
        pictures=tuple(book.records),
    )


def _probe_recipe(root: Path, settings: DemoSettings) -> tuple[ProbeRecipe, Labelled, str]:
    loaded = load(
        PROBE_RECIPE, [f"--dataset.root={root}", f"--seed={settings.seed}"], kinds=("probe",)
    )
    recipe: ProbeRecipe = loaded.recipe
    frames = labelled_frames(
        recipe.dataset, recipe.train_split, recipe.val_split, recipe.label_skip,
        recipe.workers, recipe.eval_batch_size,
    )  # fmt: skip
    return recipe, frames, loaded.resolved


def _draw(
    book: PictureBook, pretraining: Any, dataset: Dataset, frames: Labelled, split: str,
    teacher: Path, tasks: dict[str, SemanticSegmentation],
) -> None:  # fmt: skip
    add_pretraining_pictures(pretraining, book, features=False)
    frame = picture_frame(dataset, frames.val[0], split)
    image = frame.cameras[0].image
    assert image is not None
    encoder = SmallUNet(num_classes=len(dataset.classes), weights=teacher)
    predicted = predict_labels(encoder, image[None].float() / 255)[0]
    book.add_image_labels(frame, predicted, dataset.classes)
    for name, task in tasks.items():
        add_downstream_pictures(task, frames, split, book, name, torch.device("cpu"))


def _write_metrics(
    run: Path, matrices: dict[str, Tensor], dataset: Dataset, frames: Labelled,
    teacher: Path, settings: DemoSettings,
) -> None:  # fmt: skip
    names = dataset.classes.names
    scores = {name: iou_report(matrix).to_json(names, len(frames.val)) for name, matrix in matrices.items()}
    score = score_teacher(dataset, "val", teacher)
    content = {
        "probe": {"slidr": scores["SLidR"], "random_init": scores[RANDOM_INIT]},
        "look_up": scores[LOOK_UP],
        "teacher_image_miou": score.miou,
        "labelled_frames": len(frames.train),
        "frames": len(frames.val),
        "seed": settings.seed,
    }
    (run / "metrics.json").write_text(json.dumps(content, indent=1))
