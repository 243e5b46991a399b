"""What stops a run before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_toys import Weathers
from lidarssl.datasets.base import MadeWith
from lidarssl.datasets.mixed import Mixed
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.methods.base import PreparedFiles
from lidarssl.methods.slidr import Slidr
from lidarssl.training.requirements import check_method, check_needs, check_prepared
from lidarssl.transforms.superpixels import Superpixels
from methods.small import build
from toys import MemoryDataset


def test_missing_needs_name_field_dataset_and_remedy() -> None:
    with pytest.raises(ConfigError, match=r"(?s)superpixels.*'memory'.*prepare superpixels"):
        check_needs(Field.SUPERPIXELS | Field.IMAGES, MemoryDataset(), "train", "slidr")
    check_needs(Field.IMAGES, MemoryDataset(), "train", "slidr")


def test_images_alone_are_enough_only_for_who_reads_no_scans() -> None:
    with pytest.raises(ConfigError, match=r"Clcp needs points, and dataset 'weathers'"):
        check_needs(Field.IMAGES, Weathers(), "train", "Clcp")
    check_needs(Field.IMAGES, Weathers(), "train", "a segmentation", points=False)
    with pytest.raises(ConfigError, match=r"a segmentation needs image_labels"):
        check_needs(
            Field.IMAGE_LABELS, Weathers(labelled=False), "train", "a segmentation", points=False
        )


def test_a_pass_that_did_not_finish_is_noticed_by_its_files(tmp_path: Path) -> None:
    dataset = MemoryDataset(3, cameras=2)
    frames = dataset.frames("train")
    with pytest.raises(ConfigError, match="is no folder"):
        check_prepared([PreparedFiles(tmp_path / "absent", ".png", "a pass")], dataset, frames)
    for number in range(5):
        (tmp_path / f"{number}.png").touch()
    (tmp_path / "settings.json").touch()
    files = PreparedFiles(tmp_path, ".png", "a pass")
    with pytest.raises(ConfigError, match="holds 5 files for 6 images of 3 frames"):
        check_prepared([files], dataset, frames)
    (tmp_path / "5.png").touch()
    check_prepared([files], dataset, frames)


def test_whether_a_pass_finished_is_told_without_decoding_an_image(tmp_path: Path) -> None:
    class Undecoded(MemoryDataset):
        def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
            assert Field.UNDECODED in fields
            return super().load(frame, fields)

    dataset = Undecoded(1)
    (tmp_path / "0.png").touch()
    check_prepared([PreparedFiles(tmp_path, ".png", "a pass")], dataset, dataset.frames("train"))


class WithSuperpixels(MemoryDataset):
    """Tells that its frames bring superpixels, made with these settings."""

    def __init__(self, settings: dict[str, float] | None) -> None:
        super().__init__(1)
        self.settings = settings
        self.carried |= Field.SUPERPIXELS

    def superpixels_made_with(self, split: str) -> MadeWith | None:
        return None if self.settings is None else MadeWith(self.settings, "some/index.json")


def test_superpixels_that_come_with_frames_are_made_as_the_method_asks() -> None:
    same = {"segments": 10, "compactness": 6.0, "sigma": 1.0, "scale": 1.0}
    small = build(Slidr)
    superpixels = Superpixels(10, 6.0, 1.0, stored=True)
    method = Slidr(small.backbone, small.image_encoder, superpixels=superpixels)
    for fits in (same, None):
        check_method(method, WithSuperpixels(fits), "train")
    differs = WithSuperpixels(same | {"segments": 20, "scale": 0.25})
    for dataset in (differs, Mixed({"a": WithSuperpixels(same), "b": differs})):
        with pytest.raises(ConfigError, match=r"segments 20, not 10, scale 0\.25, not 1") as caught:
            check_method(method, dataset, "train")
        assert str(caught.value.path) == "some/index.json"
        assert "--segments 10 --compactness 6.0 --sigma 1.0 --scale 1.0" in str(caught.value)
        check_method(small, dataset, "train")  # which makes its own
    for damaged in ({"segments": 10}, same | {"more": 1}, same | {"segments": "ten"}):
        with pytest.raises(DataError, match="does not hold the settings"):
            check_method(method, WithSuperpixels(damaged), "train")
