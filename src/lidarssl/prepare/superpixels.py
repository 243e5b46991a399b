"""Superpixels of every image of a split, computed once and kept as PNG files.

``transforms.superpixels`` describes the files. The pass can be killed at any moment and started
again: a file appears under its name only when it is whole, and whole files are not made twice.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Field, FrameId
from lidarssl.prepare.passes import OnError, check_on_error, frames_with_images, in_words
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


@dataclass
class SuperpixelSummary:
    """What a pass did.

    Attributes:
        folder: where the files are.
        frames: frames of this shard.
        written: images segmented.
        kept: images whose file was there and whole.
        failures: one message per frame or image that could not be done.
        seconds: wall clock.
    """

    folder: Path
    frames: int = 0
    written: int = 0
    kept: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        text = (
            f"{self.folder}: {self.written} images segmented, {self.kept} kept, "
            f"{len(self.failures)} failed, {self.frames} frames in {self.seconds:.0f} s"
        )
        return "\n  ".join([text, *self.failures])


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
) -> SuperpixelSummary:
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
    check_on_error(on_error)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        check_settings(folder, settings)
    with replacing(folder / SETTINGS_FILE) as partial:
        partial.write_text(json.dumps(asdict(settings)))
    work = _Work(dataset, frames, folder, settings, overwrite)
    summary, started = SuperpixelSummary(folder, len(frames)), time.monotonic()
    _announce(work, max(1, workers), progress)
    loader = DataLoader(work, batch_size=None, num_workers=min(workers, len(frames)))
    for outcome in tqdm(loader, "superpixels", unit="frame", disable=not progress):
        if outcome.error is not None and on_error == "raise":
            raise outcome.error
        summary.written += outcome.written
        summary.kept += outcome.kept
        if outcome.error is not None:
            summary.failures.append(str(outcome.error))
    summary.seconds = time.monotonic() - started
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


@dataclass
class _Outcome:
    """What was done for one frame; ``error`` ended it."""

    written: int = 0
    kept: int = 0
    error: DataError | None = None


class _Work(TorchDataset[_Outcome]):
    """Item i segments the images of frame i: a loader's workers are the processes of the pass."""

    def __init__(
        self,
        dataset: Dataset,
        frames: Sequence[FrameId],
        folder: Path,
        settings: SlicSettings,
        overwrite: bool,
    ) -> None:
        self.dataset, self.frames, self.folder = dataset, frames, folder
        self.settings, self.overwrite = settings, overwrite

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> _Outcome:
        outcome = _Outcome()
        try:
            for camera in self.cameras(index):
                path = superpixel_path(self.folder, camera)
                if not self.overwrite and _is_whole(path, camera):
                    outcome.kept += 1
                else:
                    save_superpixels(path, slic(image_of(camera), self.settings))
                    outcome.written += 1
        except ConfigError:
            raise
        except DataError as error:
            outcome.error = error
        return outcome

    def cameras(self, index: int) -> tuple[Camera, ...]:
        return self.dataset.load(self.frames[index], Field.IMAGES).cameras


def _is_whole(path: Path, camera: Camera) -> bool:
    if not path.is_file():
        return False
    try:
        read_superpixels(path, image_size(camera))
    except DataError:
        return False
    return True


def _announce(work: _Work, processes: int, progress: bool) -> None:
    """Tell how long the pass will take, from the time of one image."""
    try:
        cameras = work.cameras(0) if len(work) else ()
    except DataError:
        return
    if not cameras:
        return
    started = time.perf_counter()
    slic(image_of(cameras[0]), work.settings)
    seconds = time.perf_counter() - started
    images = len(work) * len(cameras)
    there = 0 if work.overwrite else sum(1 for _ in work.folder.glob("*.png"))
    hours = max(0, images - there) * seconds / processes / 3600
    message = (
        f"{images} images, {min(there, images)} there already; {seconds:.2f} s each: about "
        f"{in_words(hours)} in {processes} process(es)"
    )
    logging.getLogger(__name__).info(message)
    if progress:
        tqdm.write(message, file=sys.stderr)
