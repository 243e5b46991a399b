"""A teacher that has already run: what a method may know of it, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.base import ImageEncoder
from lidarssl.images.stored import StoredTeacher
from lidarssl.images.unet import SmallUNet
from lidarssl.prepare.image_features import prepare_image_features
from lidarssl.recipes.schema import build_part
from toys import MemoryDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare_image_features(
        MemoryDataset(frames=1), "train", tmp_path, SmallUNet(out_channels=6), 21, 40,
        antialias=False, progress=False,
    )  # fmt: skip
    return tmp_path


def test_it_has_the_shape_of_the_encoder_that_ran(folder: Path) -> None:
    teacher, encoder = StoredTeacher(folder), SmallUNet(out_channels=6)
    assert (teacher.out_channels, teacher.stride) == (encoder.out_channels, encoder.stride)
    assert teacher.image_size == (21, 40)
    assert not teacher.antialias
    assert teacher.frozen
    assert not list(teacher.parameters())
    assert not teacher.state_dict()


def test_a_recipe_can_name_it(folder: Path) -> None:
    words = ["--encoder.class_path=StoredTeacher", f"--encoder.folder={folder}"]
    encoder, arguments = build_part("encoder", ImageEncoder, words)
    assert isinstance(encoder, StoredTeacher)
    assert arguments == {"folder": str(folder)}


def test_it_encodes_nothing(folder: Path) -> None:
    with pytest.raises(ConfigError, match="crops or mirrors"):
        StoredTeacher(folder)(torch.rand(1, 3, 21, 40))


def test_a_folder_without_features_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lidarssl prepare image-features"):
        StoredTeacher(tmp_path)
