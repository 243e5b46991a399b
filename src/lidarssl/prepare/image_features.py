"""Feature maps of every image of a split, computed once and kept on disk.

``transforms.image_features`` describes the files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera
from lidarssl.images.base import ImageEncoder
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
from lidarssl.wording import counted

_GIB = 1 << 30


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
) -> Summary:
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
    check_options(on_error, batch_size)
    frames = frames_with_images(dataset, split, shard)
    settings = settings_of(encoder, height, width, arguments, antialias, dtype)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings, overwrite)
    work = _Loading(dataset, frames, folder, settings, overwrite)
    writing = _Writing(encoder.eval().to(device), torch.device(device), settings)
    summary, started = Summary(folder, "encoded", len(frames)), time.monotonic()
    _announce(work, writing, max(1, workers), batch_size, progress)
    images = run_pass(work, summary, "image features", workers, on_error, progress)
    for batch in in_batches(images, batch_size):
        failures = writing.write(batch)
        if failures and on_error == "raise":
            raise failures[0]
        summary.written += len(batch) - len(failures)
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
        check_same(path, "the image features in this folder were", there, asked)
    with replacing(path) as partial:
        partial.write_text(json.dumps({"format": FORMAT} | json.loads(settings.text), indent=1))


class _Loading(ImageWork[FeatureSettings]):
    """Leaves the resized images to the process of the pass."""

    def path(self, camera: Camera) -> Path:
        return feature_path(self.folder, camera)

    def check(self, path: Path, camera: Camera) -> None:
        read_features(path, self.settings)

    def make(self, path: Path, camera: Camera) -> Tensor:
        """The image, resized exactly as the transforms of a method do."""
        whole, size = Crop.whole(image_size(camera)), (self.settings.height, self.settings.width)
        return image_of(crop_camera(camera, whole, size, self.settings.antialias))


@dataclass
class _Writing:
    """Encodes images and keeps their maps."""

    encoder: ImageEncoder
    device: torch.device
    settings: FeatureSettings

    def write(self, batch: Sequence[Image]) -> list[DataError]:
        """Returns what kept a map from being written."""
        failures = []
        maps = self.encode(torch.stack([image for _, image in batch]))
        for (path, _), features in zip(batch, maps, strict=True):
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


def _announce(
    work: _Loading, writing: _Writing, processes: int, batch_size: int, progress: bool
) -> None:
    """Tell how much disk and time the pass can take, from the images of one frame."""
    started = time.perf_counter()
    images = [work.make(work.folder, camera) for camera in work.first_cameras()]
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
    announce(
        f"{counted(count, 'image')}, {there} there already; {size / 2**20:.2f} MiB each: at most "
        f"{count * size / _GIB:.1f} GiB, {free / _GIB:.0f} GiB are free; {seconds:.2f} s each: "
        f"at most {in_words(count * seconds / 3600)}",
        progress,
    )
