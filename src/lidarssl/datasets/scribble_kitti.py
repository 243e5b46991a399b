"""ScribbleKITTI: SemanticKITTI whose training scans are labelled with strokes of a pen.

Scans, images, poses and classes are those of SemanticKITTI; about 8 % of the points of a training
scan have a label. The validation scans have their dense labels. Data: Unal et al., CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lidarssl.datasets.semantic_kitti import SEQUENCES, SemanticKitti
from lidarssl.errors import DataError
from lidarssl.frame import Field, FrameId

_SCRIBBLED = SEQUENCES["train"]
_THINNED = "val_10th"
# Every tenth of the 4071 scans of 08.
_THINNED_SCANS = 408


class ScribbleKitti(SemanticKitti):
    """ScribbleKITTI, unpacked into SemanticKITTI: ``<root>/dataset/sequences/SS/scribbles``.

    Splits: those of SemanticKITTI. Labels are those of ``scribbles`` in the sequences of train,
    whether ``labels`` is there or not, and those of ``labels`` in all others, whether ``scribbles``
    is there or not. val_10th is scans 0, 10, 20, ... of val, which OLIVINE validates on. Strokes
    name no object: train has no instances. Sequences that are not there are left out.

    Args:
        root, cameras, image_scale, ignore_unknown_labels: as the base.

    Raises:
        ConfigError: unknown camera or image scale.
        DataError: no sequences below ``root``; says which level to give.
    """

    name = "scribble_kitti"
    split_sequences = SEQUENCES | {_THINNED: SEQUENCES["val"]}

    def __init__(
        self,
        root: str | Path,
        cameras: Sequence[str] = ("image_2",),
        image_scale: float = 1.0,
        ignore_unknown_labels: bool = False,
    ) -> None:
        super().__init__(root, cameras, image_scale, ignore_unknown_labels)

    def frames(self, split: str) -> list[FrameId]:
        found = super().frames(split)
        if split != _THINNED:
            return found
        kept = [frame for frame in found if frame.token.endswith("0")]
        if not kept:
            raise DataError(
                f"none of the {_THINNED_SCANS} scans 000000, 000010, ... of sequence 08 is here",
                path=self.folder / "08",
                field="velodyne",
                remedy=f"unpack {self.archive} here, or use split val",
            )
        return kept

    def absent(self, split: str) -> str:
        if split != _THINNED:
            return super().absent(split)
        missing = _THINNED_SCANS - len(self.frames(split))
        return f"{missing} of the {_THINNED_SCANS} scans of the split" if missing > 0 else ""

    def _label_folder(self, sequence: str) -> Path:
        folder = "scribbles" if sequence in _SCRIBBLED else "labels"
        return self.folder / sequence / folder

    def _label_fields(self, sequence: str) -> Field:
        return Field.SEMANTIC if sequence in _SCRIBBLED else super()._label_fields(sequence)
