"""Superpixels of camera images: SLIC, or read from the files of an offline pass.

The file ``superpixels.json`` beside those holds the settings they were made with; folders made
elsewhere (SLidR's) may lack it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.datasets.files import read_json
from lidarssl.errors import ConfigError, DataError, require
from lidarssl.frame import Camera, Frame
from lidarssl.transforms.images import image_of, image_size, resize_nearest
from lidarssl.transforms.superpixel_files import open_superpixels, superpixel_path

SETTINGS_FILE = "superpixels.json"


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
        # Not by ``resize_bilinear``, whose rounding is another: SLIC makes segments of that.
        values = image.float() / 255 if image.dtype == torch.uint8 else image
        image = F.interpolate(values[None], reduced, mode="bilinear", antialias=True)[0]
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

    While the image is undecoded, so are superpixels that are read.

    Args:
        segments, compactness, sigma, scale: see ``SlicSettings``.
        folder: read the files of ``lidarssl prepare superpixels``; None = compute (about 3 s
            for an image of 1600 x 900, a fifteenth of it with ``scale`` 0.25).
        stored: keep those that frames bring, as of shards that were packed with superpixels;
            the settings are then those of the shards.

    Raises:
        ConfigError: the folder's files were made with other settings; a folder, and ``stored``.
    """

    def __init__(
        self,
        segments: int = 150,
        compactness: float = 6.0,
        sigma: float = 3.0,
        scale: float = 1.0,
        folder: str | Path | None = None,
        stored: bool = False,
    ) -> None:
        self.settings = SlicSettings(segments, compactness, sigma, scale)
        self.folder = None if folder is None else Path(folder)
        self.stored = stored
        if stored and folder is not None:
            raise ConfigError(
                "superpixels come from a folder or with the frames, not both",
                field="superpixels.stored",
                remedy="leave folder or stored out",
            )
        if self.folder is not None:
            check_settings(self.folder, self.settings)

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        return replace(frame, cameras=tuple(map(self._filled, frame.cameras)))

    def _filled(self, camera: Camera) -> Camera:
        if self.stored:
            if camera.superpixels is None:
                raise DataError(
                    f"camera {camera.name} ({camera.token}) came without superpixels",
                    field="superpixels",
                    remedy="pack the shards with --superpixels, or set superpixels.stored to false",
                )
            return camera
        if self.folder is None:
            image = image_of(camera)
            return replace(camera, image=image, superpixels=slic(image, self.settings))
        file = open_superpixels(superpixel_path(self.folder, camera), image_size(camera))
        if camera.image is None:
            return replace(camera, superpixels=None, undecoded_superpixels=file)
        return replace(camera, superpixels=file.decode().to(torch.int64))
