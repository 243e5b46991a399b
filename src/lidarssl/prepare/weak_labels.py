"""Weak labels of every image of a split, made once by a labeller and kept on disk.

``transforms.weak_labels`` describes the files, ``prepare.labellers`` holds the labellers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.frame import Camera
from lidarssl.prepare.labellers.base import Labeller
from lidarssl.prepare.passes import (
    Image,
    ImageWork,
    OnError,
    Summary,
    announce,
    check_options,
    check_same,
    frames_with_images,
    in_batches,
    in_words,
    run_pass,
)
from lidarssl.prepare.previews import save_preview
from lidarssl.replacing import replacing
from lidarssl.transforms.images import image_of, image_size
from lidarssl.transforms.weak_labels import (
    SETTINGS_FILE,
    WeakLabelSettings,
    read_settings,
    read_weak_labels,
    save_weak_labels,
    weak_label_path,
)
from lidarssl.wording import counted

PREVIEWS = "previews"


def prepare_weak_labels(
    dataset: Dataset,
    split: str,
    output: str | Path,
    labeller: Labeller,
    *,
    batch_size: int = 4,
    device: torch.device | str = "cpu",
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    on_error: OnError = "raise",
    preview_every: int = 100,
    progress: bool = True,
) -> Summary:
    """Write ``<output>/<camera token>.png`` for every image of a split.

    Args:
        dataset: any dataset with images.
        split: of it.
        output: folder, made when missing.
        labeller: is moved to ``device``.
        batch_size: images that it is given at once.
        device: of the labeller.
        workers: processes that load images beside this one; 0 = none.
        shard: (i, n) takes frames i, i + n, i + 2n, ...: one i per machine.
        overwrite: make files again that are there and whole.
        on_error: ``raise`` stops at the first frame that cannot be read, ``skip`` counts it.
        preview_every: draw the first of every so many images with its labels into
            ``<output>/previews/``; 0 = none.
        progress: show a bar, and estimates, on standard error.

    Raises:
        ConfigError: the dataset has no images, the folder was made by another labeller, an option
            makes no sense, or the labeller breaks its contract.
        DataError: a frame cannot be read and ``on_error`` is ``raise``.
    """
    check_options(on_error, batch_size)
    frames = frames_with_images(dataset, split, shard)
    settings = WeakLabelSettings(labeller.classes, labeller=labeller.description())
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, settings, overwrite)
    labelling = _Labelling(labeller.to(device), settings, preview_every)
    work = _Loading(dataset, frames, folder, settings, overwrite)
    there = sum(1 for _ in folder.glob("*.png"))
    count = len(work) * len(work.first_cameras())
    announce(f"{counted(count, 'image')}, {there} there already", progress)
    summary, started = Summary(folder, "labelled", len(frames)), time.monotonic()
    images = run_pass(work, summary, "weak labels", workers, on_error, progress)
    for batch in in_batches(images, batch_size):
        before = time.perf_counter()
        labelling.write(batch)
        if summary.written == 0:
            seconds = (time.perf_counter() - before) / len(batch)
            hours = max(0, count - summary.kept - len(batch)) * seconds / 3600
            announce(f"{seconds:.2f} s an image: at most {in_words(hours)} more", progress)
        summary.written += len(batch)
    summary.seconds = time.monotonic() - started
    return summary


def claim(folder: Path, settings: WeakLabelSettings, overwrite: bool) -> None:
    """Write the settings of a folder of weak labels.

    Raises:
        ConfigError: the folder has others, and ``overwrite`` is not set.
        DataError: those that it has are damaged, and ``overwrite`` is not set.
    """
    path = folder / SETTINGS_FILE
    if path.is_file() and not overwrite:
        stored = _plain(read_settings(path))
        check_same(path, "the weak labels in this folder were", stored, _plain(settings))
        return
    with replacing(path) as partial:
        partial.write_text(settings.text)


def _plain(settings: WeakLabelSettings) -> dict[str, Any]:
    """As in the file, what the labeller says of itself one by one."""
    values = json.loads(settings.text)
    labeller = values.pop("labeller") or {}
    return values | {f"labeller.{name}": value for name, value in labeller.items()}


class WeakLabelWork(ImageWork[WeakLabelSettings]):
    """Work on the files of a folder of weak labels."""

    def path(self, camera: Camera) -> Path:
        return weak_label_path(self.folder, camera)

    def check(self, path: Path, camera: Camera) -> None:
        read_weak_labels(path, image_size(camera), self.settings)


class _Loading(WeakLabelWork):
    """Leaves the images, as the dataset loads them, to the process of the pass."""

    def make(self, path: Path, camera: Camera) -> Tensor:
        return image_of(camera)


@dataclass
class _Labelling:
    """Labels images, keeps their labels, and draws some."""

    labeller: Labeller
    settings: WeakLabelSettings
    preview_every: int
    labelled: int = 0

    def write(self, batch: Sequence[Image]) -> None:
        for (path, image), labels in zip(batch, self.label(batch), strict=True):
            if self.preview_every and self.labelled % self.preview_every == 0:
                preview = path.parent / PREVIEWS / path.name
                save_preview(preview, image, labels, self.settings.classes)
            save_weak_labels(path, labels, self.settings.digest)
            self.labelled += 1

    @torch.inference_mode()
    def label(self, batch: Sequence[Image]) -> list[Tensor]:
        labels = self.labeller.label([image for _, image in batch])
        sizes = [tuple(one.shape) for one in labels]
        expected = [tuple(image.shape[-2:]) for _, image in batch]
        largest = max((int(one.max()) for one in labels), default=0)
        if sizes != expected or largest > len(self.settings.classes):
            raise ConfigError(
                f"{type(self.labeller).__name__} made labels up to {largest} of sizes {sizes} for "
                f"{len(self.settings.classes)} classes and images of sizes {expected}",
                field="labeller",
            )
        return labels
