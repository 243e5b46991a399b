"""Superpixels in shards: those of one folder, and what they were made with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.shards import Shards
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field
from lidarssl.methods.slidr import Slidr
from lidarssl.prepare.shards import pack_shards
from lidarssl.prepare.superpixels import prepare_superpixels, save_superpixels
from lidarssl.training.requirements import check_needs
from lidarssl.transforms.images import decoded
from lidarssl.transforms.superpixels import Superpixels
from methods.small import build
from shard_dataset_files import differences
from toys import MemoryDataset

QUIET = {"frames_per_shard": 2, "progress": False}


def superpixels_of(dataset: Dataset, folder: Path, segments: int) -> Path:
    options = {"segments": segments, "sigma": 1.0, "progress": False}
    prepare_superpixels(dataset, "train", folder, **options)
    return folder


def test_superpixels_come_with_their_images(tmp_path: Path) -> None:
    dataset, folder = MemoryDataset(frames=3, cameras=2), tmp_path / "superpixels"
    folder.mkdir()
    expected = {}
    for frame in dataset.frames("train"):
        for number, camera in enumerate(dataset.load(frame).cameras):
            ids = torch.arange(48 * 64).reshape(48, 64) // (3 if number else 40)  # 16 and 8 bits
            save_superpixels(folder / f"{camera.token}.png", ids)
            expected[camera.token] = ids
    pack_shards(dataset, "train", tmp_path / "out", superpixels=folder, **QUIET)
    shards = Shards(tmp_path / "out")
    assert shards.provides("train") == dataset.provides("train") | Field.SUPERPIXELS
    for frame in shards.frames("train"):
        for camera in shards.load(frame).cameras:
            assert torch.equal(camera.superpixels, expected[camera.token])
        plain = shards.load(frame, Field.IMAGES)
        assert not differences(dataset.load(frame, Field.IMAGES), plain)


def test_superpixels_made_otherwise_never_share_a_split(tmp_path: Path) -> None:
    dataset, out = MemoryDataset(frames=5), tmp_path / "out"
    ten, twelve = (superpixels_of(dataset, tmp_path / str(n), n) for n in (10, 12))
    pack_shards(dataset, "train", out, superpixels=ten, shard=(0, 2), **QUIET)
    told = r"(?s)settings: superpixels with segments 10 instead of .* segments 12\n.*--overwrite"
    with pytest.raises(ConfigError, match=told) as caught:
        pack_shards(dataset, "train", out, superpixels=twelve, shard=(1, 2), **QUIET)
    assert str(out) in str(caught.value)
    with pytest.raises(ConfigError, match=r"segments 10, .* instead of no superpixels\n"):
        pack_shards(dataset, "train", out, shard=(1, 2), **QUIET)
    pack_shards(dataset, "train", out, superpixels=ten, shard=(1, 2), **QUIET)
    made = Shards(out).superpixels_made_with("train")
    assert made is not None
    assert (made.settings["segments"], made.where) == (10, str(out / "index.json"))
    pack_shards(dataset, "train", out, superpixels=twelve, overwrite=True, **QUIET)
    made = Shards(out).superpixels_made_with("train")
    assert made is not None
    assert made.settings["segments"] == 12


def test_superpixels_of_folders_that_tell_nothing_are_told_apart(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=5)
    for segments in (10, 40):
        (superpixels_of(dataset, tmp_path / str(segments), segments) / "superpixels.json").unlink()
    out = tmp_path / "out"
    pack_shards(dataset, "train", out, superpixels=tmp_path / "10", shard=(0, 2), **QUIET)
    for other, told in (
        (tmp_path / "40", "settings: other superpixels, calibration or points of the first frame "),
        (None, "settings: superpixels that do not tell .* instead of no superpixels\n"),
    ):
        with pytest.raises(ConfigError, match=told):
            pack_shards(dataset, "train", out, superpixels=other, shard=(1, 2), **QUIET)
    pack_shards(dataset, "train", out, superpixels=tmp_path / "10", shard=(1, 2), **QUIET)
    assert Shards(out).superpixels_made_with("train") is None


def test_shards_packed_again_keep_their_superpixels(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=3)
    folder = superpixels_of(dataset, tmp_path / "superpixels", 10)
    pack_shards(dataset, "train", tmp_path / "one", superpixels=folder, **QUIET)
    one = Shards(tmp_path / "one")
    pack_shards(one, "train", tmp_path / "two", frames_per_shard=3, progress=False)
    two = Shards(tmp_path / "two")
    for frame in one.frames("train"):
        assert two.load(frame).cameras[0].superpixels is not None
        assert not differences(one.load(frame), two.load(frame))
    made = [shards.superpixels_made_with("train") for shards in (one, two)]
    assert made[0] is not None
    assert made[1] is not None
    assert made[0].settings == made[1].settings
    pack_shards(one, "train", tmp_path / "bare", fields=["images"], **QUIET)
    bare = Shards(tmp_path / "bare")
    assert (bare.provides("train"), bare.superpixels_made_with("train")) == (Field.IMAGES, None)


def test_slidr_sees_the_superpixels_of_a_folder_in_shards(tmp_path: Path) -> None:
    dataset, folder = MemoryDataset(frames=3, cameras=2), tmp_path / "superpixels"
    prepare_superpixels(dataset, "train", folder, segments=10, sigma=1.0, progress=False)
    pack_shards(dataset, "train", tmp_path / "out", superpixels=folder, **QUIET)
    pack_shards(dataset, "train", tmp_path / "bare", **QUIET)
    shards, bare = Shards(tmp_path / "out"), Shards(tmp_path / "bare")
    needed = Field.IMAGES | Field.SUPERPIXELS
    read, kept = Superpixels(10, 6.0, 1.0, folder=folder), Superpixels(stored=True)
    for frame in dataset.frames("train"):
        one, other = read(dataset.load(frame, Field.IMAGES), None), shards.load(frame, needed)
        assert not differences(one, kept(other, None))
        undecoded = kept(shards.load(frame, needed | Field.UNDECODED), None)
        assert not differences(one, decoded(undecoded))
        with pytest.raises(DataError, match="without superpixels"):
            kept(bare.load(frame, needed), None)
    method = build(Slidr)
    assert method.needs == Field.IMAGES
    stored = Slidr(method.backbone, method.image_encoder, superpixels=kept)
    assert stored.needs == needed
    check_needs(stored.needs, shards, "train", "Slidr")
    with pytest.raises(ConfigError, match=r"(?s)needs superpixels.*--superpixels"):
        check_needs(stored.needs, bare, "train", "Slidr")
    with pytest.raises(ConfigError, match="not both"):
        Superpixels(folder=folder, stored=True)
