"""Feature maps of every image of a split, computed once and kept on disk.

``transforms.image_features`` describes the files. The pass can be killed at any moment and started
again: a file appears under its name only when it is whole, and whole files are not made twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Field, FrameId
from lidarssl.images.base import ImageEncoder
from lidarssl.prepare.passes import OnError, check_on_error, frames_with_images, in_words
from lidarssl.replacing import replacing
from lidarssl.transforms.image_features import (
    DIGEST,
    DTYPES,
    FORMAT,
    SETTINGS_FILE,
    TENSOR,
    FeatureSettings,
    feature_path,
    read_features,
    read_settings,
)
from lidarssl.transforms.images import Crop, crop_camera, image_of, image_size

_GIB = 1 << 30


@dataclass
class ImageFeatureSummary:
    """What a pass did.

    Attributes:
        folder: where the files are.
        frames: frames of this shard.
        written: images encoded.
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
            f"{self.folder}: {self.written} images encoded, {self.kept} kept, "
            f"{len(self.failures)} failed, {self.frames} frames in {self.seconds:.0f} s"
        )
        return "\n  ".join([text, *self.failures])


def prepare_image_features(
    dataset: Dataset,
    split: str,
    output: str | Path,
    encoder: ImageEncoder,
    height: int,
    width: int,
    *,
    arguments: Mapping[str, Any] | None = None,
    antialias: bool = True,
    dtype: str = "float16",
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    on_error: OnError = "raise",
    progress: bool = True,
) -> ImageFeatureSummary:
    """Write ``<output>/<camera token>.safetensors`` for every image of a split.

    Args:
        dataset: any dataset with images.
        split: of it.
        output: folder, made when missing.
        encoder: is moved to ``device`` and put into eval mode.
        height, width: px that every image is resized to, whatever its aspect.
        arguments: the encoder's constructor arguments, which the folder will be known by beside
            the weights themselves; ``weights`` and ``frozen`` are left out.
        antialias: smooth images before they are reduced.
        dtype: of the maps, ``float16`` or ``float32``.
        batch_size: images that are encoded at once.
        device: of the encoder.
        workers: processes that load and resize images beside this one; 0 = none.
        shard: (i, n) takes frames i, i + n, i + 2n, ...: one i per machine.
        overwrite: make files again that are there and whole.
        on_error: ``raise`` stops at the first frame that cannot be done, ``skip`` counts it.
        progress: show a bar, and first an estimate, on standard error.

    Raises:
        ConfigError: the dataset has no images, the folder was made with other settings, or an
            option makes no sense.
        DataError: a frame cannot be read, or features do not fit into ``dtype``, and
            ``on_error`` is ``raise``.
    """
    if batch_size < 1:
        raise ConfigError(f"batches of {batch_size} images", field="batch_size", remedy="try 8")
    check_on_error(on_error)
    frames = frames_with_images(dataset, split, shard)
    settings = settings_of(encoder, height, width, arguments, antialias, dtype)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings, overwrite)
    work = _Loading(dataset, frames, folder, settings, overwrite)
    writing = _Writing(encoder.eval().to(device), torch.device(device), settings)
    summary, started = ImageFeatureSummary(folder, len(frames)), time.monotonic()
    _announce(work, writing, max(1, workers), batch_size, progress)
    loader = DataLoader(work, batch_size=None, num_workers=min(workers, len(frames)))
    bar = tqdm(loader, "image features", unit="frame", disable=not progress)
    for paths, images in _batches(_images(bar, summary, on_error), batch_size):
        failures = writing.write(paths, images)
        if failures and on_error == "raise":
            raise failures[0]
        summary.written += len(paths) - len(failures)
        summary.failures += map(str, failures)
    summary.seconds = time.monotonic() - started
    return summary


