"""Every pretraining method, found by itself and built small, and batches to train it on."""

from __future__ import annotations

import atexit
import importlib
import inspect
import pkgutil
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import lidarssl.methods
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.batching import collate
from lidarssl.frame import Batch, Field, Frame
from lidarssl.images.unet import SmallUNet
from lidarssl.images.vit import ViT, ViTArchitecture
from lidarssl.methods.also import Also, ScanSampling
from lidarssl.methods.base import Method
from lidarssl.methods.clcp import Clcp, PairView
from lidarssl.methods.image_to_lidar import PairAugmentation
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.nclr_settings import CalibrationView, PoseTerm, TokenSampling
from lidarssl.methods.olivine import Distributions, Olivine
from lidarssl.methods.ppkt import Ppkt
from lidarssl.methods.scalr import Scalr, ViewAugmentation
from lidarssl.methods.slidr import Slidr
from lidarssl.transforms.base import Compose, sample_generator
from lidarssl.transforms.images import image_of
from lidarssl.transforms.occupancy import SupportSearch
from lidarssl.transforms.superpixels import Superpixels
from lidarssl.transforms.weak_labels import (
    SETTINGS_FILE,
    WeakLabels,
    WeakLabelSettings,
    save_weak_labels,
)
from toys import MemoryDataset


@dataclass(frozen=True)
class Small:
    """A method for tests.

    Attributes:
        build: from the size of the images it sees.
        samples: whether a step draws from its generator.
    """

    build: Callable[[tuple[int, int]], Method]
    samples: bool


def backbone() -> MinkUNet:
    return MinkUNet(
        inputs=PointInputs(("x", "y", "z", "intensity", "one"), reduce="mean"),
        rule="slidr_cartesian",
        voxel_size=0.5,
        stem_channels=8,
        encoder_channels=(8, 8),
        decoder_channels=(8, 8),
        blocks=(1,) * 4,
    )


def waffleiron(**changes: Any) -> WaffleIron:
    arguments: dict[str, Any] = {
        "channels": 32, "depth": 3, "fov": ((-12.0, -12.0, -3.0), (12.0, 12.0, 3.0)),
        "grids": ((12, 12), (12, 6), (12, 6)), "neighbours": 4, "voxel_size": 0.1,
        "inputs": PointInputs(("intensity", "x", "y", "z", "radius")),
    }  # fmt: skip
    return WaffleIron(**arguments | changes)


def encoder() -> SmallUNet:
    """Frozen and random, with features that tell the patches of the toy images apart."""
    dataset, made = MemoryDataset(4), SmallUNet(out_channels=8)
    cameras = [dataset.load(frame).cameras[0] for frame in dataset.frames("train")]
    images = torch.stack([image_of(camera) for camera in cameras])
    made.fit_feature_statistics([images / 255])
    return made


@cache
def weak_labels() -> Path:
    """A folder with labels of the toy images: bright, dark, or of nothing at one side."""
    folder, dataset = Path(tempfile.mkdtemp(prefix="weak_labels_")), MemoryDataset(8, cameras=2)
    atexit.register(shutil.rmtree, folder)
    (folder / SETTINGS_FILE).write_text(WeakLabelSettings(("dark", "bright")).text)
    for split in dataset.splits:
        for frame in dataset.frames(split):
            for camera in dataset.load(frame, Field.IMAGES).cameras:
                labels = 1 + (image_of(camera).float().mean(0) > 105).long()
                labels[:, :16] = 0
                save_weak_labels(folder / f"{camera.token}.png", labels)
    return folder


def augmentation(size: tuple[int, int]) -> PairAugmentation:
    return PairAugmentation(image_size=size, min_pairs=8, scale=(0.9, 1.1))


def vit() -> ViT:
    """A vision transformer that trains."""
    shape = ViTArchitecture("dino", image_size=48, patch_size=8, width=16, depth=2, heads=2)
    return ViT(shape, frozen=False)


