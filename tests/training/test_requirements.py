"""What stops a run before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from image_toys import Weathers
from lidarssl.errors import ConfigError
from lidarssl.frame import Field
from lidarssl.methods.base import PreparedFiles
from lidarssl.training.requirements import check_needs, check_prepared
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
    with pytest.raises(ConfigError, match="holds 5 files, the 3 frames have 6 images"):
        check_prepared([files], dataset, frames)
    (tmp_path / "5.png").touch()
    check_prepared([files], dataset, frames)
