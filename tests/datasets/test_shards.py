"""Shards as a dataset: few reads, local or remote, and whatever is wrong with them is told."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from image_dataset_files import write_cityscapes
from lidarssl.datasets import byte_ranges
from lidarssl.datasets.byte_ranges import LocalStore
from lidarssl.datasets.cityscapes import Cityscapes
from lidarssl.datasets.inspect import check
from lidarssl.datasets.mixed import Mixed
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.datasets.shard_files import BLOCK, member, padded
from lidarssl.datasets.shards import Shards
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.prepare.shards import pack_shards
from lidarssl.transforms.images import decoded
from shard_dataset_files import differences, nuscenes_of, serving, write_shards
from toys import MemoryDataset


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> NuScenes:
    return nuscenes_of(tmp_path_factory.mktemp("shards") / "nuscenes")


@pytest.fixture(scope="module")
def packed(original: NuScenes) -> Path:
    return write_shards(original.root.parent, original)


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_frames_over_http_are_those_of_the_dataset(
    original: NuScenes, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(packed) as server:
        shards = Shards(server.url)
        assert [path for path, _ in server.requests] == ["/index.json"]
        ids = shards.frames("train")
        assert ids == original.frames("train")
        server.requests.clear()
        for frame in ids:
            assert not differences(original.load(frame), shards.load(frame))
        assert len(server.requests) == len(ids), "a frame as a whole is one request"
        assert all(asked and asked.startswith("bytes=") for _, asked in server.requests)
        report = check(shards, "val", progress=False)
        assert report.ok
        assert report.dataset == "nuscenes"


def test_only_what_is_asked_for_is_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No label, and no image of another camera, but for what lies in between."""
    monkeypatch.setattr("lidarssl.datasets.shard_reader.GAP", 0)
    read: list[tuple[str, int, int]] = []
    unpatched = LocalStore.read_range

    def record(store: LocalStore, name: str, offset: int, size: int) -> bytes:
        read.append((name, offset, size))
        return unpatched(store, name, offset, size)

    monkeypatch.setattr(LocalStore, "read_range", record)
    shards = Shards(packed, cameras=("CAM_FRONT",))
    frame = shards.frames("train")[1]
    with tarfile.open(packed / "train-000000.tar") as archive:
        where = {one.name: one.offset for one in archive if one.name.startswith("00000001.")}
    expected = {
        Field.NONE: [],
        Field.IMAGES: ["image1.jpg"],
        Field.SEMANTIC: ["semantic.npy"],
        Field.ALL: ["image1.jpg", "semantic.npy", "instance.npy"],
    }
    always = ["frame.json", "points.npy", "intensity.npy", "ring.npy"]
    for fields, more in expected.items():
        read.clear()
        shards.load(frame, fields)
        seen = [
            name.partition(".")[2]
            for name, offset in where.items()
            if any(first <= offset < first + size for _, first, size in read)
        ]
        assert seen == [*always, *more]


def test_cameras_and_scale_are_those_of_the_dataset(original: NuScenes, packed: Path) -> None:
    some = {"cameras": ("CAM_FRONT",), "image_scale": 0.5}
    small, shards = NuScenes(original.root, **some), Shards(packed, **some)
    for frame in original.frames("val"):
        assert not differences(small.load(frame), shards.load(frame))
        undecoded = shards.load(frame, Field.IMAGES | Field.UNDECODED)
        assert undecoded.cameras[0].image is None
        assert not differences(small.load(frame, Field.IMAGES), decoded(undecoded))
    turned = Shards(packed, cameras=("CAM_FRONT", "CAM_BACK")).load(original.frames("val")[0])
    assert [camera.name for camera in turned.cameras] == ["CAM_FRONT", "CAM_BACK"]
    with pytest.raises(ConfigError, match="CAM_FRONT"):
        Shards(packed, cameras=("CAM_FRNT",))
    without = Shards(packed, cameras=())
    assert without.provides("val") == original.provides("val") & ~Field.IMAGES
    assert without.load(original.frames("val")[0]).cameras == ()


def test_labels_of_images_follow_the_scale(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "cityscapes")
    folder = write_shards(tmp_path, Cityscapes(root))
    small, shards = Cityscapes(root, image_scale=0.5), Shards(folder, image_scale=0.5)
    for frame in small.frames("train"):
        for fields in (Field.ALL, Field.IMAGES, Field.IMAGE_LABELS):
            assert not differences(small.load(frame, fields), shards.load(frame, fields))