def clcp(size: tuple[int, int] = (32, 48), **changes: Any) -> Clcp:
    arguments: dict[str, Any] = {"embedding": 8, "view": PairView(side=32, image_size=size)}
    arguments |= {"backbone": backbone(), "image_encoder": vit()}
    return Clcp(**arguments | changes)


def nclr(size: tuple[int, int] = (32, 48), **changes: Any) -> Nclr:
    arguments: dict[str, Any] = {
        "embedding": 8, "num_matches": 16, "view": CalibrationView(image_size=size),
        "sampling": TokenSampling(number=64),
        "pose": PoseTerm(keypoints=16, thresholds=(0.4, 0.2), enough=6),
    }  # fmt: skip
    arguments |= {"backbone": backbone(), "image_encoder": encoder()}
    return Nclr(**arguments | changes)


# A new method needs one line here; every test of every method then runs on it.
SMALL: dict[str, Small] = {
    "Also": Small(
        lambda size: Also(
            backbone(), 16, ScanSampling(voxel_size=0.05, num_queries=60, depth=2.0),
            SupportSearch(radius=1.0, limit=4), intensity_scale=0.5,
        ),
        samples=False,
    ),
    "Clcp": Small(lambda size: clcp(size), samples=False),
    "Nclr": Small(lambda size: nclr(size), samples=True),
    "Olivine": Small(
        lambda size: Olivine(
            backbone(), encoder(), WeakLabels(weak_labels()), 8, num_matches=64,
            distributions=Distributions(decay=0.2, warmup=2), augmentation=augmentation(size),
        ),
        samples=True,
    ),
    "Ppkt": Small(
        lambda size: Ppkt(
            backbone(), encoder(), 8, num_matches=64, augmentation=augmentation(size)
        ),
        samples=True,
    ),
    "Scalr": Small(
        lambda size: Scalr(
            waffleiron(), encoder(), augmentation=ViewAugmentation(image_size=size)
        ),
        samples=False,
    ),
    "Slidr": Small(
        lambda size: Slidr(
            backbone(), encoder(), 8, superpixels=Superpixels(24, sigma=0.5),
            augmentation=augmentation(size),
        ),
        samples=False,
    ),
}  # fmt: skip


def methods() -> list[type[Method]]:
    """Every concrete method of the package."""
    for module in pkgutil.walk_packages(lidarssl.methods.__path__, "lidarssl.methods."):
        importlib.import_module(module.name)
    found, pending = [], [Method]
    while pending:
        for cls in pending.pop().__subclasses__():
            pending.append(cls)
            if cls.__module__.startswith("lidarssl.") and _is_whole(cls):
                found.append(cls)
    return sorted(found, key=lambda cls: cls.__name__)


def _is_whole(cls: type[Method]) -> bool:
    """Modules do not enforce abstract methods, so look for what is left abstract."""
    names = [name for name, _ in inspect.getmembers(Method) if _is_abstract(Method, name)]
    return not any(_is_abstract(cls, name) for name in names)


def _is_abstract(cls: type, name: str) -> bool:
    return bool(getattr(getattr(cls, name), "__isabstractmethod__", False))


def entry(cls: type[Method]) -> Small:
    if cls.__name__ not in SMALL:
        pytest.fail(f"add a line for {cls.__name__} to SMALL in {__file__}")
    return SMALL[cls.__name__]


def build(cls: type[Method], seed: int = 0, size: tuple[int, int] = (32, 48)) -> Method:
    """A small method; every weight is disturbed, so that none is zero by initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = entry(cls).build(size)
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
    return method.train()


def frames(method: Method, count: int = 4, training: bool = True, points: int = 200) -> list[Frame]:
    """Transformed frames that carry what the method needs, and nothing else."""
    dataset, transform = (
        MemoryDataset(count, points, cameras=2),
        Compose(method.transforms(training)),
    )
    return [
        transform(dataset.load(frame, method.needs), sample_generator(0, 0, number))
        for number, frame in enumerate(dataset.frames("train"))
    ]


def batch_of(method: Method, some: list[Frame]) -> Batch:
    batch = collate(some)
    batch.points = method.lidar_encoder.prepare(batch.points)
    return batch
