"""Every dataset of the library keeps the contract of ``Dataset``."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lidarssl.datasets
from box_dataset_files import write_kitti_object, write_once
from dataset_files import (
    write_daps3d,
    write_folder,
    write_kitti_360,
    write_nuscenes,
    write_semantic_kitti,
    write_semantic_poss,
    write_semantic_stf,
)
from image_dataset_files import write_a2d2, write_acdc, write_cityscapes
from lidarssl.datasets.a2d2 import A2d2
from lidarssl.datasets.acdc import Acdc
from lidarssl.datasets.base import Dataset
from lidarssl.datasets.cityscapes import Cityscapes
from lidarssl.datasets.daps3d import Daps3d
from lidarssl.datasets.folder import Folder
from lidarssl.datasets.kitti_360 import Kitti360
from lidarssl.datasets.kitti_object import KittiObject
from lidarssl.datasets.mixed import Mixed
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.datasets.once import Once
from lidarssl.datasets.pandaset import Pandaset
from lidarssl.datasets.rellis3d import Rellis3d
from lidarssl.datasets.scribble_kitti import ScribbleKitti
from lidarssl.datasets.semantic_kitti import SemanticKitti
from lidarssl.datasets.semantic_poss import SemanticPoss
from lidarssl.datasets.semantic_stf import SemanticStf
from lidarssl.datasets.shards import Shards
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.prepare.shards import pack_shards
from lidarssl.transforms.images import decoded, image_size
from pandaset_files import write_pandaset
from scribble_rellis_files import RELLIS_LABELS, write_rellis, write_scribble_kitti
from shard_dataset_files import differences, write_shards
from transforms.scenes import same


def _synthetic(root: Path) -> Dataset:
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    synthetic = importlib.import_module("lidarssl.datasets.synthetic")
    config = importlib.import_module("lidarssl.datasets.world.config")
    world = config.WorldConfig(
        cameras=config.camera_rig(2, 32, 64),
        splits=(config.SplitConfig("train", 2, 2), config.SplitConfig("val", 1, 2)),
    )
    return synthetic.Synthetic.generate(root, world, workers=1, progress=False)


def _mixed(root: Path) -> Mixed:
    city = NuScenes(write_nuscenes(root / "city"), cameras=("CAM_BACK", "CAM_FRONT"))
    road = SemanticKitti(write_semantic_kitti(root / "road"))
    return Mixed({"city": city, "road": road}, {"city": 2, "road": 1})


FIXTURES: dict[str, Callable[[Path], Dataset]] = {
    "SemanticKitti": lambda root: SemanticKitti(write_semantic_kitti(root)),
    "NuScenes": lambda root: NuScenes(write_nuscenes(root), cameras=("CAM_BACK", "CAM_FRONT")),
    "Folder": lambda root: Folder(write_folder(root)),
    "Synthetic": _synthetic,
    "SemanticPoss": lambda root: SemanticPoss(write_semantic_poss(root)),
    "SemanticStf": lambda root: SemanticStf(write_semantic_stf(root)),
    "Daps3d": lambda root: Daps3d(write_daps3d(root)),
    "KittiObject": lambda root: KittiObject(
        write_kitti_object(root), cameras=("image_2", "image_3")
    ),
    "Kitti360": lambda root: Kitti360(write_kitti_360(root), cameras=("image_00", "image_01")),
    "Once": lambda root: Once(write_once(root)),
    "Pandaset": lambda root: Pandaset(write_pandaset(root)),
    "ScribbleKitti": lambda root: ScribbleKitti(write_scribble_kitti(root)),
    "Rellis3d": lambda root: Rellis3d(write_rellis(root)),
    "A2d2": lambda root: A2d2(write_a2d2(root)),
    "Cityscapes": lambda root: Cityscapes(write_cityscapes(root)),
    "Acdc": lambda root: Acdc(write_acdc(root)),
    "Mixed": _mixed,
    "Shards": lambda root: Shards(write_shards(root)),
}
UNLABELLED = (A2d2, Mixed)


def _all_datasets() -> set[str]:
    names = set()
    for module in pkgutil.iter_modules(lidarssl.datasets.__path__):
        content = vars(importlib.import_module(f"lidarssl.datasets.{module.name}"))
        names |= {
            value.__name__
            for value in content.values()
            if isinstance(value, type)
            and issubclass(value, Dataset)
            and not inspect.isabstract(value)
        }
    return names


def test_every_dataset_has_a_fixture() -> None:
    assert _all_datasets() == set(FIXTURES)


@pytest.fixture(scope="module", params=sorted(FIXTURES))
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return FIXTURES[request.param](tmp_path_factory.mktemp(request.param))


def test_classes_and_colours_agree(dataset: Dataset) -> None:
    names, colors = dataset.classes.names, dataset.classes.colors
    assert len(names) == len(colors) == len(set(names)) >= 1 + (not isinstance(dataset, UNLABELLED))
    assert all(0 <= part <= 255 for color in colors for part in color)
    assert not set(dataset.box_classes) - set(names)


def test_frames_are_unique_deterministic_and_named_after_the_dataset(dataset: Dataset) -> None:
    assert {"train", "val"} <= set(dataset.splits)
    named = set(dataset.datasets) if isinstance(dataset, Mixed) else {dataset.name}
    for split in ("train", "val"):
        ids = dataset.frames(split)
        assert ids == dataset.frames(split)
        assert len(set(ids)) == len(ids) > 0
        assert {frame.dataset for frame in ids} == named
        assert not any("/" in frame.sequence + frame.token for frame in ids)
        assert dataset.sequences(split) == list(dict.fromkeys(frame.sequence for frame in ids))
    assert not set(dataset.frames("train")) & set(dataset.frames("val"))


def test_fractions_are_subsets_in_order(dataset: Dataset) -> None:
    ids = dataset.frames("train")
    assert dataset.label_fraction("train", 1) == ids
    half = dataset.label_fraction("train", 2)
    assert 0 < len(half) < len(ids)
    assert half == [frame for frame in ids if frame in set(half)]


def test_unknown_split_names_the_closest(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="train"):
        dataset.frames("trian")


def test_unknown_frames_are_refused(dataset: Dataset) -> None:
    good = dataset.frames("train")[0]
    for bad in (
        FrameId(good.dataset, good.sequence, "../../etc/passwd"),
        FrameId(good.dataset, "..", good.token),
        FrameId("another", good.sequence, good.token),
    ):
        with pytest.raises(DataError):
            dataset.load(bad)


def _carried(frame: Frame) -> Field:
    fields = Field.NONE
    for field, there in {
        Field.IMAGES: any(camera.image is not None for camera in frame.cameras),
        Field.IMAGE_LABELS: any(camera.labels is not None for camera in frame.cameras),
        Field.SEMANTIC: frame.semantic is not None,
        Field.INSTANCE: frame.instance is not None,
        Field.BOXES: frame.boxes is not None,
        Field.POSE: frame.pose is not None,
    }.items():
        fields |= field if there else Field.NONE
    return fields


def test_load_carries_what_is_asked_for_and_nothing_else(dataset: Dataset) -> None:
    frame_id = dataset.frames("train")[0]
    provided = dataset.provides("train")
    assert _carried(dataset.load(frame_id)) == provided
    assert _carried(dataset.load(frame_id, Field.NONE)) == Field.NONE
    for field in provided:
        assert _carried(dataset.load(frame_id, field)) == field


def _with_numbers(frame: Frame) -> Frame:
    """With zeros for the NaN of intrinsics that nobody knows."""
    cameras = (replace(one, intrinsics=one.intrinsics.nan_to_num()) for one in frame.cameras)
    return replace(frame, cameras=tuple(cameras))


def test_what_stays_undecoded_is_the_same_when_decoded(dataset: Dataset) -> None:
    for frame_id in dataset.frames("train")[:2]:
        plain = dataset.load(frame_id)
        found = dataset.load(frame_id, Field.ALL | Field.UNDECODED)
        sizes = [image_size(camera) for camera in found.cameras]
        assert sizes == [image_size(camera) for camera in plain.cameras]
        assert same(*(_with_numbers(frame) for frame in (decoded(found), plain)))


def test_no_label_file_is_opened_unless_labels_are_asked_for(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    unpatched = Path.open

    def record(path: Path, *rest: Any, **more: Any) -> Any:
        opened.append(path)
        return unpatched(path, *rest, **more)

    monkeypatch.setattr(Path, "open", record)
    provided = dataset.provides("train")
    frame_id = dataset.frames("train")[0]
    dataset.load(frame_id, Field.IMAGES | Field.SUPERPIXELS | Field.POSE)
    assert not _label_files(opened)
    dataset.load(frame_id)
    if isinstance(dataset, Shards):  # its labels are parts of a file: see test_shards.py
        return
    # Boxes may stand in tables that are read anyway; labels of points never do.
    if provided & (Field.SEMANTIC | Field.INSTANCE | Field.IMAGE_LABELS):
        assert _label_files(opened)


def _label_files(paths: list[Path]) -> list[Path]:
    folders = {"labels", "label_2", "lidarseg", "panoptic", "camseg", "annotations"}
    folders |= {"scribbles", RELLIS_LABELS, "gtFine", "gt"}
    return [path for path in paths if folders & set(path.parts)]


def test_conditions_are_frames_in_the_order_of_the_split(dataset: Dataset) -> None:
    for name, frames in dataset.conditions("train").items():
        assert name
        assert len(set(frames)) == len(frames) > 0


def test_types_and_shapes(dataset: Dataset) -> None:
    frame = dataset.load(dataset.frames("train")[0])
    count = len(frame)
    assert (count > 0) == dataset.lidar
    assert frame.points.shape == (count, 3)
    assert frame.points.dtype == frame.intensity.dtype == torch.float32
    for column in (frame.ring, frame.semantic, frame.instance):
        assert column is None or (column.shape == (count,) and column.dtype == torch.int64)
    if frame.semantic is not None:
        assert 0 <= frame.semantic.min() <= frame.semantic.max() < len(dataset.classes)
    if frame.pose is not None:
        _assert_rigid(frame.pose)
    for camera in frame.cameras:
        assert camera.image is not None
        assert camera.image.dtype == torch.uint8
        assert camera.image.shape[0] == 3
        assert camera.intrinsics.shape == (3, 3)
        assert camera.intrinsics.dtype == torch.float64
        _assert_rigid(camera.camera_from_lidar)
        if camera.labels is not None:
            assert camera.labels.dtype == torch.int64
            assert camera.labels.shape == camera.image.shape[1:]
            assert 0 <= camera.labels.min() <= camera.labels.max() < len(dataset.classes)
    if frame.boxes is not None:
        boxes = frame.boxes
        assert boxes.center.shape == boxes.size.shape == (len(boxes.yaw), 3)
        assert boxes.center.dtype == boxes.size.dtype == boxes.yaw.dtype == torch.float32
        assert boxes.label.dtype == torch.int64


def _assert_rigid(pose: torch.Tensor) -> None:
    assert pose.dtype == torch.float64
    rotation = pose[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), atol=1e-5, rtol=0)
    assert pose[3].tolist() == [0, 0, 0, 1]


def test_camera_tokens_are_unique_within_the_dataset(dataset: Dataset) -> None:
    ids = [frame for split in ("train", "val") for frame in dataset.frames(split)]
    tokens = [camera.token for frame in ids for camera in dataset.load(frame, Field.IMAGES).cameras]
    assert len(set(tokens)) == len(tokens)
    assert bool(tokens) == (Field.IMAGES in dataset.provides("train"))
    assert not any("/" in token for token in tokens)


def test_changing_a_frame_does_not_change_the_next_load(dataset: Dataset) -> None:
    frame_id = dataset.frames("train")[0]
    first = dataset.load(frame_id)
    before = copy.deepcopy(first)
    for tensor in _tensors(first):
        tensor.zero_()
    again = dataset.load(frame_id)
    for old, new in zip(_tensors(before), _tensors(again), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)


def _tensors(frame: Frame) -> list[torch.Tensor]:
    holders = [frame, *frame.cameras, *([] if frame.boxes is None else [frame.boxes])]
    return [
        value
        for holder in holders
        for value in vars(holder).values()
        if isinstance(value, torch.Tensor)
    ]


def test_datasets_travel_to_worker_processes(dataset: Dataset) -> None:
    frame_id = dataset.frames("train")[0]
    copied = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copied.load(frame_id).points, dataset.load(frame_id).points)


def test_shards_hold_the_same_frames(dataset: Dataset, tmp_path: Path) -> None:
    """Packed and read again, a dataset is the same: every split, frame, field and bit."""
    packing = {"frames_per_shard": 2, "progress": False}
    if isinstance(dataset, Mixed):
        with pytest.raises(ConfigError, match="pack each of its datasets"):
            pack_shards(dataset, "train", tmp_path, **packing)
        return
    for split in ("train", "val"):
        pack_shards(dataset, split, tmp_path, **packing)
    shards = Shards(tmp_path)
    attributes = ("name", "classes", "box_classes", "forward", "intensity_statistics", "lidar")
    for name in attributes:
        assert getattr(shards, name) == getattr(dataset, name)
    assert shards.splits == ("train", "val")
    for split in shards.splits:
        assert shards.frames(split) == dataset.frames(split)
        assert shards.provides(split) == dataset.provides(split)
        assert shards.label_fraction(split, 1) == dataset.label_fraction(split, 1)
        assert shards.absent(split) == dataset.absent(split)
        for frame in shards.frames(split):
            for fields in (Field.ALL, Field.NONE, *dataset.provides(split)):
                assert not differences(dataset.load(frame, fields), shards.load(frame, fields))
    assert shards.label_fraction("train", 2) == dataset.label_fraction("train", 2)