def test_statistics_can_be_given_where_the_dataset_has_none(packed: Path) -> None:
    shards = Shards(packed, intensity_statistics=(1.0, 2.0))
    assert shards.load(shards.frames("val")[0]).intensity_statistics == (1.0, 2.0)


def test_shards_can_be_mixed(original: NuScenes, packed: Path) -> None:
    mixed = Mixed({"here": Shards(packed), "there": original})
    ids = mixed.frames("train")
    half = len(ids) // 2
    for one, other in zip(ids[:half], ids[half:], strict=True):
        found = differences(mixed.load(one), mixed.load(other))
        assert found == ["frame.id.dataset"]


def test_shares_are_those_of_the_dataset_or_refused(original: NuScenes, packed: Path) -> None:
    shards = Shards(packed)
    for skip in (1, 2):
        assert shards.label_fraction("train", skip) == original.label_fraction("train", skip)
        assert shards.fraction_size("train", skip) == original.fraction_size("train", skip)
        assert shards.fraction_note("train", skip) == original.fraction_note("train", skip)
    with pytest.raises(ConfigError, match=r"(?s)1/37 .* not noted.*noted are 1, 2"):
        shards.label_fraction("train", 37)


def tar_of(folder: Path) -> Path:
    return folder / "train-000000.tar"


