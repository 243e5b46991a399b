"""Feature maps of camera images that an offline pass has kept on disk.

A file is a safetensors named ``<camera token>.safetensors`` with one tensor, ``features``
(C, h, w): the map that a frozen image encoder makes of all of the image, resized to one size.
``image_features.json`` beside them holds the settings they were made with, and every file the
digest of them. Flips and crops of images would need other maps.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.files import check_name, read_json
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Frame
from lidarssl.transforms.images import image_size
from lidarssl.weights import read_safetensors

SETTINGS_FILE = "image_features.json"
FORMAT = 1
TENSOR = "features"
DIGEST = "settings"
DTYPES = {"float16": torch.float16, "float32": torch.float32}
_HEADER_LIMIT = 4096
_LARGEST = 1 << 20
_MAP_LIMIT = 1 << 30
_PREPARE = "run `lidarssl prepare image-features` on this dataset and split, into this folder"


@dataclass(frozen=True)
class FeatureSettings:
    """What the maps of a folder were made with.

    Attributes:
        encoder: class and arguments of the image encoder.
        weights: SHA-256 of its weights.
        height, width: px that every image was resized to, whatever its aspect.
        antialias: whether it was smoothed before that.
        dtype: of the maps, ``float16`` or ``float32``.
        channels, rows, columns: shape of a map.
        stride: px of the resized image per cell of the map.

    Raises:
        ConfigError: sizes that make no sense, a map above 1 GiB, or another dtype.
    """

    encoder: dict[str, Any]
    weights: str
    height: int
    width: int
    antialias: bool
    dtype: str
    channels: int
    rows: int
    columns: int
    stride: int

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"'{self.dtype}' is no dtype of feature maps",
                field="dtype",
                remedy=f"choose one of {', '.join(DTYPES)}",
            )
        for name in ("height", "width", "channels", "rows", "columns", "stride"):
            if not 1 <= getattr(self, name) <= _LARGEST:
                raise ConfigError(f"{name} is not in 1..{_LARGEST}", field=name)
        if self.bytes > _MAP_LIMIT:
            raise ConfigError(
                f"a feature map of {self.bytes} bytes is above the {_MAP_LIMIT} that are read",
                field="height, width",
                remedy="make images smaller",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a map: (channels, rows, columns)."""
        return self.channels, self.rows, self.columns

    @property
    def bytes(self) -> int:
        """Of a map."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def text(self) -> str:
        """As JSON: the same for the same settings."""
        return json.dumps(asdict(self), sort_keys=True, default=str)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def read_settings(folder: Path) -> FeatureSettings:
    """The settings that the maps of ``folder`` were made with.

    Raises:
        DataError: there are none, or they are damaged or of another version.
    """
    path = folder / SETTINGS_FILE
    content = read_json(path, limit=65536, remedy=_PREPARE)
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise DataError(
            f"does not hold settings of format {FORMAT}",
            path=path,
            field="format",
            remedy="prepare the features again, into another folder",
        )
    wrong = [name for name, kind in _KINDS.items() if type(content.get(name)) is not kind]
    wrong += sorted(content.keys() - _KINDS.keys())
    if wrong:
        raise DataError(
            "holds other fields than feature settings have",
            path=path,
            field=", ".join(wrong)[:200],
            remedy="prepare the features again, into another folder",
        )
    try:
        return FeatureSettings(**content)
    except ConfigError as error:
        raise DataError(error.problem, path=path, field=error.field, remedy=_PREPARE) from None


_KINDS = {name: get_origin(kind) or kind for name, kind in get_type_hints(FeatureSettings).items()}


def feature_path(folder: Path, camera: Camera) -> Path:
    """Where the feature map of a camera's image is kept.

    Raises:
        DataError: the camera's token is no file name.
    """
    return folder / f"{check_name(camera.token, None, 'token')}.safetensors"


def read_features(path: Path, settings: FeatureSettings) -> Tensor:
    """The map of a file, (C, h, w) of the settings' dtype.

    Raises:
        DataError: missing, damaged, made with other settings, or not finite.
    """
    if not path.is_file():
        raise DataError("these image features are not there", path=path, remedy=_PREPARE)
    if path.stat().st_size > settings.bytes + _HEADER_LIMIT:
        raise _misfit(f"has {path.stat().st_size} bytes for a map of {settings.bytes}", path)
    try:
        tensors, metadata = read_safetensors(path)
    except DataError as error:
        raise _misfit(error.problem, path) from error
    features = tensors.get(TENSOR)
    if features is None or metadata.get(DIGEST) != settings.digest:
        raise _misfit(f"was made with other settings than {SETTINGS_FILE} beside it says", path)
    if tuple(features.shape) != settings.shape or features.dtype != DTYPES[settings.dtype]:
        raise _misfit(
            f"is {tuple(features.shape)} {features.dtype}, not {settings.shape} {settings.dtype}",
            path,
        )
    if not bool(torch.isfinite(features.abs().amax())):  # a tenth of the time of asking each
        raise _misfit("holds numbers that are not finite", path)
    return features.clone()  # not a view of the file, which may change


def _misfit(problem: str, path: Path) -> DataError:
    return DataError(problem, path=path, remedy=f"{_PREPARE}: it makes files again that do not fit")


class StoredFeatures:
    """Give every camera the feature map of its image.

    Put it behind the transform that resizes the images, and crop or mirror none of them.

    Args:
        folder: of ``lidarssl prepare image-features``.
        size: (height, width) that images are resized to here; None = not checked ahead.
        antialias: whether they are smoothed before that; None = not checked.

    Raises:
        DataError: the folder holds no features.
        ConfigError: its features are of images resized otherwise.
    """

    def __init__(
        self,
        folder: str | Path,
        size: tuple[int, int] | None = None,
        antialias: bool | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self._check_size(size or (self.settings.height, self.settings.width))
        if antialias not in (None, self.settings.antialias):
            raise self._other("antialias", self.settings.antialias, antialias)

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        return replace(frame, cameras=tuple(self._filled(camera) for camera in frame.cameras))

    def _filled(self, camera: Camera) -> Camera:
        if camera.image is not None or camera.undecoded is not None:
            self._check_size(image_size(camera))
        path = feature_path(self.folder, camera)
        return replace(camera, features=read_features(path, self.settings))

    def _check_size(self, size: tuple[int, int]) -> None:
        made = self.settings.height, self.settings.width
        if tuple(size) != made:
            raise self._other("size", f"{made[0]} x {made[1]}", f"{size[0]} x {size[1]}")

    def _other(self, field: str, made: object, here: object) -> ConfigError:
        return ConfigError(
            f"the image features in this folder are of images with {field} {made}, not {here}",
            path=self.folder / SETTINGS_FILE,
            field=field,
            remedy="change the recipe, or prepare them into another folder",
        )