def settings_of(
    encoder: ImageEncoder,
    height: int,
    width: int,
    arguments: Mapping[str, Any] | None = None,
    antialias: bool = True,
    dtype: str = "float16",
) -> FeatureSettings:
    """What the maps of ``encoder`` are known by; arguments as ``prepare_image_features``."""
    described = {
        name: value
        for name, value in (arguments or {}).items()
        if name not in ("weights", "frozen")
    }
    return FeatureSettings(
        encoder={"class": type(encoder).__name__} | described,
        weights=fingerprint(encoder),
        height=height,
        width=width,
        antialias=antialias,
        dtype=dtype,
        channels=encoder.out_channels,
        rows=-(-height // encoder.stride),
        columns=-(-width // encoder.stride),
        stride=encoder.stride,
    )


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of every weight with its name: the same network, whatever file it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_features(path: Path, features: Tensor, settings: FeatureSettings) -> None:
    """Write a (C, h, w) map in the format of ``transforms.image_features``, all or nothing.

    Raises:
        DataError: it is not finite, or not in the settings' dtype.
    """
    from safetensors.torch import save

    stored = features.to(DTYPES[settings.dtype]).contiguous()
    if not bool(torch.isfinite(stored).all()):
        raise DataError(
            f"the features of this image do not fit into {settings.dtype}",
            path=path,
            field="dtype",
            remedy="choose float32, and look at the weights if that fails too",
        )
    with replacing(path) as partial:
        partial.write_bytes(save({TENSOR: stored}, {DIGEST: settings.digest}))


def _claim(folder: Path, settings: FeatureSettings, overwrite: bool) -> None:
    """Write the settings of the folder; other settings that are there stay unless overwritten."""
    path = folder / SETTINGS_FILE
    if path.is_file() and not overwrite:
        stored = read_settings(folder)
        if stored.digest == settings.digest:
            return
        there, asked = (json.loads(one.text) for one in (stored, settings))
        differs = [name for name in asked if there[name] != asked[name]]
        raise ConfigError(
            "the image features in this folder were made with other settings: "
            + ", ".join(f"{name} {there[name]}, not {asked[name]}" for name in differs),
            path=path,
            field=", ".join(differs),
            remedy="prepare them into another folder, or overwrite these",
        )
    with replacing(path) as partial:
        partial.write_text(json.dumps({"format": FORMAT} | json.loads(settings.text), indent=1))


@dataclass
class _Loaded:
    """The images of a frame that are to be encoded.

    Attributes:
        paths: the files of their maps.
        images: (I, 3, H, W) float32 in [0, 1], or None.
        kept: images that are not, because their file is there and whole.
        error: ended the frame.
    """

    paths: list[Path] = field(default_factory=list)
    images: Tensor | None = None
    kept: int = 0
    error: DataError | None = None


class _Loading(TorchDataset[_Loaded]):
    """Item i is frame i; runs in the workers of a loader."""

    def __init__(
        self,
        dataset: Dataset,
        frames: Sequence[FrameId],
        folder: Path,
        settings: FeatureSettings,
        overwrite: bool,
    ) -> None:
        self.dataset, self.frames, self.folder = dataset, frames, folder
        self.settings, self.overwrite = settings, overwrite

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> _Loaded:
        loaded = _Loaded()
        try:
            images = []
            for camera in self.cameras(index):
                path = feature_path(self.folder, camera)
                if not self.overwrite and self._is_whole(path):
                    loaded.kept += 1
                else:
                    images.append(self.resized(camera))
                    loaded.paths.append(path)
            loaded.images = torch.stack(images) if images else None
        except ConfigError:
            raise
        except DataError as error:
            loaded = _Loaded(kept=loaded.kept, error=error)
        return loaded

    def cameras(self, index: int) -> tuple[Camera, ...]:
        return self.dataset.load(self.frames[index], Field.IMAGES).cameras

    def resized(self, camera: Camera) -> Tensor:
        """Exactly as the transforms of a method resize it."""
        whole, size = Crop.whole(image_size(camera)), (self.settings.height, self.settings.width)
        return image_of(crop_camera(camera, whole, size, self.settings.antialias))

    def _is_whole(self, path: Path) -> bool:
        try:
            read_features(path, self.settings)
        except DataError:
            return False
        return True


@dataclass
class _Writing:
    """Encodes images and keeps their maps."""

    encoder: ImageEncoder
    device: torch.device
    settings: FeatureSettings

    def write(self, paths: Sequence[Path], images: Tensor) -> list[DataError]:
        """Returns what kept a map from being written."""
        failures = []
        for path, features in zip(paths, self.encode(images), strict=True):
            try:
                save_features(path, features, self.settings)
            except DataError as error:
                failures.append(error)
        return failures

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        features = self.encoder(images.to(self.device)).cpu()
        if tuple(features.shape[1:]) != self.settings.shape:
            raise ConfigError(
                f"{type(self.encoder).__name__} makes maps of {tuple(features.shape[1:])}, "
                f"not {self.settings.shape} as its out_channels and stride say",
                field="encoder",
            )
        return features


def _images(
    loader: Iterable[_Loaded], summary: ImageFeatureSummary, on_error: OnError
) -> Iterator[tuple[Path, Tensor]]:
    """One image after the other, with the file of its map; counts what needs none."""
    for loaded in loader:
        if loaded.error is not None and on_error == "raise":
            raise loaded.error
        summary.kept += loaded.kept
        if loaded.error is not None:
            summary.failures.append(str(loaded.error))
        if loaded.images is not None:
            yield from zip(loaded.paths, loaded.images, strict=True)


def _batches(
    images: Iterator[tuple[Path, Tensor]], size: int
) -> Iterator[tuple[list[Path], Tensor]]:
    """``size`` images at a time, of whatever frames; the last batch is what is left."""
    paths: list[Path] = []
    waiting: list[Tensor] = []
    for path, image in images:
        paths.append(path)
        waiting.append(image)
        if len(paths) == size:
            yield paths, torch.stack(waiting)
            paths, waiting = [], []
    if paths:
        yield paths, torch.stack(waiting)


def _announce(
    work: _Loading, writing: _Writing, processes: int, batch_size: int, progress: bool
) -> None:
    """Tell how much disk and time the pass can take, from the images of one frame."""
    started = time.perf_counter()
    try:
        cameras = work.cameras(0) if len(work) else ()
        images = [work.resized(camera) for camera in cameras]
    except DataError:
        return
    if not images:
        return
    loading = (time.perf_counter() - started) / len(images) / processes
    batch = torch.stack(images)[:batch_size]
    writing.encode(batch[:1])  # the first run of a network also allocates and compiles
    started = time.perf_counter()
    writing.encode(batch)
    seconds = max(loading, (time.perf_counter() - started) / len(batch))
    count, size = len(work) * len(images), work.settings.bytes
    there = sum(1 for _ in work.folder.glob("*.safetensors"))
    free = shutil.disk_usage(work.folder).free
    message = (
        f"{count} images; {there} files are there already; {size / 2**20:.2f} MiB each: at most "
        f"{count * size / _GIB:.1f} GiB, {free / _GIB:.0f} GiB are free; {seconds:.2f} s each: "
        f"at most {in_words(count * seconds / 3600)}"
    )
    logging.getLogger(__name__).info(message)
    if progress:
        tqdm.write(message, file=sys.stderr)
