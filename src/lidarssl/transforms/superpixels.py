"""Superpixels of camera images: SLIC, and the files an offline pass keeps them in.

A superpixel file is a single-channel PNG, 8 bits deep (16 when an id exceeds 255), named
``<camera token>.png`` and as large as the camera's image; a pixel's value is its segment id,
from 0. The file ``superpixels.json`` beside them holds the settings they were made with; folders
made elsewhere (SLidR's) may lack it.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lidarssl.datasets.files import IMAGE_FILE_LIMIT, read_bytes, read_json
from lidarssl.datasets.image_files import PIXEL_LIMIT
from lidarssl.errors import ConfigError, DataError, require
from lidarssl.frame import Camera, Frame
from lidarssl.transforms.images import image_of, resize_bilinear, resize_nearest

SETTINGS_FILE = "superpixels.json"
_PREPARE = "run `lidarssl prepare superpixels` on this dataset and split"


@dataclass(frozen=True)
class SlicSettings:
    """Parameters of SLIC (Achanta et al., 2012); the defaults are SLidR's.

    Attributes:
        segments: number of segments asked for; about a quarter fewer come back.
        compactness: weight of distance in the image against distance in colour.
        sigma: px of the full image, width of the Gaussian smoothing beforehand.
        scale: 0.25 segments the image at a quarter of its height and width and enlarges the
            result by nearest neighbour: ~16 times faster.
    """

    segments: int = 150
    compactness: float = 6.0
    sigma: float = 3.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.segments >= 1 and self.compactness > 0 and self.sigma >= 0):
            raise ConfigError(
                f"SLIC cannot run with {self.segments} segments, compactness {self.compactness} "
                f"and sigma {self.sigma}",
                field="superpixels",
                remedy="give 1 segment or more, compactness above 0 and sigma of 0 or more",
            )
        if not 0 < self.scale <= 1:
            raise ConfigError(
                f"scale {self.scale} is not in (0, 1]", field="superpixels.scale", remedy="try 0.25"
            )


def slic(image: Tensor, settings: SlicSettings | None = None) -> Tensor:
    """Segment an image.

    Args:
        image: (3, H, W) RGB, uint8 or float32 in [0, 1].
        settings: None = SLidR's.

    Returns:
        (H, W) int64, ids from 0 without gaps.

    Raises:
        ConfigError: scikit-image is not installed.
    """
    settings = settings or SlicSettings()
    segmentation = require("skimage.segmentation", "images")
    height, width = image.shape[-2:]
    if settings.scale < 1:
        reduced = (_at_least_one(height * settings.scale), _at_least_one(width * settings.scale))
        image = resize_bilinear(image, reduced, antialias=True)
    if image.dtype != torch.uint8:
        image = (image * 255).round().clamp(0, 255).to(torch.uint8)
    ids = segmentation.slic(
        image.permute(1, 2, 0).numpy(),
        n_segments=settings.segments,
        compactness=settings.compactness,
        sigma=settings.sigma * settings.scale,
        start_label=0,
        channel_axis=-1,
    )
    return resize_nearest(torch.from_numpy(ids).to(torch.int64), (height, width))


def _at_least_one(size: float) -> int:
    return max(1, round(size))


def superpixel_path(folder: Path, camera: Camera) -> Path:
    """Where the superpixels of a camera's image are kept.

    Raises:
        DataError: the camera's token is no file name.
    """
    if not camera.token or camera.token.startswith(".") or set(camera.token) & set("/\\\0"):
        raise DataError(f"camera token {camera.token!r} is no file name", field="token")
    return folder / f"{camera.token}.png"


def read_superpixels(path: Path, size: tuple[int, int]) -> Tensor:
    """Segment ids of a file, (H, W) int64.

    Args:
        path: see the module for the format.
        size: (height, width) of the image they belong to.

    Raises:
        DataError: missing, corrupt, not single-channel, or of another size.
    """
    data = read_bytes(path, IMAGE_FILE_LIMIT, remedy=_PREPARE)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        found, mode = (image.height, image.width), image.mode
        if found == size and size[0] * size[1] <= PIXEL_LIMIT and mode in ("L", "I;16", "I"):
            return torch.from_numpy(np.array(image).astype(np.int64))
    # Pillow's decoders raise almost any type on a corrupt stream; all of them mean the same.
    except Exception as error:
        raise DataError(
            f"the superpixels do not decode ({str(error)[:200]})", path=path, remedy=_PREPARE
        ) from error
    raise DataError(
        f"superpixels are {found[0]} x {found[1]} in mode '{mode}', "
        f"expected single-channel {size[0]} x {size[1]}",
        path=path,
        remedy="prepare them with the image size that is loaded now",
    )


def check_settings(folder: Path, settings: SlicSettings) -> None:
    """Compare with the settings that the files of ``folder`` were made with, where it tells.

    Raises:
        ConfigError: they differ.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return
    stored = read_json(path, limit=65536)
    asked = asdict(settings)
    if stored != asked:
        stored = stored if isinstance(stored, dict) else {}
        differs = [name for name in asked if stored.get(name) != asked[name]]
        raise ConfigError(
            "the superpixels in this folder were made with other settings: "
            + ", ".join(f"{name} {stored.get(name)}, not {asked[name]}" for name in differs),
            path=path,
            field=", ".join(differs),
            remedy="change the recipe, or prepare them into another folder",
        )


class Superpixels:
    """Give every camera its superpixels, at the size its image has now.

    Args:
        segments, compactness, sigma, scale: see ``SlicSettings``.
        folder: read the files of ``lidarssl prepare superpixels``; None = compute (about 3 s
            for an image of 1600 x 900, a fifteenth of it with ``scale`` 0.25).

    Raises:
        ConfigError: the folder's files were made with other settings.
    """

    def __init__(
        self,
        segments: int = 150,
        compactness: float = 6.0,
        sigma: float = 3.0,
        scale: float = 1.0,
        folder: str | Path | None = None,
    ) -> None:
        self.settings = SlicSettings(segments, compactness, sigma, scale)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            check_settings(self.folder, self.settings)

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        cameras = (
            replace(camera, superpixels=self._of(camera, image_of(camera)))
            for camera in frame.cameras
        )
        return replace(frame, cameras=tuple(cameras))

    def _of(self, camera: Camera, image: Tensor) -> Tensor:
        if self.folder is None:
            return slic(image, self.settings)
        height, width = image.shape[-2:]
        return read_superpixels(superpixel_path(self.folder, camera), (height, width))
