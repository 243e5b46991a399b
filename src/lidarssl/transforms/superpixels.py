"""Superpixels of camera images: SLIC, from the files of an offline pass, or with the frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError, DataError, require
from lidarssl.frame import Camera, Frame
from lidarssl.transforms.images import image_of, image_size, resize_nearest
from lidarssl.transforms.superpixel_files import open_superpixels, superpixel_path
from lidarssl.transforms.superpixel_settings import (
    SETTINGS_FILE,
    SlicSettings,
    check_settings,
    parse_settings,
    read_settings,
)

_PACK = ", and pack the shards again with `lidarssl data shard ... --superpixels DIR`"


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


class Superpixels:
    """Give every camera its superpixels, at the size its image has now.

    While the image is undecoded, so are superpixels that are read.

    Args:
        segments, compactness, sigma, scale: see ``SlicSettings``.
        folder: read the files of ``lidarssl prepare superpixels``; None = compute (about 3 s
            for an image of 1600 x 900, a fifteenth of it with ``scale`` 0.25).
        stored: keep those that frames bring, as of shards that were packed with superpixels.

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
            made = read_settings(self.folder)
            check_settings(made, self.settings, self.folder / SETTINGS_FILE)

    def check_dataset(self, dataset: Dataset, split: str) -> None:
        """Compare the settings with those of superpixels that frames bring, where it is told.

        Raises:
            ConfigError: they differ.
        """
        if not self.stored:
            return
        for part in dict.fromkeys(map(dataset.of, dataset.frames(split))):
            made = part.superpixels_made_with(split)
            if made is not None:
                told = parse_settings(made.settings, made.where)
                check_settings(told, self.settings, made.where, _PACK)

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
