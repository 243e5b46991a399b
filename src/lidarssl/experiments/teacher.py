"""The demo's stand-in for a foundation model: a small image encoder trained on image labels."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.frame import Field
from lidarssl.images.unet import SmallUNet
from lidarssl.metrics.segmentation import confusion, iou_report
from lidarssl.tasks.image_labels import ImageLabels, predict_labels
from lidarssl.training.fit import fit
from lidarssl.training.loading import FrameSource, evaluation_batches
from lidarssl.training.optimizer import Optimizer, Schedule
from lidarssl.training.requirements import check_needs
from lidarssl.training.settings import Training


@dataclass(frozen=True)
class TeacherScore:
    """How good the stand-in is: mIoU in [0, 1] over ``frames`` held-out frames."""

    miou: float
    frames: int


def train_teacher(
    dataset: Dataset,
    output: Path,
    split: str = "teacher",
    steps: int = 400,
    batch_size: int = 3,
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
    run: Path | None = None,
) -> None:
    """Train a ``SmallUNet`` on labelled images and write it to ``output``.

    Args:
        dataset: has images with labels, all of one size.
        output: .safetensors file.
        split: of the labelled images; keep it apart from what is pretrained on.
        steps, batch_size: of the training; a batch counts frames, each with all its cameras.
        seed, workers, progress: see ``Training``.
        run: folder for logs; None keeps none.

    Raises:
        ConfigError: the split has no image labels, or ``output`` is no weights file.
    """
    fields = Field.IMAGES | Field.IMAGE_LABELS
    if output.is_dir() or output.suffix != ".safetensors":
        raise ConfigError(
            "cannot become the weights file",
            path=output,
            field="output",
            remedy="give a file name that ends in .safetensors",
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    check_needs(fields, dataset, split, "the teacher")
    ids = dataset.frames(split)
    if not ids:
        raise ConfigError(f"split '{split}' has no frame", field="split")
    source = FrameSource(dataset, ids, fields, [], seed)
    images, counts = _images_and_counts(source, len(dataset.classes), workers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = SmallUNet(num_classes=len(dataset.classes), frozen=False)
    encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = Training(
        batch_size=min(batch_size, len(ids)),
        steps=steps,
        optimizer=Optimizer("adamw", lr=3e-3, weight_decay=0.01),
        schedule=Schedule("warmup_cosine", warmup=0.05),
        seed=seed,
        workers=workers,
        checkpoint_every=0,
    )
    folder = run or Path(tempfile.mkdtemp(prefix="lidarssl_teacher_"))
    try:
        task = ImageLabels(encoder, counts)
        result = fit(
            task, dataset, ids, fields, [], training, folder, "teacher",
            progress=progress, append_metrics=run is not None,
        )  # fmt: skip
    finally:
        if run is None:
            shutil.rmtree(folder, ignore_errors=True)
    if result.interrupted:
        raise KeyboardInterrupt
    encoder.fit_feature_statistics(images.split(16))
    encoder.classes = tuple(dataset.classes.names)
    encoder.save(output)


def score_teacher(dataset: Dataset, split: str, weights: Path, workers: int = 0) -> TeacherScore:
    """Image mIoU of a teacher on labelled images it has not seen."""
    encoder = SmallUNet(num_classes=len(dataset.classes), weights=weights)
    source = FrameSource(
        dataset, dataset.frames(split), Field.IMAGES | Field.IMAGE_LABELS, [], seed=0
    )
    classes = len(dataset.classes)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for batch in evaluation_batches(source, 4, workers, None):
        assert batch.images is not None
        assert batch.image_labels is not None
        predicted = predict_labels(encoder, batch.images)
        matrix += confusion(predicted.flatten(), batch.image_labels.flatten(), classes)
    return TeacherScore(float(iou_report(matrix).miou), len(source))


def _images_and_counts(source: FrameSource, classes: int, workers: int) -> tuple[Tensor, Tensor]:
    images, counts = [], torch.zeros(classes, dtype=torch.int64)
    for batch in evaluation_batches(source, 8, workers, None):
        assert batch.images is not None
        assert batch.image_labels is not None
        images.append(batch.images[::2])
        counts += torch.bincount(batch.image_labels.flatten(), minlength=classes)
    return torch.cat(images), counts
