"""Weak labels: the class of every pixel of camera images, as an offline pass or somebody left it.

A file is a single-channel 8-bit PNG named ``<camera token>.png``, as large as the camera's image;
a pixel's value v means class v of the list in ``weak_labels.json`` beside the files, and the value
``ignored`` means that nothing is known of it::

    {"format": 1, "classes": [NAME OF VALUE 0, ...], "ignored": 255, "labeller": {...}}

``ignored`` is null where every value is a class. ``labeller`` says what made the files, or is
null; its digest is a text of every file that the pass writes. Folders made elsewhere may lack
``weak_labels.json``; then a class order has to be named: that of the labels which OLIVINE (Zhang
and Hou, NeurIPS 2024) made with Grounded-SAM, with SEEM, or a file of the same form.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from lidarssl.datasets.files import IMAGE_FILE_LIMIT, check_name, read_bytes, read_json
from lidarssl.datasets.image_files import PIXEL_LIMIT
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import Camera, Frame
from lidarssl.replacing import replacing
from lidarssl.transforms.images import image_size
from lidarssl.transforms.paired import matches_of

SETTINGS_FILE = "weak_labels.json"
FORMAT = 1
IGNORED = 255
ORDERS = ("grounded_sam", "seem")
_ORDER_FOLDER = Path(__file__).parent / "weak_label_orders"
_DIGEST = "labeller"
_CLASS_LIMIT = 255
_NAME_LIMIT = 100
_JSON_LIMIT = 1 << 16
_PREPARE = "run `lidarssl prepare weak-labels` on this dataset and split, into this folder"
_AGAIN = f"{_PREPARE}: it makes files again that do not fit"
_WRITE = 'write {"format": 1, "classes": [NAME OF VALUE 0, ...], "ignored": 255 or null}'


@dataclass(frozen=True)
class WeakLabelSettings:
    """What the values of a folder's files mean, and what made them.

    Attributes:
        classes: name of value 0, 1, ...
        ignored: value of pixels of which nothing is known, or None.
        labeller: what made the files, as plain JSON values, or None.

    Raises:
        ConfigError: no classes, more than 255, names that repeat, or a value beyond a byte.
    """

    classes: tuple[str, ...]
    ignored: int | None = IGNORED
    labeller: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= _CLASS_LIMIT:
            raise ConfigError(
                f"{len(self.classes)} classes of weak labels",
                field="classes",
                remedy=f"name between 1 and {_CLASS_LIMIT}",
            )
        for name in self.classes:
            if not (0 < len(name) <= _NAME_LIMIT and name.isprintable()):
                raise ConfigError(f"{name[:200]!r} is no name of a class", field="classes")
            if self.classes.count(name) > 1:
                raise ConfigError(
                    f"two classes are called '{name}'", field="classes", remedy="rename one"
                )
        if self.ignored is not None and not 0 <= self.ignored <= 255:
            raise ConfigError(
                f"{self.ignored} is no value of an 8-bit image",
                field="ignored",
                remedy="give a value in 0..255, or null",
            )

    @property
    def text(self) -> str:
        """As JSON: the same for the same settings."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1, sort_keys=True, default=str)

    @property
    def digest(self) -> str | None:
        """Of the labeller, which the files carry; None where there is none."""
        if self.labeller is None:
            return None
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def label_of_value(self) -> dict[int, int]:
        """Class + 1 of every pixel value that may occur, 0 of ``ignored``."""
        labels = {value: value + 1 for value in range(len(self.classes))}
        return labels if self.ignored is None else labels | {self.ignored: 0}

    def same_order(self, other: WeakLabelSettings) -> bool:
        """Whether every value means the same."""
        return (self.classes, self.ignored) == (other.classes, other.ignored)


