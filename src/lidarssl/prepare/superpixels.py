"""Superpixels of every image of a split, computed once and kept in files.

``transforms.superpixel_files`` describes them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.frame import Camera, FrameId
from lidarssl.prepare.passes import (
    ImageWork,
    OnError,
    Summary,
    announce,
    check_options,
    check_same,
    frames_with_images,
    in_words,
    run_pass,
)
from lidarssl.replacing import replacing
from lidarssl.transforms.images import image_of, image_size
from lidarssl.transforms.superpixel_files import (
    SUFFIXES,
    FileFormat,
    encode_superpixels,
    read_superpixels,
    superpixel_path,
)
from lidarssl.transforms.superpixel_settings import SETTINGS_FILE, SlicSettings, read_settings
from lidarssl.transforms.superpixels import slic
from lidarssl.wording import counted


def prepare_superpixels(
    dataset: Dataset,
    split: str,
    output: str | Path,
    segments: int = 150,
    compactness: float = 6.0,
    sigma: float = 3.0,
    scale: float = 1.0,
    form: FileFormat = "runs",
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    on_error: OnError = "raise",
    progress: bool = True,
) -> Summary:
    """Write ``<output>/<camera token>.runs`` (or ``.png``) for every image of a split.

    Args:
        dataset: any dataset with images.
        split: of it.
        output: folder, made when missing.
        segments, compactness, sigma, scale: see ``SlicSettings``.
        form: of the files that are made; those that are there and whole keep theirs.
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
    if not overwrite and (stored := read_settings(folder)) is not None:
        path, what = folder / SETTINGS_FILE, "the superpixels in this folder were"
        check_same(path, what, asdict(stored), asdict(settings))
    with replacing(folder / SETTINGS_FILE) as partial:
        partial.write_text(json.dumps(asdict(settings)))
    work = _Segmenting(dataset, frames, folder, settings, overwrite, form)
    _announce(work, max(1, workers), progress)
    summary = Summary(folder, "segmented", len(frames))
    # The workers leave no image to this process.
    list(run_pass(work, summary, "superpixels", workers, on_error, progress))
    return summary


def save_superpixels(path: Path, ids: Tensor) -> None:
    """Write (H, W) segment ids in the format of the suffix of ``path``, all or nothing.

    Raises:
        DataError: see ``encode_superpixels``.
    """
    data = encode_superpixels(ids, path)
    with replacing(path) as partial:
        partial.write_bytes(data)


class _Segmenting(ImageWork[SlicSettings]):
    """A loader's workers are the processes of the pass."""

    def __init__(
        self,
        dataset: Dataset,
        frames: Sequence[FrameId],
        folder: Path,
        settings: SlicSettings,
        overwrite: bool,
        form: FileFormat,
    ) -> None:
        super().__init__(dataset, frames, folder, settings, overwrite)
        self.form = form

    def path(self, camera: Camera) -> Path:
        there = superpixel_path(self.folder, camera)
        return there if there.is_file() else superpixel_path(self.folder, camera, self.form)

    def check(self, path: Path, camera: Camera) -> None:
        read_superpixels(path, image_size(camera))

    def make(self, path: Path, camera: Camera) -> None:
        asked = superpixel_path(self.folder, camera, self.form)
        save_superpixels(asked, slic(image_of(camera), self.settings))
        if path != asked:
            path.unlink()


def _announce(work: _Segmenting, processes: int, progress: bool) -> None:
    """Tell how long the pass will take, from the time of one image."""
    cameras = work.first_cameras()
    if not cameras:
        return
    started = time.perf_counter()
    slic(image_of(cameras[0]), work.settings)
    seconds = time.perf_counter() - started
    images = len(work) * len(cameras)
    files = [] if work.overwrite else list(work.folder.iterdir())
    there = sum(1 for file in files if file.suffix in SUFFIXES.values())
    hours = max(0, images - there) * seconds / processes / 3600
    announce(
        f"{counted(images, 'image')}, {min(there, images)} there already; {seconds:.2f} s each: "
        f"about {in_words(hours)} in {counted(processes, 'process', 'processes')}",
        progress,
    )
