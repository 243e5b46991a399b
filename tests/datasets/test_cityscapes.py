"""Cityscapes: its class table, both kinds of ids, and labels that must belong to their image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_files import image_bytes, write
from image_dataset_files import (
    CITIES,
    LABEL_IDS,
    PHOTO_HEIGHT,
    PHOTO_WIDTH,
    TRAIN_IDS,
    label_bytes,
    photo_bytes,
    write_cityscapes,
)
from lidarssl.datasets.cityscapes import Cityscapes, parse_camera
from lidarssl.datasets.cityscapes_classes import OF_LABEL_ID, OF_TRAIN_ID
from lidarssl.datasets.image_files import read_image
from lidarssl.datasets.inspect import check, stats
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId

# Of the official table: name, label id, train id, colour.
OFFICIAL = """
road 7 0 128,64,128 | sidewalk 8 1 244,35,232 | building 11 2 70,70,70 | wall 12 3 102,102,156
fence 13 4 190,153,153 | pole 17 5 153,153,153 | traffic_light 19 6 250,170,30
traffic_sign 20 7 220,220,0 | vegetation 21 8 107,142,35 | terrain 22 9 152,251,152
sky 23 10 70,130,180 | person 24 11 220,20,60 | rider 25 12 255,0,0 | car 26 13 0,0,142
truck 27 14 0,0,70 | bus 28 15 0,60,100 | train 31 16 0,80,100 | motorcycle 32 17 0,0,230
bicycle 33 18 119,11,32
"""
ROWS = [row.split() for line in OFFICIAL.split("\n") for row in line.split("|") if row.strip()]
ULM = FrameId("cityscapes", "ulm", "ulm_000000_000019")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_cityscapes(tmp_path)


def label_path(root: Path, kind: str = "labelIds") -> Path:
    return root / f"gtFine/train/ulm/ulm_000000_000019_gtFine_{kind}.png"


def photo_path(root: Path) -> Path:
    return root / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"


def test_the_classes_are_the_official_ones() -> None:
    classes = Cityscapes.classes
    assert len(ROWS) == 19
    assert len(classes) == 20
    assert (classes.names[0], classes.colors[0]) == ("ignored", (0, 0, 0))
    for name, _, train, color in ROWS:
        assert classes.names[int(train) + 1] == name.replace("_", " ")
        assert classes.colors[int(train) + 1] == tuple(map(int, color.split(",")))


def test_every_value_of_both_kinds_of_files() -> None:
    of_label = {int(label): int(train) + 1 for _, label, train, _ in ROWS}
    of_train = {int(train): int(train) + 1 for _, _, train, _ in ROWS} | {255: 0}
    for value in range(256):
        assert OF_LABEL_ID[value] == of_label.get(value, 0 if value <= 33 else -1)
        assert OF_TRAIN_ID[value] == of_train.get(value, -1)


def test_splits_and_names(root: Path) -> None:
    dataset = Cityscapes(root)
    assert dataset.splits == ("train", "val", "test")
    assert [str(frame) for frame in dataset.frames("train")] == [
        "cityscapes/aachen/aachen_000000_000019",
        "cityscapes/aachen/aachen_000001_000019",
        "cityscapes/aachen/aachen_000002_000019",
        "cityscapes/ulm/ulm_000000_000019",
    ]
    assert dataset.sequences("val") == ["lindau"]
    assert dataset.absent("train") == "2971 of the 2975 images"
    assert dataset.absent("val") == "498 of the 500 images"
    assert dataset.absent("test") == "1524 of the 1525 images"
    assert dataset.provides("train") == Field.IMAGES | Field.IMAGE_LABELS
    assert dataset.provides("test") == Field.IMAGES
    assert dataset.conditions("train") == {}
    assert dataset.label_fraction("train", 2) == dataset.frames("train")[::2]


def test_a_frame_is_an_image_and_its_labels_and_nothing_else(root: Path) -> None:
    frame = Cityscapes(root).load(ULM)
    assert not Cityscapes.lidar
    assert (frame.points.shape, frame.intensity.shape) == ((0, 3), (0,))
    assert frame.points.dtype == frame.intensity.dtype == torch.float32
    (camera,) = frame.cameras
    assert camera.image is not None
    assert torch.equal(camera.image, read_image(photo_path(root))[0])
    assert camera.intrinsics.tolist() == [[90, 0, 17], [0, 91, 6], [0, 0, 1]]
    assert torch.equal(camera.camera_from_lidar, torch.eye(4).double())
    assert camera.labels is not None
    wanted = [next((int(t) + 1 for _, i, t, _ in ROWS if int(i) == v), 0) for v in LABEL_IDS]
    assert camera.labels.tolist() == [wanted] * PHOTO_HEIGHT
    alone = Cityscapes(root).load(ULM, Field.IMAGE_LABELS).cameras[0]
    assert alone.image is None
    assert alone.labels is not None
    assert torch.equal(alone.labels, camera.labels)


def test_both_kinds_of_labels_are_equal_and_train_ids_go_first(tmp_path: Path) -> None:
    """Column c of the two files is the same class; where both are there, train ids are read."""
    by_label, by_train = tmp_path / "labels", tmp_path / "trains"
    trains = np.array(
        [next((int(t) for _, i, t, _ in ROWS if int(i) == v), 255) for v in LABEL_IDS]
    )
    for root in (by_label, by_train):
        write_cityscapes(root, [("train", "ulm", 1)])
    label_path(by_train).unlink()
    write(label_path(by_train, "labelTrainIds"), label_bytes(trains))
    seen = [Cityscapes(root).load(ULM).cameras[0].labels for root in (by_label, by_train)]
    assert seen[0] is not None
    assert seen[1] is not None
    assert torch.equal(seen[0], seen[1])
    write(label_path(by_label, "labelTrainIds"), label_bytes(np.full(PHOTO_WIDTH, 18)))
    both = Cityscapes(by_label).load(ULM).cameras[0].labels
    assert both is not None
    assert both.unique().tolist() == [19]


def test_images_and_labels_shrink_together(root: Path) -> None:
    camera = Cityscapes(root, image_scale=0.5).load(ULM).cameras[0]
    assert camera.image is not None
    assert camera.labels is not None
    assert camera.image.shape == (3, 6, 17)
    assert camera.labels.shape == (6, 17)
    whole = Cityscapes(root).load(ULM).cameras[0].labels
    assert whole is not None
    # The centre of a half-size pixel lies on the corner of four; the later one counts.
    assert torch.equal(camera.labels, whole[1::2, 1::2])
    assert camera.intrinsics[0].tolist() == [45, 0, 8.25]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_label_file_of_another_size_names_both_files(root: Path, scale: float) -> None:
    write(label_path(root), label_bytes(LABEL_IDS[:30]))
    with pytest.raises(DataError) as caught:
        Cityscapes(root, image_scale=scale).load(ULM)
    message = str(caught.value)
    assert message.startswith(f"{label_path(root)}: has 30 x 12 labels, but the image ")
    assert f"{photo_path(root)} has 34 x 12 pixels" in message
    assert "field: labels" in message
    assert "remedy: " in message
    with pytest.raises(DataError, match="30 x 12 labels"):
        Cityscapes(root).load(ULM, Field.IMAGE_LABELS)
    assert Cityscapes(root).load(ULM, Field.IMAGES).cameras[0].image is not None


@pytest.mark.parametrize(
    ("kind", "row", "told"),
    [
        ("labelIds", [*range(33), 34], "12 pixels with ids .*: 34"),
        ("labelIds", TRAIN_IDS, "180 pixels with ids .*: 255"),
        ("labelTrainIds", LABEL_IDS, "180 pixels with ids .*: 19, 20, 21, 22, 23, 24, 25, 26"),
    ],
)
def test_unknown_ids(root: Path, kind: str, row: list[int], told: str) -> None:
    """Train ids in a file of label ids, and the reverse, do not pass unnoticed."""
    write(label_path(root, kind), label_bytes(np.array(row)))
    with pytest.raises(DataError, match=told) as caught:
        Cityscapes(root).load(ULM)
    assert str(label_path(root, kind)) in str(caught.value)


def test_a_file_of_colours(root: Path) -> None:
    write(label_path(root), image_bytes(0, "PNG", PHOTO_HEIGHT, PHOTO_WIDTH))
    with pytest.raises(DataError, match="mode 'RGB', not one id"):
        Cityscapes(root).load(ULM)


def test_a_missing_label_file_of_a_labelled_split(root: Path) -> None:
    label_path(root).unlink()
    report = check(Cityscapes(root), "train", progress=False)
    assert [problem.frame for problem in report.problems] == [str(ULM)]
    assert f"{label_path(root)}: file not found" in report.problems[0].message


def test_without_camera_files_nobody_knows_the_intrinsics(root: Path) -> None:
    for path in sorted((root / "camera").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (root / "camera").rmdir()
    camera = Cityscapes(root).load(ULM).cameras[0]
    assert camera.intrinsics.isnan().all()
    assert camera.intrinsics.shape == (3, 3)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"intrinsic": 3},
        {"intrinsic": {"fx": 1, "fy": 1, "u0": 1}},
        {"intrinsic": {"fx": 0, "fy": 1, "u0": 1, "v0": 1}},
        {"intrinsic": {"fx": "1", "fy": 1, "u0": 1, "v0": 1}},
        {"intrinsic": {"fx": 10**400, "fy": 1, "u0": 1, "v0": 1}},
    ],
)
def test_bad_camera_files(content: object) -> None:
    with pytest.raises(DataError, match=r"(?s)camera\.json: .*field: intrinsic"):
        parse_camera(json.dumps(content).encode(), Path("camera.json"))


def test_check_and_stats_of_images_alone(root: Path) -> None:
    report = check(Cityscapes(root), "train", progress=False)
    assert report.ok
    assert not report.points
    assert report.pairs == {}
    assert "carry: images, image_labels" in str(report)
    numbers = stats(Cityscapes(root), "train", progress=False)
    assert (numbers.frames, numbers.points, numbers.intensity) == (4, 0, None)
    assert numbers.matched_fraction is None
    assert numbers.range_percentiles == numbers.class_points == {}
    assert numbers.image_sizes == {"leftImg8bit 34x12": 4}
    assert numbers.class_pixels["ignored"] == 4 * PHOTO_HEIGHT * 15
    assert all(numbers.class_pixels[name] == 48 for name in Cityscapes.classes.names[1:])
    text = str(numbers)
    assert "4 frames, images alone" in text
    assert f"  car: 48 pixels ({48 / (4 * 12 * 34):.2%})" in text
    assert json.loads(numbers.to_json())["intensity"] is None
    unlabelled = stats(Cityscapes(root), "test", progress=False)
    assert unlabelled.class_pixels == {}
    assert unlabelled.image_sizes == {"leftImg8bit 34x12": 1}


def test_hidden_and_foreign_files_are_read_over(root: Path) -> None:
    write(root / "leftImg8bit/train/ulm/.ulm_9_leftImg8bit.png", photo_bytes(0))
    write(root / "leftImg8bit/train/ulm/notes.txt", "x")
    write(root / "leftImg8bit/train/license.txt", "x")
    assert len(Cityscapes(root).frames("train")) == 4


def test_wrong_roots_and_options(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"use root {root}"):
        Cityscapes(root / "leftImg8bit")
    with pytest.raises(ConfigError, match="image_scale"):
        Cityscapes(root, image_scale=1.5)
    only = write_cityscapes(tmp_path / "only", CITIES[:1])
    with pytest.raises(DataError, match="no image of split 'val' is here"):
        Cityscapes(only).frames("val")
