"""Superpixels of every image of a split, computed once and kept as PNG files.

``transforms.superpixels`` describes the files.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.errors import DataError
from lidarssl.frame import Camera
from lidarssl.prepare.passes import (
    ImageWork,
    OnError,
    Summary,
    announce,
    check_options,
    frames_with_images,
    in_words,
    run_pass,
)
from lidarssl.replacing import replacing
from lidarssl.transforms.images import image_of, image_size
from lidarssl.transforms.superpixels import (
    SETTINGS_FILE,
    SlicSettings,
    check_settings,
    read_superpixels,
    slic,
    superpixel_path,
)

_LARGEST_ID = 2**16 - 1


def prepare_superpixels(
    dataset: Dataset,
    split: str,
    output: str | Path,
    segments: int = 150,
    compactness: float = 6.0,
    sigma: float = 3.0,
    scale: float = 1.0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    on_error: OnError = "raise",
    progress: bool = True,
) -> Summary:
    """Write ``<output>/<camera token>.png`` for every image of a split.

    Args:
        dataset: any dataset with images.
        split: of it.
        output: folder, made when missing.
        segments, compactness, sigma, scale: see ``SlicSettings``.
        workers: processes beside this one; 0 = work here.
        shard: (i, n) takes frames i, i + n, i + 2n, ...: one i per machine.
        overwrite: make files again that are there and whole.
        on_error: ``raise`` stops at the first frame that cannot be read, ``skip`` counts it.
        progress: show a bar, and first an estimate, on standard error.

    Raises:
        ConfigError: the dataset has no images, the folder was made with other settings, or an
            option makes no sense.
        DataError: a frame cannot be read and ``on_error`` is ``raise``.
    """
    settings = SlicSettings(segments, compactness, sigma, scale)
    frames = frames_with_images(dataset, split, shard)
    check_options(on_error)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        check_settings(folder, settings)
    with replacing(folder / SETTINGS_FILE) as partial:
        partial.write_text(json.dumps(asdict(settings)))
    work = _Segmenting(dataset, frames, folder, settings, overwrite)
    _announce(work, max(1, workers), progress)
    summary = Summary(folder, "segmented", len(frames))
    # The workers leave no image to this process.
    list(run_pass(work, summary, "superpixels", workers, on_error, progress))
    return summary


def save_superpixels(path: Path, ids: Tensor) -> None:
    """Write (H, W) segment ids in the format of ``transforms.superpixels``, all or nothing.

    Raises:
        DataError: an id that 16 bits do not hold.
    """
    largest = int(ids.max())
    if int(ids.min()) < 0 or largest > _LARGEST_ID:
        raise DataError(
            f"segment ids reach {largest}, a file holds 0..{_LARGEST_ID}",
            path=path,
            remedy="ask for fewer segments",
        )
    array = ids.numpy().astype(np.uint8 if largest <= 255 else np.uint16)
    with replacing(path) as partial:
        Image.fromarray(array).save(partial, format="PNG")


class _Segmenting(ImageWork[SlicSettings]):
    """A loader's workers are the processes of the pass."""

    def path(self, camera: Camera) -> Path:
        return superpixel_path(self.folder, camera)

    def check(self, path: Path, camera: Camera) -> None:
        read_superpixels(path, image_size(camera))

    def make(self, path: Path, camera: Camera) -> None:
        save_superpixels(path, slic(image_of(camera), self.settings))


def _announce(work: _Segmenting, processes: int, progress: bool) -> None:
    """Tell how long the pass will take, from the time of one image."""
    cameras = work.first_cameras()
    if not cameras:
        return
    started = time.perf_counter()
    slic(image_of(cameras[0]), work.settings)
    seconds = time.perf_counter() - started
    images = len(work) * len(cameras)
    there = 0 if work.overwrite else sum(1 for _ in work.folder.glob("*.png"))
    hours = max(0, images - there) * seconds / processes / 3600
    announce(
        f"{images} images, {min(there, images)} there already; {seconds:.2f} s each: about "
        f"{in_words(hours)} in {processes} process(es)",
        progress,
    )