def read_settings(path: Path) -> WeakLabelSettings:
    """The settings in a ``weak_labels.json``, or in a file of a class order.

    Raises:
        DataError: missing, damaged, or of another version.
    """
    content = read_json(path, _JSON_LIMIT, _WRITE)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(
            f"holds no classes of weak labels of format {FORMAT}",
            path=path, field="format", remedy=_WRITE,
        )  # fmt: skip
    classes, ignored, labeller = (content.get(name) for name in ("classes", "ignored", "labeller"))
    problems = {
        "classes": not isinstance(classes, list) or not all(isinstance(n, str) for n in classes),
        "ignored": "ignored" not in content or type(ignored) not in (int, type(None)),
        "labeller": not isinstance(labeller, dict | None),
    }
    wrong = [name for name, is_wrong in problems.items() if is_wrong]
    if wrong:
        raise DataError(
            "a field is missing or of another kind",
            path=path,
            field=", ".join(wrong),
            remedy=_WRITE,
        )
    try:
        return WeakLabelSettings(tuple(content["classes"]), ignored, labeller)
    except ConfigError as error:
        remedy = error.remedy or _WRITE
        raise DataError(error.problem, path=path, field=error.field, remedy=remedy) from None


def class_order(name: str | Path) -> WeakLabelSettings:
    """A class order by its name, one of ``ORDERS``, or from a JSON file.

    Raises:
        ConfigError: neither such a name nor a file.
        DataError: the file holds no class order.
    """
    if str(name) in ORDERS:
        return read_settings(_ORDER_FOLDER / f"{name}.json")
    if not Path(name).is_file():
        error = unknown_name("class order", str(name), ORDERS)
        raise ConfigError(
            error.problem, field="classes", remedy=f"{error.remedy}, or a file; for that, {_WRITE}"
        )
    return read_settings(Path(name))


def settings_of_folder(folder: Path, classes: str | Path | None = None) -> WeakLabelSettings:
    """The settings of the files in a folder.

    Args:
        folder: with weak labels.
        classes: class order for a folder without ``weak_labels.json``, see ``class_order``.

    Raises:
        ConfigError: no folder, no classes, or both say something else.
        DataError: a file with classes is damaged.
    """
    path = folder / SETTINGS_FILE
    if not folder.is_dir():
        raise ConfigError(
            "this folder of weak labels is not there", path=folder, field="folder", remedy=_PREPARE
        )
    asked = None if classes is None else class_order(classes)
    if not path.is_file():
        if asked is None:
            raise ConfigError(
                f"there is no {SETTINGS_FILE} to say what the labels in this folder mean",
                path=folder,
                field="classes",
                remedy=f"{_PREPARE}; for labels made elsewhere name their class order, "
                f"{' or '.join(ORDERS)}, or a file",
            )
        return asked
    stored = read_settings(path)
    if asked is not None and not stored.same_order(asked):
        raise ConfigError(
            f"the weak labels in this folder have the classes {', '.join(stored.classes)[:300]} "
            f"(ignored: {stored.ignored}), not those of {classes}",
            path=path,
            field="classes",
            remedy="name no class order, or choose the folder that has it",
        )
    return stored


def weak_label_path(folder: Path, camera: Camera) -> Path:
    """Where the weak labels of a camera's image are kept.

    Raises:
        DataError: the camera's token is no file name.
    """
    return folder / f"{check_name(camera.token, None, 'token')}.png"


def read_weak_labels(path: Path, size: tuple[int, int], settings: WeakLabelSettings) -> Tensor:
    """Labels of a file, (H, W) uint8: class + 1, 0 = nothing is known.

    Args:
        path: see the module for the format.
        size: (height, width) of the image they belong to.
        settings: of the folder.

    Raises:
        DataError: missing, corrupt, not 8-bit single-channel, of another size or labeller, or
            with a value that is no class.
    """
    image = _open(path, size, settings.digest)
    labels = settings.label_of_value
    unknown = [value for value, count in enumerate(image.histogram()) if count]
    unknown = [value for value in unknown if value not in labels]
    if unknown:
        raise DataError(
            f"a pixel has the value {unknown[-1]}, which is none of the "
            f"{len(settings.classes)} classes (ignored: {settings.ignored})",
            path=path,
            field="classes",
            remedy="name the class order that the labels were made with",
        )
    return torch.from_numpy(np.array(image.point([labels.get(value, 0) for value in range(256)])))


