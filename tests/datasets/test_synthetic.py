import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("embreex")

from lidarssl.datasets.semantic_kitti import SemanticKitti
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.classes import Semantic
from lidarssl.datasets.world.config import (
    VERSION,
    CameraConfig,
    SplitConfig,
    WorldConfig,
    camera_rig,
    scene_ids,
)
from lidarssl.datasets.world.drive import record
from lidarssl.datasets.world.kitti_writer import RAW_LABELS, write_semantic_kitti
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Boxes, Camera, Field, Frame
from lidarssl.geometry.projection import match_pixels

WORLD = WorldConfig(
    splits=(SplitConfig("teacher", 1, 1), SplitConfig("train", 3, 2), SplitConfig("val", 1, 1)),
    cameras=camera_rig(3, height=96, width=192),
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return Synthetic.generate(tmp_path_factory.mktemp("world"), WORLD, workers=1, progress=False)


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> SemanticKitti:
    config = replace(
        WorldConfig.kitti(),
        splits=(SplitConfig("train", 2, 2), SplitConfig("val", 1, 1)),
        cameras=(CameraConfig("image_2", height=96, width=312, field_of_view=81),),
    )
    root = tmp_path_factory.mktemp("kitti")
    return SemanticKitti(write_semantic_kitti(config, root, workers=1, progress=False))


def all_frames(dataset: Synthetic | SemanticKitti, *splits: str) -> Iterator[Frame]:
    for split in splits:
        for frame in dataset.frames(split):
            yield dataset.load(frame)


def pairs(frame: Frame, camera: Camera) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Point, row and column of every point that falls into an image."""
    assert camera.image is not None
    height, width = camera.image.shape[1:]
    found = match_pixels(frame.points, camera.camera_from_lidar, camera.intrinsics, height, width)
    return found.point, found.row, found.col


def inside(points: torch.Tensor, boxes: Boxes, number: int) -> torch.Tensor:
    """Which points lie in one box, by turning them into its frame."""
    yaw = float(boxes.yaw[number])
    x, y, z = (points - boxes.center[number]).unbind(1)
    along, across = np.cos(yaw) * x + np.sin(yaw) * y, np.cos(yaw) * y - np.sin(yaw) * x
    half = boxes.size[number] / 2
    return (along.abs() <= half[0]) & (across.abs() <= half[1]) & (z.abs() <= half[2])


def test_splits_and_what_frames_carry(dataset: Synthetic) -> None:
    assert dataset.splits == ("teacher", "train", "val")
    assert [len(dataset.frames(split)) for split in dataset.splits] == [1, 6, 1]
    sequences = [set(dataset.sequences(split)) for split in dataset.splits]
    assert not set.intersection(*sequences)
    needed = Field.IMAGES | Field.IMAGE_LABELS | Field.SEMANTIC | Field.INSTANCE
    assert dataset.provides("train") == needed | Field.BOXES | Field.POSE
    assert dataset.classes.names[1] == "car"
    assert len(dataset.classes.names) == len(dataset.classes.colors) == 14


def test_points_are_those_of_the_drive_in_nuscenes_axes(dataset: Synthetic) -> None:
    scene = next(scene for scene in scene_ids(WORLD) if scene.split == "val")
    made = next(record(WORLD, scene))
    frame = dataset.load(dataset.frames("val")[0])
    x, y, z = made.sweep.points.T
    np.testing.assert_allclose(frame.points, np.stack([-y, x, z], 1), atol=1e-4)
    np.testing.assert_allclose(frame.intensity, made.sweep.intensity * 255, atol=0.5001)
    assert frame.ring is not None
    assert frame.semantic is not None
    assert frame.pose is not None
    np.testing.assert_array_equal(frame.ring, made.sweep.ring)
    np.testing.assert_array_equal(frame.semantic, made.sweep.semantic)
    world = made.sweep.points @ (made.world_from_ego @ made.ego_from_lidar)[:3, :3].T
    world += (made.world_from_ego @ made.ego_from_lidar)[:3, 3]
    again = frame.points.double() @ frame.pose[:3, :3].T + frame.pose[:3, 3]
    np.testing.assert_allclose(again, world, atol=1e-4)


def test_matched_pixels_show_the_class_of_their_point(dataset: Synthetic) -> None:
    agree = []
    for frame in all_frames(dataset, "teacher", "train", "val"):
        assert frame.semantic is not None
        for camera in frame.cameras:
            assert camera.labels is not None
            assert camera.image is not None
            assert camera.labels.shape == camera.image.shape[1:]
            point, row, col = pairs(frame, camera)
            agree.append(camera.labels[row, col] == frame.semantic[point])
    together = torch.cat(agree)
    assert len(together) > 10_000
    assert together.float().mean() > 0.9


def test_cameras_have_their_own_moment_and_ego_pose(dataset: Synthetic) -> None:
    frame = dataset.load(dataset.frames("train")[0])
    reading = dataset.index.key_frames[frame.id.token].readings
    lidar, cameras = reading["LIDAR_TOP"], [reading[name] for name in dataset.cameras]
    moved = [
        np.linalg.norm(np.subtract(camera.ego.translation, lidar.ego.translation))
        for camera in cameras
    ]
    speed = WORLD.frame_distance / WORLD.frame_interval
    expected = [speed * camera.delay for camera in WORLD.cameras]
    np.testing.assert_allclose(moved, expected, rtol=0.05)


def test_boxes_contain_the_points_of_their_object(dataset: Synthetic) -> None:
    counted = 0
    for frame in all_frames(dataset, "train"):
        assert frame.boxes is not None
        assert frame.instance is not None
        assert frame.semantic is not None
        for number in range(len(frame.boxes.label)):
            label = dataset.classes.names.index(dataset.box_classes[frame.boxes.label[number]])
            own = inside(frame.points, frame.boxes, number) & (frame.semantic == label)
            instances = frame.instance[own].unique(return_counts=True)
            assert len(instances[0]) > 0
            instance = instances[0][instances[1].argmax()]
            belongs = frame.instance == instance
            share = inside(frame.points[belongs], frame.boxes, number).float().mean()
            assert share > 0.9
            counted += int(belongs.sum())
        things = frame.instance > 0
        assert int(things.sum()) > 100
    assert counted > 1000


def test_instances_are_things_and_keep_their_number(dataset: Synthetic) -> None:
    first, second = (dataset.load(frame) for frame in dataset.frames("train")[:2])
    assert first.instance is not None
    assert second.instance is not None
    assert first.semantic is not None
    things = torch.tensor([Semantic.CAR, Semantic.TRUCK, Semantic.CYCLIST, Semantic.PEDESTRIAN])
    assert torch.isin(first.semantic[first.instance > 0], things).all()
    common = np.intersect1d(first.instance.unique(), second.instance.unique())
    assert len(common) > 3


def test_label_images_only_when_asked_for(dataset: Synthetic) -> None:
    frame = dataset.frames("val")[0]
    assert all(camera.labels is None for camera in dataset.load(frame, Field.IMAGES).cameras)
    labelled = dataset.load(frame, Field.IMAGE_LABELS)
    assert all(camera.image is None for camera in labelled.cameras)
    assert all(camera.labels is not None for camera in labelled.cameras)
    assert labelled.semantic is None
    assert not dataset.load(frame, Field.SEMANTIC).cameras


def test_labels_follow_the_image_scale(dataset: Synthetic) -> None:
    half = Synthetic(dataset.root, image_scale=0.5)
    frame = half.load(half.frames("val")[0])
    full = dataset.load(frame.id)
    for small, large in zip(frame.cameras, full.cameras, strict=True):
        assert small.labels is not None
        assert large.labels is not None
        assert small.labels.shape == (48, 96)
        torch.testing.assert_close(small.labels, large.labels[1::2, 1::2])


def test_label_fraction_counts_frames(dataset: Synthetic) -> None:
    frames = dataset.frames("train")
    assert dataset.label_fraction("train", 1) == frames
    assert dataset.label_fraction("train", 4) == [frames[0], frames[4]]
    assert dataset.label_fraction("train", 100) == frames[:1]
    with pytest.raises(ConfigError, match="skip"):
        dataset.label_fraction("train", 0)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """Two scenes, the first also in snow and in fog, named and ordered as nobody would."""
    config = replace(
        WORLD,
        splits=(
            SplitConfig("white", 1, 1, like="val", weather="snow"),
            SplitConfig("val", 2, 1),
            SplitConfig("gray", 1, 1, like="val", weather="fog"),
            SplitConfig("dark", 1, 1, weather="night"),
        ),
        cameras=WORLD.cameras[:1],
    )
    return Synthetic.generate(tmp_path_factory.mktemp("shift"), config, workers=1, progress=False)


def test_conditions_of_a_split(dataset: Synthetic, shifted: Synthetic) -> None:
    assert dataset.conditions("val") == {}
    assert shifted.splits == ("white", "val", "gray", "dark")
    found = shifted.conditions("val")
    assert list(found) == ["clear", "fog", "snow"]
    assert list(found.values()) == [shifted.frames(name) for name in ("val", "gray", "white")]
    assert shifted.conditions("gray") == shifted.conditions("dark") == {}
    with pytest.raises(ConfigError, match="vall"):
        shifted.conditions("vall")


def test_conditions_show_the_same_scene(shifted: Synthetic) -> None:
    first = {weather: shifted.load(ids[0]) for weather, ids in shifted.conditions("val").items()}
    clear = first["clear"]
    assert clear.boxes is not None
    assert clear.semantic is not None
    for weather in ("fog", "snow"):
        frame = first[weather]
        assert frame.boxes is not None
        assert frame.semantic is not None
        torch.testing.assert_close(frame.boxes.center, clear.boxes.center)
        torch.testing.assert_close(frame.boxes.label, clear.boxes.label)
        torch.testing.assert_close(frame.pose, clear.pose)
        for there, here in zip(frame.cameras, clear.cameras, strict=True):
            assert there.labels is not None
            assert here.labels is not None
            assert torch.equal(there.labels, here.labels)
            assert there.image is not None
            assert here.image is not None
            assert not torch.equal(there.image, here.image)
        assert (frame.semantic == 0).any()
        assert (frame.semantic > 0).sum() < (clear.semantic > 0).sum()


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{",
        b'{"gray": "val"}',
        b'{"gray": {"like": 3, "weather": "fog"}}',
        b'{"gray": {"like": "val", "weather": "hail"}}',
        b'{"gray": {"like": "val", "weather": ["fog"]}}',
        b'{"gray": {"like": "val"}}',
    ],
)
def test_bad_notes_of_the_weather_are_refused(
    shifted: Synthetic, tmp_path: Path, content: bytes
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shifted.root, copy)
    (copy / VERSION / "weather.json").write_bytes(content)
    opened = Synthetic(copy)
    with pytest.raises(DataError, match=r"weather\.json"):
        opened.conditions("val")


def test_notes_of_splits_that_are_gone_are_passed_over(shifted: Synthetic, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shifted.root, copy)
    splits = json.loads((copy / VERSION / "splits.json").read_text())
    del splits["gray"]
    (copy / VERSION / "splits.json").write_text(json.dumps(splits))
    assert list(Synthetic(copy).conditions("val")) == ["clear", "snow"]


@pytest.mark.parametrize("fault", ["class", "size", "garbage"])
def test_bad_label_images_are_refused(
    dataset: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    bad = tmp_path / "labels.png"
    if fault == "garbage":
        bad.write_bytes(b"\x89PNG not really")
    else:
        size = (96, 192) if fault == "class" else (90, 192)
        Image.fromarray(np.full(size, 14 if fault == "class" else 1, np.uint8)).save(bad)
    monkeypatch.setattr(dataset, "_label_file", lambda camera, token: bad)
    with pytest.raises(DataError, match=r"labels\.png"):
        dataset.load(dataset.frames("val")[0])


def test_semantic_kitti_loader_reads_the_world(kitti: SemanticKitti) -> None:
    assert len(kitti.frames("train")) == 4
    assert kitti.sequences("val") == ["08"]
    for frame in all_frames(kitti, "train", "val"):
        assert frame.semantic is not None
        assert frame.instance is not None
        assert len(frame.points) > 20_000
        assert 0 <= frame.intensity.min() <= frame.intensity.max() <= 0.99
        assert frame.instance.max() > 3
        names = {kitti.classes.names[label] for label in frame.semantic.unique().tolist()}
        assert {"road", "car", "building", "vegetation"} <= names


def test_semantic_kitti_camera_sees_the_same_world(kitti: SemanticKitti) -> None:
    """The drive's own label image, read at the pixels that the loader's calibration gives."""
    config = replace(
        WorldConfig.kitti(),
        splits=(SplitConfig("train", 2, 2),),
        cameras=(CameraConfig("image_2", height=96, width=312, field_of_view=81),),
    )
    scene = scene_ids(config)[0]
    raw_to_train = {int(s): i for i, s in enumerate(Semantic)}
    assert len(set(RAW_LABELS.values())) == len(raw_to_train)
    agree = []
    made = list(record(config, scene, synchronous=True))
    frames = [kitti.load(frame) for frame in kitti.frames("train") if frame.sequence == "00"]
    for moment, frame in zip(made, frames, strict=True):
        camera = frame.cameras[0]
        point, row, col = pairs(frame, camera)
        shown = moment.exposures[0].image.semantic[row.numpy(), col.numpy()]
        agree.append(shown == moment.sweep.semantic[point.numpy()])
        assert camera.image is not None
        np.testing.assert_array_equal(
            camera.image.permute(1, 2, 0).numpy(), moment.exposures[0].image.rgb
        )
    together = np.concatenate(agree)
    assert len(together) > 5000
    assert together.mean() > 0.9
    first, second = frames
    assert first.pose is not None
    assert second.pose is not None
    moved = torch.linalg.inv(first.pose) @ second.pose
    lidar = [moment.world_from_ego @ moment.ego_from_lidar for moment in made]
    np.testing.assert_allclose(moved, np.linalg.inv(lidar[0]) @ lidar[1], atol=1e-6)


def test_a_world_that_is_not_there_tells_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder") as caught:
        Synthetic(tmp_path / "world")
    assert f"lidarssl data synthesize {tmp_path / 'world'}`" in str(caught.value)
