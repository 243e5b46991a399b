"""The pass that packs shards: complete, resumable, indifferent to workers and machines."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import time
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch

from box_dataset_files import write_once
from lidarssl.datasets.base import ClassTable, Dataset
from lidarssl.datasets.image_files import parse_image
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.datasets.once import Once
from lidarssl.datasets.shards import Shards
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.prepare import shards as room
from lidarssl.prepare.shards import pack_shards
from lidarssl.training.loading import EpochBatches, FrameSource, good_batch, training_loader
from shard_dataset_files import differences, nuscenes_of
from toys import MemoryDataset

QUIET = {"frames_per_shard": 2, "progress": False}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


def test_what_a_pass_writes(tmp_path: Path) -> None:
    summary = pack_shards(MemoryDataset(frames=5), "train", tmp_path, **QUIET)
    assert (summary.written, summary.kept, summary.missing) == (3, 0, 0)
    assert sorted(contents(tmp_path)) == [
        "index.json",
        *(f"train-00000{n}.{kind}" for n in range(3) for kind in ("json", "tar")),
        "train.frames.json",
    ]
    assert "0 as their files, 5 as PNG" in str(summary)


def test_workers_machines_and_repetition_change_no_byte(tmp_path: Path) -> None:
    dataset, alone, together = MemoryDataset(frames=5), tmp_path / "a", tmp_path / "b"
    pack_shards(dataset, "train", alone, **QUIET)
    counts = []
    for machine in range(2):
        summary = pack_shards(dataset, "train", together, workers=2, shard=(machine, 2), **QUIET)
        counts.append((summary.written, summary.missing))
    assert counts == [(2, 1), (1, 0)]
    assert contents(alone) == contents(together)
    again = pack_shards(dataset, "train", alone, **QUIET)
    assert (again.written, again.kept) == (0, 3)
    assert contents(alone) == contents(together)


def test_an_incomplete_split_cannot_be_read(tmp_path: Path) -> None:
    summary = pack_shards(MemoryDataset(frames=5), "train", tmp_path, shard=(0, 2), **QUIET)
    assert "left to others: 1 of 3 shards" in str(summary)
    assert not (tmp_path / "index.json").exists()


def test_only_what_is_missing_or_damaged_is_made_again(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=7)
    pack_shards(dataset, "train", tmp_path, **QUIET)
    whole, before = contents(tmp_path), times(tmp_path)
    (tmp_path / "train-000000.tar").unlink()
    (tmp_path / "train-000001.tar").write_bytes(whole["train-000001.tar"][:2000])
    (tmp_path / "train-000002.json").write_text("{")
    (tmp_path / "index.json").unlink()
    again = pack_shards(dataset, "train", tmp_path, **QUIET)
    assert (again.written, again.kept) == (3, 1)
    assert contents(tmp_path) == whole
    assert times(tmp_path)["train-000003.tar"] == before["train-000003.tar"]


def test_a_pass_that_stops_in_a_shard_leaves_no_part_of_it(tmp_path: Path) -> None:
    bad = MemoryDataset(frames=5, bad=(3,))
    with pytest.raises(DataError, match=r"0003\.bin: points are not finite"):
        pack_shards(bad, "train", tmp_path, **QUIET)
    assert sorted(contents(tmp_path)) == ["train-000000.json", "train-000000.tar"]
    summary = pack_shards(MemoryDataset(frames=5), "train", tmp_path, **QUIET)
    assert (summary.written, summary.kept) == (2, 1)


@pytest.mark.parametrize(
    ("where", "kept"), [("in a shard", 1), ("before its table", 0), ("before the index", 3)]
)
def test_a_killed_pass_leaves_no_half_shard_and_is_finished_by_the_next(
    tmp_path: Path, where: str, kept: int
) -> None:
    folder, reference = tmp_path / "killed", tmp_path / "reference"
    process = get_context("fork").Process(target=_pack_until_killed, args=(folder, where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    dataset = MemoryDataset(frames=5)
    pack_shards(dataset, "train", reference, **QUIET)
    whole, before = contents(reference), times(folder)
    assert before
    for name in before:
        assert (folder / name).read_bytes() == whole[name]
    assert any(name.endswith(".partial") for name in contents(folder)) == (where == "in a shard")
    with pytest.raises(DataError, match=r"(?s)index\.json: file not found.*lidarssl data shard"):
        Shards(folder)
    again = pack_shards(dataset, "train", folder, **QUIET)
    assert (again.written, again.kept) == (3 - kept, kept)
    assert contents(folder) == whole
    same = [name for name in sorted(before) if times(folder)[name] == before[name]]
    assert same == sorted(before)[:kept]


def _pack_until_killed(folder: Path, where: str) -> None:
    torch.set_num_threads(1)
    dataset = MemoryDataset(frames=5)
    if where == "in a shard":
        dataset = Killed(frames=5)
    elif where == "before its table":
        room.FrameTable.to_json = _kill
    else:
        room.write_index = _kill
    pack_shards(dataset, "train", folder, **QUIET)


class Killed(MemoryDataset):
    """Kills the process when the fourth frame is read."""

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        if int(frame.token) == 3:
            _kill()
        return super().load(frame, fields)


def test_what_another_pass_is_writing_is_left_alone_until_that_is_killed(tmp_path: Path) -> None:
    context, dataset, folder = get_context("fork"), MemoryDataset(frames=5), tmp_path / "out"
    reached = context.Event()
    process = context.Process(target=_pack_until_stuck, args=(folder, reached))
    process.start()
    assert reached.wait(60)
    assert pack_shards(dataset, "train", folder, **QUIET).kept == 1
    assert len(list(folder.glob(".train-000001.tar.*.partial"))) == 1
    process.kill()
    process.join()
    pack_shards(dataset, "train", folder, overwrite=True, **QUIET)
    pack_shards(dataset, "train", tmp_path / "reference", **QUIET)
    assert contents(folder) == contents(tmp_path / "reference")


def _pack_until_stuck(folder: Path, reached: Event) -> None:
    torch.set_num_threads(1)
    dataset = Stuck(frames=5)
    dataset.reached = reached
    pack_shards(dataset, "train", folder, **QUIET)


class Stuck(MemoryDataset):
    """Never gives its fourth frame."""

    reached: Event

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        if int(frame.token) == 3:
            self.reached.set()
            time.sleep(600)
        return super().load(frame, fields)


def _kill(*rest: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_splits_of_a_dataset_share_a_folder_and_others_do_not(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=3)
    for split in ("val", "train"):
        pack_shards(dataset, split, tmp_path, **QUIET)
    assert Shards(tmp_path).splits == ("train", "val")
    other = MemoryDataset(frames=3)
    other.name = "another"
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="dataset 'memory', not of 'another'") as caught:
            pack_shards(other, "train", tmp_path, overwrite=overwrite, **QUIET)
        assert caught.value.remedy == "choose another folder, or delete this one"
    renamed = MemoryDataset(frames=3)
    renamed.classes = ClassTable(("ignored", "b"), ((0, 0, 0), (1, 1, 1)))
    with pytest.raises(ConfigError, match="'memory', not of one with other classes\n") as caught:
        pack_shards(renamed, "train", tmp_path, **QUIET)
    assert caught.value.field == "dataset"


def test_fewer_and_larger_shards_leave_none_of_the_smaller_ones(tmp_path: Path) -> None:
    """What is not of this split stays, nor does a machine delete before all are there."""
    dataset, folder, reference = MemoryDataset(frames=9), tmp_path / "out", tmp_path / "reference"
    options = {"frames_per_shard": 4, "progress": False}
    for place, small in ((folder, 2), (reference, 4)):
        pack_shards(dataset, "val", place, frames_per_shard=1, progress=False)
        pack_shards(dataset, "train", place, frames_per_shard=small, progress=False)
    for name in ("train-0000005.tar", "train-000005.tar.txt", "xtrain-000005.tar"):
        for place in (folder, reference):
            (place / name).write_text("mine")
    for name in ("train-000004.tar", "train-000004.json"):
        (folder / f".{name}.0a1b2c3d.partial").write_text("killed")
    pack_shards(dataset, "train", folder, shard=(0, 2), overwrite=True, **options)
    assert (folder / "train-000004.tar").exists(), "of three shards the second is not there"
    pack_shards(dataset, "train", folder, shard=(1, 2), overwrite=True, **options)
    assert contents(folder) == contents(reference)


@pytest.mark.parametrize(
    ("options", "field", "told"),
    [
        (
            {"frames_per_shard": 3},
            "frames_per_shard",
            "up to 2 frames in a tar file (--frames-per-shard 2) instead of 3",
        ),
        ({"fields": ["semantic"]}, "fields", "fields images, semantic instead of fields semantic"),
        ({"dataset": MemoryDataset(frames=4)}, "dataset", "5 frames instead of 4"),
        (
            {"dataset": MemoryDataset(frames=5, points=100)},
            "dataset",
            "other calibration or points of the first frame (options of the dataset)",
        ),
    ],
)
def test_a_folder_made_otherwise_is_refused(
    tmp_path: Path, options: dict[str, object], field: str, told: str
) -> None:
    asked = {"dataset": MemoryDataset(frames=5), "split": "train", "output": tmp_path, **QUIET}
    pack_shards(**asked)
    with pytest.raises(ConfigError) as caught:
        pack_shards(**(asked | options))
    assert caught.value.problem.endswith(f"made with other settings: {told}")
    assert caught.value.field == field
    assert pack_shards(**(asked | options), overwrite=True).written > 0
    shards = Shards(tmp_path)
    expected = options.get("dataset", asked["dataset"])
    assert isinstance(expected, Dataset)
    for frame in shards.frames("train"):
        provided = shards.provides("train")
        assert not differences(expected.load(frame, provided), shards.load(frame))


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=3)
    with pytest.raises(ConfigError, match="did you mean 'semantic'"):
        pack_shards(dataset, "train", tmp_path, fields=["semantc"], **QUIET)
    with pytest.raises(ConfigError, match=r"known: images, semantic$") as caught:
        pack_shards(dataset, "train", tmp_path, fields=["nonsense"], **QUIET)
    assert caught.value.field == "fields"
    with pytest.raises(ConfigError, match="is no folder"):
        pack_shards(dataset, "train", tmp_path, superpixels=tmp_path / "none", **QUIET)
    with pytest.raises(ConfigError, match="packed with their images"):
        pack_shards(dataset, "train", tmp_path, fields=["semantic"], superpixels=tmp_path, **QUIET)
    with pytest.raises(ConfigError, match="does not exist"):
        pack_shards(dataset, "train", tmp_path, shard=(2, 2), **QUIET)
    with pytest.raises(ConfigError, match=r"(?s)both say how large.*not both"):
        pack_shards(dataset, "train", tmp_path, shard_size=256, **QUIET)


def test_the_size_of_a_shard_is_about_what_is_asked_for(tmp_path: Path) -> None:
    dataset = MemoryDataset(frames=6, points=40_000)  # 0.66 MiB each
    summary = pack_shards(dataset, "train", tmp_path, shard_size=2, progress=False)
    assert summary.settings.frames_per_shard == 3
    assert all(path.stat().st_size < 2 << 20 for path in tmp_path.glob("*.tar"))


def test_images_are_the_files_of_the_dataset_where_these_hold_their_pixels(tmp_path: Path) -> None:
    dataset = nuscenes_of(tmp_path / "nuscenes")
    summary = pack_shards(dataset, "train", tmp_path / "out", **QUIET)
    assert summary.encoded == 0
    assert summary.originals == 2 * summary.settings.frames
    files = {path.read_bytes() for path in dataset.root.glob("samples/CAM_*/*")}
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as archive:
        stored = [archive.extractfile(one).read() for one in archive if ".image" in one.name]
    assert len(stored) == 4
    assert set(stored) <= files
    small = NuScenes(dataset.root, cameras=dataset.cameras, image_scale=0.5)
    assert pack_shards(small, "train", tmp_path / "small", **QUIET).originals == 0
    once = Once(write_once(tmp_path / "once"))  # undistorted, so no file holds its pixels
    assert pack_shards(once, "train", tmp_path / "once_out", **QUIET).originals == 0


class Odd(MemoryDataset):
    """Frames with what no dataset has so far."""

    def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
        loaded = super().load(frame, fields)
        first = int(frame.token) == 0
        return replace(
            loaded,
            time=torch.linspace(-0.1, 0, len(loaded)),
            ring=torch.arange(len(loaded)) * 100,
            instance=torch.arange(len(loaded)) << 33 if Field.INSTANCE in fields else None,
            cameras=loaded.cameras[1:] if first else loaded.cameras,
            semantic=None if first else loaded.semantic,
        )


def test_frames_need_not_be_alike(tmp_path: Path) -> None:
    """Other cameras, a label that is missing, wide integers, times before the scan."""
    dataset = Odd(frames=3, cameras=2)
    pack_shards(dataset, "train", tmp_path, **QUIET)
    shards = Shards(tmp_path)
    for frame in dataset.frames("train"):
        assert not differences(dataset.load(frame), shards.load(frame))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_from_shards_are_those_from_the_dataset(tmp_path: Path) -> None:
    """The order of a run does not depend on how frames lie in shards, nor on workers."""
    dataset = MemoryDataset(frames=7)
    pack_shards(dataset, "train", tmp_path, frames_per_shard=3, progress=False)

    def batches(source: Dataset, workers: int) -> list[tuple[tuple[FrameId, ...], bytes]]:
        frames = FrameSource(source, source.frames("train"), Field.IMAGES, [], 3)
        loader = training_loader(frames, EpochBatches(7, 2, 5, 3), workers, None)
        found = [good_batch(loaded) for loaded in loader]
        return [(batch.ids, batch.points.points.numpy().tobytes()) for batch in found]

    expected = batches(dataset, 0)
    assert batches(Shards(tmp_path), 0) == expected
    assert batches(Shards(tmp_path), 2) == expected


def test_webdataset_reads_the_same_frames(tmp_path: Path) -> None:
    """With its reader of tar files alone: its decoders would unpickle what is called .pyd."""
    webdataset = pytest.importorskip("webdataset")
    dataset = nuscenes_of(tmp_path / "nuscenes")
    pack_shards(dataset, "train", tmp_path / "out", **QUIET)
    urls = [str(path) for path in sorted((tmp_path / "out").glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    ids = dataset.frames("train")
    assert [sample["__key__"] for sample in samples] == [f"{n:08d}" for n in range(len(ids))]
    for sample, frame_id in zip(samples, ids, strict=True):
        frame = dataset.load(frame_id)
        told = json.loads(sample["frame.json"])
        assert FrameId(*told["id"]) == frame_id
        for name in ("points", "intensity", "semantic", "instance"):
            array = np.load(io.BytesIO(sample[f"{name}.npy"]), allow_pickle=False)
            assert np.array_equal(array, getattr(frame, name).numpy())
        for number, camera in enumerate(frame.cameras):
            image, _ = parse_image(sample[f"image{number}.jpg"], Path(camera.name))
            assert torch.equal(image, camera.image)
            assert told["cameras"][number]["intrinsics"] == camera.intrinsics.tolist()
