"""ACDC: single images in fog, at night, in rain and in snow, with the classes of Cityscapes.

No lidar is released with it. Data: Sakaridis et al., "ACDC: The Adverse Conditions Dataset with
Correspondences for Semantic Driving Scene Understanding", ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lidarssl.datasets.files import list_names
from lidarssl.datasets.labelled_images import LabelledImages, unknown_image
from lidarssl.datasets.layout import find_root
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import FrameId

CONDITIONS = ("fog", "night", "rain", "snow")
_IMAGES = {
    "train": dict.fromkeys(CONDITIONS, 400),
    "val": {**dict.fromkeys(CONDITIONS, 100), "night": 106},
    "test": dict.fromkeys(CONDITIONS, 500),
}
_REFERENCE = "_ref"
_SPLITS = (*_IMAGES, *(f"{split}{_REFERENCE}" for split in _IMAGES))
_CLEAR = "clear"


class Acdc(LabelledImages):
    """ACDC in its official layout, ``<root>/{rgb_anon,gt}/<condition>/<split>/GOPRxxxx/...``.

    Splits: train (400 images of each condition), val (100, night 106), test (500, whose labels are
    not published); train_ref, val_ref and test_ref are the same places in clear weather by day,
    without labels. Sequences are ``<condition>_GOPRxxxx``. Images that are not there are left out.

    Args:
        root: folder that holds ``rgb_anon``.
        only: conditions to read, of ``fog``, ``night``, ``rain`` and ``snow``.
        image_scale: factor on the size of images and their labels, in (0, 1].

    Raises:
        ConfigError: unknown condition, or the image scale is not in (0, 1].
        DataError: the root is wrong.
    """

    name = "acdc"
    camera = "rgb_anon"

    def __init__(
        self,
        root: str | Path,
        only: Sequence[str] = CONDITIONS,
        image_scale: float = 1.0,
    ) -> None:
        for condition in only:
            if condition not in CONDITIONS:
                raise unknown_name("condition", condition, CONDITIONS)
        if not only:
            raise ConfigError(
                "no condition is chosen",
                field="only",
                remedy=f"name some of {', '.join(CONDITIONS)}",
            )
        marks = tuple(f"rgb_anon/{condition}" for condition in CONDITIONS)
        remedy = "give the folder that holds rgb_anon/fog (rgb_anon_trainvaltest.zip)"
        super().__init__(find_root(Path(root), marks, remedy), image_scale)
        self.only = tuple(condition for condition in CONDITIONS if condition in only)

    @property
    def splits(self) -> tuple[str, ...]:
        return _SPLITS

    def frames(self, split: str) -> list[FrameId]:
        """Images of a split, sorted by condition, recording and name."""
        found = [frame for frames in self._by_condition(split).values() for frame in frames]
        if not found:
            raise DataError(
                f"no image of split '{split}' is here ({', '.join(self.only)})",
                path=self.root / "rgb_anon",
                field=split,
                remedy="unpack rgb_anon_trainvaltest.zip here",
            )
        return found

    def conditions(self, split: str) -> dict[str, list[FrameId]]:
        """Images of a split in fog, at night, in rain, in snow; those of references are clear."""
        if split.endswith(_REFERENCE):
            return {_CLEAR: self.frames(split)}
        return {name: frames for name, frames in self._by_condition(split).items() if frames}

    def absent(self, split: str) -> str:
        counts = _IMAGES[split.removesuffix(_REFERENCE)]
        listed = sum(counts[condition] for condition in self.only)
        gone = listed - len(self.frames(split))
        return f"{gone} of the {listed} images ({', '.join(self.only)})" if gone > 0 else ""

    def _by_condition(self, split: str) -> dict[str, list[FrameId]]:
        if split not in _SPLITS:
            raise unknown_name("split", split, self.splits)
        suffix = _suffix(split)
        found: dict[str, list[FrameId]] = {}
        for condition in self.only:
            folder = self.root / "rgb_anon" / condition / split
            found[condition] = [
                FrameId(self.name, f"{condition}_{recording}", _token(name, split))
                for recording in list_names(folder, [""])
                for name in list_names(folder / recording, [suffix])
            ]
        return found

    def _image_file(self, frame: FrameId) -> Path:
        condition, _, recording = frame.sequence.partition("_")
        reference = frame.token.endswith(_REFERENCE)
        listed = condition in CONDITIONS and recording and not recording.startswith(".")
        for split in _SPLITS if listed else ():
            if split.endswith(_REFERENCE) == reference:
                folder = self.root / "rgb_anon" / condition / split / recording
                path = folder / f"{frame.token.removesuffix(_REFERENCE)}{_suffix(split)}"
                if path.is_file():
                    return path
        raise unknown_image(frame, self.root)

    def _label_stem(self, image: Path) -> tuple[Path, str] | None:
        condition, split, recording = image.parts[-4:-1]
        labels = self.root / "gt"
        labelled = any((labels / condition / split).is_dir() for condition in self.only)
        if split.endswith(_REFERENCE) or not labelled:
            return None
        stem = image.name.removesuffix(_suffix(split))
        return labels / condition / split / recording, f"{stem}_gt_"


def _suffix(split: str) -> str:
    """How the names of a split's images end."""
    return "_rgb_ref_anon.png" if split.endswith(_REFERENCE) else "_rgb_anon.png"


def _token(name: str, split: str) -> str:
    """Of an image; its reference has the same name but for the end, and gets another token."""
    stem = name.removesuffix(_suffix(split))
    return f"{stem}{_REFERENCE}" if split.endswith(_REFERENCE) else stem