def cut(folder: Path) -> None:
    data = tar_of(folder).read_bytes()
    tar_of(folder).write_bytes(data[: len(data) // 3])


def shift(folder: Path) -> None:
    tar_of(folder).write_bytes(bytes(BLOCK) + tar_of(folder).read_bytes())


def overwrite(folder: Path) -> None:
    data = bytearray(tar_of(folder).read_bytes())
    for start in range(BLOCK, len(data), 40):
        data[start] ^= 0x55
    tar_of(folder).write_bytes(data)


def swap(folder: Path) -> None:
    """The shard of another split under this one's name."""
    shutil.copy(folder / "val-000000.tar", tar_of(folder))


def edited(
    change: Callable[[Any], None], name: str = "train.frames.json"
) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return edit


def exchange(value: Any) -> None:
    """The ids of two frames change places: the index lies, and every range is there."""
    frames = value["frames"]
    frames[0][:2], frames[1][:2] = frames[1][:2], frames[0][:2]


DAMAGE = {
    "a shard is missing": lambda folder: tar_of(folder).unlink(),
    "a shard is cut": cut,
    "everything stands elsewhere": shift,
    "bytes are changed": overwrite,
    "another shard": swap,
    "the index names another frame": edited(exchange),
    "offsets are wrong": edited(lambda v: v["frames"][0].__setitem__(3, BLOCK)),
    "a size is wrong": edited(lambda v: v["frames"][0][4].__setitem__(1, 130)),
    "a size is huge": edited(lambda v: v["frames"][0][4].__setitem__(1, 1 << 50)),
    "beyond the end": edited(lambda v: v["frames"][-1].__setitem__(3, 1 << 40)),
    "a name that climbs": edited(lambda v: v["shards"][0].update(name="../../x.tar")),
    "a name of another kind": edited(lambda v: v["shards"][0].update(name="passwd")),
    "a file of no kind": edited(lambda v: v["layouts"][0]["members"].__setitem__(1, "x.pkl")),
    "frames of no shard": edited(lambda v: v["shards"].pop()),
    "a frame twice": edited(lambda v: v["frames"][1].__setitem__(slice(2), v["frames"][0][:2])),
    "an index of another format": edited(lambda v: v.update(format="x")),
    "fewer frames than the index says": edited(
        lambda v: v["splits"]["train"].update(frames=99), "index.json"
    ),
    "a class without colour": edited(lambda v: v["classes"]["colors"].pop(), "index.json"),
    "a split that climbs": edited(
        lambda v: v["splits"].update({"../x": v["splits"]["train"]}), "index.json"
    ),
    "an index of nothing": lambda folder: (folder / "index.json").write_text("[]"),
    "a table of nothing": lambda folder: (folder / "train.frames.json").write_text("{"),
    "no table": lambda folder: (folder / "train.frames.json").unlink(),
    "no index": lambda folder: (folder / "index.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_is_told_with_file_and_remedy(folder: Path, damage: str) -> None:
    DAMAGE[damage](folder)
    with pytest.raises(DataError, match=r"(?s).*remedy: ") as caught:
        _read_all(folder)
    assert str(folder) in str(caught.value)


def _read_all(folder: Path) -> None:
    shards = Shards(folder)
    for frame in shards.frames("train"):
        shards.load(frame)


def test_classes_that_are_not_in_the_table_are_told(folder: Path) -> None:
    edited(lambda v: [v["classes"][name].pop() for name in v["classes"]], "index.json")(folder)
    edited(lambda v: v["classes"].update(names=["a"], colors=[[0, 0, 0]]), "index.json")(folder)
    with pytest.raises(DataError, match=r"(?s)semantic\.npy.*of 1 class\n"):
        _read_all(folder)


def test_another_shard_of_equal_names_and_sizes_is_told(tmp_path: Path) -> None:
    """Only its content differs: the same frames, with other labels."""
    here, other = (
        write_shards(tmp_path / name, Relabelled(frames=2, label=label))
        for name, label in (("here", 1), ("other", 2))
    )
    assert tar_of(here).stat().st_size == tar_of(other).stat().st_size
    _read_all(here)
    shutil.copy(tar_of(other), tar_of(here))
    with pytest.raises(DataError, match=r"(?s)000000\.tar/.*semantic.*not the one .*one packing"):
        _read_all(here)


class Relabelled(MemoryDataset):
    def __init__(self, frames: int, label: int) -> None:
        super().__init__(frames)
        self.label = label

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        loaded = super().load(frame, fields)
        return replace(loaded, semantic=torch.full((len(loaded),), self.label))


EDITED = {
    "another format": ({"format": "lidarssl shards 9"}, "format", "of this version"),
    "a flag": ({"lidar": 1}, "lidar", "neither true nor false"),
    "a deep number": (
        {"splits": {"train": {"frames": -1}}},
        "splits.train.frames",
        "-1 is not a whole number",
    ),
    "a key that is gone": ({"classes": {}}, "classes.colors", "missing"),
    "a list for an object": ({"splits": []}, "splits", "it is no object"),
    "another shape": ({"forward": [1]}, "forward", "another shape"),
}


@pytest.mark.parametrize("edit", EDITED)
def test_an_edited_index_is_told_with_file_field_and_remedy(folder: Path, edit: str) -> None:
    change, field, told = EDITED[edit]
    edited(lambda value: value.update(change), "index.json")(folder)
    with serving(folder) as server, pytest.raises(DataError) as caught:
        Shards(server.url)
    assert (caught.value.path, caught.value.field) == (f"{server.url}/index.json", field)
    assert told in str(caught.value)
    assert "lidarssl data shard" in str(caught.value.remedy)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize("name", ["index.json", "train.frames.json", "train-000000.tar"])
def test_a_missing_file_is_made_again_as_its_error_says(
    original: NuScenes, folder: Path, name: str
) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"(?s){name}: file not found.*run the same `lid"):
        _read_all(folder)
    pack_shards(original, "train", folder, frames_per_shard=2, progress=False)
    _read_all(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frames", 99),
        ("shards", 1),
        ("fields", ["images"]),
        ("cameras", ["CAM_FRONT"]),
        ("superpixels", {"segments": 10}),
    ],
)
def test_an_index_that_does_not_fit_the_table_is_told(
    folder: Path, name: str, value: object
) -> None:
    edited(lambda v: v["splits"]["train"].update({name: value}), "index.json")(folder)
    with pytest.raises(DataError, match=rf"(?s)tells of other {name}\n.*one packing") as caught:
        Shards(folder).frames("train")
    assert caught.value.field == name


@pytest.mark.parametrize("name", ["index.json", "train.frames.json"])
def test_a_damaged_table_is_written_again_as_its_error_says(
    original: NuScenes, folder: Path, name: str
) -> None:
    whole = (folder / name).read_text()
    (folder / name).write_text(whole[:100])
    with pytest.raises(DataError, match=rf"(?s){name}: malformed JSON.*delete it and run the same"):
        Shards(folder).frames("train")
    (folder / name).unlink()
    again = pack_shards(original, "train", folder, frames_per_shard=2, progress=False)
    assert (again.written, (folder / name).read_text()) == (0, whole)


def test_what_a_member_may_be_called() -> None:
    for good in ("frame.json", "points.npy", "image0.jpg", "image12.png", "labels3.png"):
        assert member(good, Path("x")).suffix == good
    for bad in ("points.pyd", "image.jpg", "image0.gif", "../points.npy", "frame.json\n", "a.pth"):
        with pytest.raises(DataError, match="no file of a frame"):
            member(bad, Path("x"))


def test_sizes_in_a_tar_file() -> None:
    assert [padded(size) for size in (0, 1, 512, 513)] == [512, 1024, 1024, 1536]


def test_timeouts_and_tries_are_bounded() -> None:
    assert 0 < byte_ranges.TIMEOUT <= 60
    assert sum(byte_ranges.PAUSES) <= 30