def _open(path: Path, size: tuple[int, int], digest: str | None) -> Image.Image:
    """The decoded image of a file, in mode L."""
    data = read_bytes(path, IMAGE_FILE_LIMIT, remedy=_PREPARE)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        found, mode, depth = (image.height, image.width), image.mode, data[24]
        made_by = image.info.get(_DIGEST)
        fits = found == size and mode == "L" and depth == 8 and found[0] * found[1] <= PIXEL_LIMIT
        if fits:
            image.load()
    # Pillow's decoders raise almost any type on a corrupt stream; all of them mean the same.
    except Exception as error:
        raise DataError(
            f"the weak labels do not decode ({str(error)[:200]})", path=path, remedy=_AGAIN
        ) from error
    if not fits:
        raise DataError(
            f"weak labels are {found[0]} x {found[1]} in mode '{mode}' of {depth} bits, "
            f"expected single-channel 8-bit {size[0]} x {size[1]}",
            path=path,
            remedy="prepare them again, with the image size that is loaded now",
        )
    if made_by is not None and digest is not None and made_by != digest:
        raise DataError(
            f"was made by another labeller than {SETTINGS_FILE} beside it says",
            path=path, remedy=_AGAIN,
        )  # fmt: skip
    return image


def save_weak_labels(path: Path, labels: Tensor, digest: str | None = None) -> None:
    """Write labels in the format of this module, all or nothing.

    Args:
        path: of the PNG file.
        labels: (H, W) integers: class + 1, 0 = nothing is known.
        digest: of the settings of the folder.

    Raises:
        DataError: labels beyond 0..255, or no pixel.
    """
    low, high = (int(bound) for bound in torch.aminmax(labels)) if labels.numel() else (-1, -1)
    if low < 0 or high > _CLASS_LIMIT:
        raise DataError(f"labels {low}..{high} are not in 0..{_CLASS_LIMIT}", path=path)
    values = (labels.cpu().to(torch.int64) - 1).remainder(256).to(torch.uint8)
    text = PngImagePlugin.PngInfo()
    if digest is not None:
        text.add_text(_DIGEST, digest)
    with replacing(path) as partial:
        # Runs of one value: smaller than the default, in two thirds of its time.
        Image.fromarray(values.numpy()).save(
            partial, format="PNG", pnginfo=text, compress_type=zlib.Z_RLE
        )


class WeakLabels:
    """Give every match the weak label of its pixel.

    Put it behind ``MatchPixels`` and ahead of whatever crops, resizes or mirrors images: the files
    are as large as the images that the dataset loads.

    Args:
        folder: of ``lidarssl prepare weak-labels``, or with labels made elsewhere.
        classes: for a folder without ``weak_labels.json``: ``seem``, ``grounded_sam``, or a JSON
            file with the class order.

    Raises:
        ConfigError: no folder, or it is not known what its labels mean.
    """

    def __init__(self, folder: str | Path, classes: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.settings = settings_of_folder(self.folder, classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; label k of a match is ``classes[k - 1]``."""
        return self.settings.classes

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        matches = matches_of(frame)
        label = torch.zeros_like(matches.point)
        for number, camera in enumerate(frame.cameras):
            rows = (matches.image == number).nonzero()[:, 0]
            if len(rows):
                path = weak_label_path(self.folder, camera)
                image = read_weak_labels(path, image_size(camera), self.settings)
                label[rows] = image[matches.row[rows], matches.col[rows]].to(torch.int64)
        return replace(frame, matches=replace(matches, label=label))
