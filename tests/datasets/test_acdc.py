"""ACDC: conditions, reference images that never pass for others, and parts of the dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dataset_files import image_bytes, write
from image_dataset_files import LABEL_IDS, PHOTO_HEIGHT, TRAIN_IDS, label_bytes, write_acdc
from lidarssl.datasets.acdc import Acdc
from lidarssl.datasets.cityscapes import Cityscapes
from lidarssl.datasets.image_files import read_image
from lidarssl.datasets.inspect import check
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_acdc(tmp_path)


def names(frames: list[FrameId]) -> list[str]:
    return [f"{frame.sequence}/{frame.token}" for frame in frames]


def test_the_classes_are_those_of_cityscapes() -> None:
    assert Acdc.classes is Cityscapes.classes


def test_frames_go_by_condition_in_the_order_of_reporting(root: Path) -> None:
    dataset = Acdc(root)
    assert names(dataset.frames("val")) == [
        "fog_GOPR0007/GOPR0007_frame_000100",
        "night_GOPR0009/GOPR0009_frame_000100",
        "night_GOPR0009/GOPR0009_frame_000101",
        "night_GOPR0009/GOPR0009_frame_000102",
        "snow_GOPR0008/GOPR0008_frame_000100",
        "snow_GOPR0008/GOPR0008_frame_000101",
    ]
    conditions = dataset.conditions("val")
    assert list(conditions) == ["fog", "night", "snow"], "in the order of reporting, without empty"
    assert [len(frames) for frames in conditions.values()] == [1, 3, 2]
    assert [f for frames in conditions.values() for f in frames] == dataset.frames("val")
    assert list(dataset.conditions("train")) == ["fog", "night", "rain", "snow"]
    assert list(dataset.conditions("test")) == ["rain"]


def test_conditions_can_be_chosen(root: Path) -> None:
    dataset = Acdc(root, only=["snow", "night"])
    assert list(dataset.conditions("val")) == ["night", "snow"]
    assert len(dataset.frames("val")) == 5
    assert dataset.absent("val") == "201 of the 206 images (night, snow)"
    assert Acdc(root, only=["night"]).absent("train") == "398 of the 400 images (night)"
    assert Acdc(root).absent("val") == "400 of the 406 images (fog, night, rain, snow)"
    assert Acdc(root).absent("test") == "1999 of the 2000 images (fog, night, rain, snow)"
    with pytest.raises(ConfigError, match="did you mean 'night'"):
        Acdc(root, only=["nigth"])
    with pytest.raises(ConfigError, match="no condition is chosen"):
        Acdc(root, only=[])
    with pytest.raises(DataError, match=r"no image of split 'val' is here \(rain\)"):
        Acdc(root, only=["rain"]).frames("val")


def test_references_are_splits_of_their_own(root: Path) -> None:
    dataset = Acdc(root)
    assert names(dataset.frames("train_ref")) == [
        "fog_GOPR0007/GOPR0007_frame_000000_ref",
        "fog_GOPR0007/GOPR0007_frame_000001_ref",
    ]
    assert not set(dataset.frames("train_ref")) & set(dataset.frames("train"))
    assert dataset.provides("train_ref") == Field.IMAGES
    assert dataset.conditions("train_ref") == {"clear": dataset.frames("train_ref")}
    here = root / "rgb_anon/fog/train_ref/GOPR0007/GOPR0007_frame_000001_rgb_ref_anon.png"
    write(here, image_bytes(77, "PNG", PHOTO_HEIGHT, 34))
    (clear,) = dataset.load(dataset.frames("train_ref")[1]).cameras
    (foggy,) = dataset.load(dataset.frames("train")[1]).cameras
    assert clear.image is not None
    assert foggy.image is not None
    assert torch.equal(clear.image, read_image(here)[0])
    assert not torch.equal(clear.image, foggy.image)
    assert clear.labels is None
    assert foggy.labels is not None
    assert clear.token != foggy.token


def test_stray_references_among_the_images_are_no_images(root: Path) -> None:
    stray = root / "rgb_anon/fog/train/GOPR0007/GOPR0007_frame_000009_rgb_ref_anon.png"
    write(stray, image_bytes(0, "PNG", PHOTO_HEIGHT, 34))
    assert len(Acdc(root).frames("train")) == 6


def test_the_same_recording_in_two_splits(root: Path) -> None:
    """A sequence can be in train and in val; the image tells which."""
    dataset = Acdc(root)
    assert set(dataset.sequences("val")) <= set(dataset.sequences("train"))
    for split in ("train", "val"):
        for frame in dataset.frames(split):
            condition, recording = frame.sequence.split("_")
            path = root / "rgb_anon" / condition / split / recording
            image = dataset.load(frame).cameras[0].image
            assert image is not None
            assert torch.equal(image, read_image(path / f"{frame.token}_rgb_anon.png")[0])


def test_labels_of_both_kinds(root: Path) -> None:
    dataset = Acdc(root)
    frame = FrameId("acdc", "night_GOPR0009", "GOPR0009_frame_000100")
    labels = dataset.load(frame, Field.IMAGE_LABELS).cameras[0].labels
    assert labels is not None
    assert labels.tolist() == [[*range(1, 20), *[0] * 15]] * PHOTO_HEIGHT
    path = root / "gt/night/val/GOPR0009/GOPR0009_frame_000100_gt_labelTrainIds.png"
    path.unlink()
    write(path.with_name(path.name.replace("TrainIds", "Ids")), label_bytes(LABEL_IDS))
    labels = dataset.load(frame).cameras[0].labels
    assert labels is not None
    assert labels[0, [7, 8, 26, 33, 0, 9]].tolist() == [1, 2, 14, 19, 0, 0]
    assert dataset.provides("val") == Field.IMAGES | Field.IMAGE_LABELS
    assert dataset.provides("test") == Field.IMAGES
    assert dataset.load(dataset.frames("test")[0]).cameras[0].labels is None


def test_only_night_on_disk(tmp_path: Path) -> None:
    root = write_acdc(tmp_path, {"val": {"night": 2}})
    dataset = Acdc(root)
    assert dataset.conditions("val") == {"night": dataset.frames("val")}
    report = check(dataset, "val", progress=False)
    assert report.ok
    assert report.conditions == {"night": 2}
    assert "conditions: night 2" in str(report)
    assert "not here: 404 of the 406 images" in str(report)
    with pytest.raises(DataError, match="no image of split 'train'"):
        dataset.frames("train")


def test_a_condition_whose_labels_were_not_unpacked(root: Path) -> None:
    for path in (root / "gt/fog/val/GOPR0007").iterdir():
        path.unlink()
    (root / "gt/fog/val/GOPR0007").rmdir()
    (root / "gt/fog/val").rmdir()
    report = check(Acdc(root), "val", progress=False)
    assert [problem.frame for problem in report.problems] == [
        "acdc/fog_GOPR0007/GOPR0007_frame_000100"
    ]
    assert "file not found" in report.problems[0].message


def test_labels_of_another_size(root: Path) -> None:
    path = root / "gt/night/val/GOPR0009/GOPR0009_frame_000100_gt_labelTrainIds.png"
    write(path, label_bytes(TRAIN_IDS, height=11))
    report = check(Acdc(root), "val", progress=False)
    assert len(report.problems) == 1
    message = report.problems[0].message
    assert f"{path}: has 34 x 11 labels, but the image {root}" in message
    assert "34 x 12 pixels" in message


def test_unknown_places(root: Path) -> None:
    dataset = Acdc(root)
    for sequence, token in (
        ("dusk_GOPR0009", "GOPR0009_frame_000100"),
        ("night", "GOPR0009_frame_000100"),
        ("night_..", "GOPR0009_frame_000100"),
        ("night_GOPR0009", "GOPR0009_frame_000999"),
        ("night_GOPR0009", "GOPR0009_frame_000100_ref"),
    ):
        with pytest.raises(DataError, match="is not the id of an image that is here"):
            dataset.load(FrameId("acdc", sequence, token))


def test_images_of_different_sizes_are_all_right(root: Path) -> None:
    folder = "fog/val/GOPR0007/GOPR0007_frame_000100"
    write(root / f"rgb_anon/{folder}_rgb_anon.png", image_bytes(0, "PNG", 9, 34))
    write(root / f"gt/{folder}_gt_labelTrainIds.png", label_bytes(TRAIN_IDS, height=9))
    assert check(Acdc(root), "val", progress=False).ok
