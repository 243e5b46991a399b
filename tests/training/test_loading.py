"""Batches depend on (seed, epoch, sample) alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dataset_files import write_nuscenes
from lidarssl.datasets.image_files import ImageFile
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, Field, Frame, FrameId, map_tensors
from lidarssl.methods.slidr import Slidr
from lidarssl.prepare.instances import instances_of
from lidarssl.training.loading import (
    EpochBatches,
    FrameSource,
    evaluation_batches,
    good_batch,
    training_loader,
)
from lidarssl.transforms.base import Transform
from lidarssl.transforms.instance_bank import join_instances
from lidarssl.transforms.mixing import Another, CutMix, MixingTransform, PolarMix
from lidarssl.transforms.paired import MatchPixels, ResizeWhole
from methods.small import build
from object_scans import BICYCLE, PERSON, ROAD, ObjectScans
from toys import MemoryDataset
from training.runs import settings, train
from transforms.scenes import same as frames_are_same


def jitter(frame: Frame, rng: np.random.Generator) -> Frame:
    noise = torch.from_numpy(rng.standard_normal(frame.points.shape).astype(np.float32))
    return Frame(frame.id, frame.points + noise, frame.intensity)


def batches_of(
    workers: int, start: int = 0, rank: int = 0, world: int = 1, bad: tuple[int, ...] = ()
) -> list[Batch]:
    dataset = MemoryDataset(frames=10, bad=bad)
    policy = "skip" if bad else "raise"
    source = FrameSource(dataset, dataset.frames("train"), Field.NONE, [jitter], 7, policy)
    batches = EpochBatches(10, 4, 6, 7, rank, world)
    loader = training_loader(source, batches, workers, None)
    loader.load_state_dict({"consumed": start})
    return [good_batch(loaded) for loaded in loader]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return [b.ids for b in left] == [b.ids for b in right] and all(
        torch.equal(a.points.points, b.points.points) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing(workers: int) -> None:
    assert same(batches_of(0), batches_of(workers))


@pytest.fixture(scope="module")
def slidr_batches() -> list[list[Tensor]]:
    return tensors_of_slidr(0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing_of_a_real_method(
    slidr_batches: list[list[Tensor]], workers: int
) -> None:
    """Superpixels, every random transform and the voxels made ahead included."""
    found = tensors_of_slidr(workers)
    for expected, actual in zip(slidr_batches, found, strict=True):
        assert len(expected) == len(actual) > 20
        assert all(map(torch.equal, expected, actual))


def tensors_of_slidr(workers: int) -> list[list[Tensor]]:
    """Every tensor of every batch of SLidR."""
    method, dataset = build(Slidr), MemoryDataset(6, cameras=2)
    drawn = method.augmentation
    assert drawn.rotate
    assert drawn.flip_axes
    assert drawn.scale
    assert drawn.drop_cuboids
    assert drawn.crop_scale
    assert drawn.flip_images
    ids, transforms = dataset.frames("train"), method.transforms(True)
    source = FrameSource(dataset, ids, method.needs, transforms, 5)
    prepare = method.lidar_encoder.prepare
    loader = training_loader(source, EpochBatches(6, 2, 5, 5), workers, prepare)
    batches = []
    for loaded in loader:
        batch = good_batch(loaded)
        assert batch.images is not None
        assert batch.superpixels is not None
        assert batch.matches is not None
        assert batch.points.prepared is not None
        found: list[Tensor] = []
        map_tensors(batch, found.append)
        batches.append([tensor.clone() for tensor in found])
    assert not torch.equal(batches[0][0], batches[3][0])
    return batches


@pytest.mark.parametrize("start", [1, 3, 5])
def test_a_restart_continues_where_it_stopped(start: int) -> None:
    assert same(batches_of(0)[start:], batches_of(0, start=start))


def test_ranks_share_the_global_batch() -> None:
    whole, parts = batches_of(0), [batches_of(0, rank=rank, world=2) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        assert batch.ids == parts[0][number].ids + parts[1][number].ids
        together = torch.cat([part[number].points.points for part in parts])
        assert torch.equal(batch.points.points, together)


def test_every_frame_is_seen_once_per_epoch_and_epochs_differ() -> None:
    batches = EpochBatches(10, 2, 10, 3)
    keys = [key for batch in batches for key in batch]
    first, second = keys[:10], keys[10:]
    assert sorted(sample for _, sample in first) == list(range(10))
    assert sorted(sample for _, sample in second) == list(range(10))
    assert [s for _, s in first] != [s for _, s in second]


def test_the_last_batch_of_an_epoch_may_be_smaller() -> None:
    batches = EpochBatches(10, 4, 6, 3, drop_last=False)
    assert batches.per_epoch == 3
    keys = list(batches)
    assert [len(batch) for batch in keys] == [4, 4, 2, 4, 4, 2]
    for epoch in (0, 1):
        seen = [key for batch in keys[3 * epoch : 3 * epoch + 3] for key in batch]
        assert sorted(seen) == [(epoch, sample) for sample in range(10)]
    parts = [list(EpochBatches(10, 4, 6, 3, rank, 2, drop_last=False)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == keys
    assert [len(batch) for batch in EpochBatches(3, 4, 2, 0, drop_last=False)] == [3, 3]


def test_a_smaller_batch_must_divide_over_processes_too() -> None:
    EpochBatches(9, 4, 6, 0, world=2)
    with pytest.raises(ConfigError, match="of 1 frame, cannot be split over 2 processes") as caught:
        EpochBatches(9, 4, 6, 0, world=2, drop_last=False)
    assert caught.value.field == "training.drop_last"
    with pytest.raises(ConfigError, match="cannot fill"):
        EpochBatches(0, 4, 6, 0, drop_last=False)


def test_batch_must_divide_over_processes_and_fit_the_data() -> None:
    with pytest.raises(ConfigError, match="multiple of 2"):
        EpochBatches(10, 3, 6, 0, world=2)
    with pytest.raises(ConfigError, match="cannot fill"):
        EpochBatches(3, 4, 6, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_raises_its_own_message(workers: int) -> None:
    dataset = MemoryDataset(frames=8, bad=(3,))
    source = FrameSource(dataset, dataset.frames("train"), Field.NONE, [], 0)
    loader = training_loader(source, EpochBatches(8, 4, 2, 0), workers, None)
    with pytest.raises(DataError, match=r"^0003\.bin: points are not finite"):
        [good_batch(loaded) for loaded in loader]


def test_skip_takes_the_next_good_frame_and_counts() -> None:
    dataset = MemoryDataset(frames=8, bad=(3, 4))
    source = FrameSource(dataset, dataset.frames("train"), Field.NONE, [], 0, "skip")
    loader = training_loader(source, EpochBatches(8, 8, 1, 0), 2, None)
    (loaded,) = list(loader)
    tokens = [frame.token for frame in good_batch(loaded).ids]
    assert sorted(tokens) == ["0000", "0001", "0002", "0005", "0005", "0005", "0006", "0007"]
    assert len(loaded.skipped) == 3


def test_what_is_wrong_with_every_frame_is_not_skipped() -> None:
    class Unreadable(MemoryDataset):
        def load(self, frame: FrameId, fields: Field = Field.ALL) -> Frame:
            tried.append(frame)
            raise ConfigError("the server ignores range requests", field="root")

    tried, dataset = list[FrameId](), Unreadable(frames=8)
    source = FrameSource(dataset, dataset.frames("train"), Field.NONE, [], 0, "skip")
    with pytest.raises(ConfigError, match="ignores range requests"):
        good_batch(next(iter(training_loader(source, EpochBatches(8, 1, 1, 0), 0, None))))
    assert len(tried) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("transforms", [[], [MatchPixels(allow_none=True), ResizeWhole((20, 30))]])
def test_an_image_that_does_not_decode_is_a_bad_sample(
    tmp_path: Path, workers: int, transforms: list[Transform]
) -> None:
    dataset = NuScenes(write_nuscenes(tmp_path), cameras=("CAM_FRONT",))
    ids = dataset.frames("train")
    file = dataset.load(ids[1], Field.IMAGES | Field.UNDECODED).cameras[0].undecoded
    assert isinstance(file, ImageFile)
    file.path.write_bytes(file.data[: len(file.data) // 2])
    for policy in ("raise", "skip"):
        source = FrameSource(dataset, ids, Field.IMAGES, transforms, 0, policy)
        loader = training_loader(source, EpochBatches(len(ids), len(ids), 1, 0), workers, None)
        (loaded,) = list(loader)
        if policy == "raise":
            with pytest.raises(DataError, match=file.path.name):
                good_batch(loaded)
        else:
            assert len(loaded.skipped) == 1
            assert ids[1] not in good_batch(loaded).ids


def test_evaluation_sees_every_frame_once_in_order() -> None:
    dataset = MemoryDataset(frames=5)
    source = FrameSource(dataset, dataset.frames("val"), Field.SEMANTIC, [], 0)
    seen = [frame for batch in evaluation_batches(source, 2, 0, None) for frame in batch.ids]
    assert seen == dataset.frames("val")


def mixing() -> list[MixingTransform]:
    """Swaps, turned copies, and instances of the scans themselves, all drawn."""
    scans = ObjectScans(10)
    cut = [
        instances_of(scans.load(frame), number, [PERSON, BICYCLE])
        for number, frame in enumerate(scans.frames("train"))
    ]
    return [PolarMix([PERSON]), CutMix(join_instances(cut), [PERSON, BICYCLE], [ROAD], 5)]


def shake(frame: Frame, rng: np.random.Generator) -> Frame:
    noise = torch.from_numpy(rng.standard_normal(frame.points.shape).astype(np.float32))
    return replace(frame, points=frame.points + noise)


def mixed_batches(workers: int, start: int = 0, rank: int = 0, world: int = 1) -> list[Batch]:
    scans = ObjectScans(10)
    source = FrameSource(
        scans, scans.frames("train"), Field.SEMANTIC, [shake], 7, mixing=mixing()
    )  # fmt: skip
    loader = training_loader(source, EpochBatches(10, 4, 6, 7, rank, world), workers, None)
    loader.load_state_dict({"consumed": start})
    return [good_batch(loaded) for loaded in loader]


def tensors_of(batches: list[Batch]) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(batches, found.append)
    return found


@pytest.fixture(scope="module")
def mixed() -> list[Batch]:
    return mixed_batches(0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing_of_mixed_scans(mixed: list[Batch], workers: int) -> None:
    expected, found = tensors_of(mixed), tensors_of(mixed_batches(workers))
    assert len(expected) == len(found)
    assert all(map(torch.equal, expected, found))


def test_a_restart_and_ranks_change_nothing_of_mixed_scans(mixed: list[Batch]) -> None:
    assert same(mixed[3:], mixed_batches(0, start=3))
    parts = [mixed_batches(0, rank=rank, world=2) for rank in (0, 1)]
    for number, batch in enumerate(mixed):
        assert batch.semantic is not None
        labels = [part[number].semantic for part in parts]
        assert batch.ids == parts[0][number].ids + parts[1][number].ids
        assert torch.equal(batch.semantic, torch.cat([one for one in labels if one is not None]))


def test_mixing_takes_loaded_frames_of_the_same_list_before_the_transforms() -> None:
    scans = ObjectScans(6)
    ids, seen = scans.frames("train")[1:4], set()

    def mix(frame: Frame, rng: np.random.Generator, another: Another) -> Frame:
        other = another(rng)
        assert frames_are_same(other, scans.load(other.id, Field.SEMANTIC))
        assert frames_are_same(frame, scans.load(frame.id, Field.SEMANTIC))
        seen.add((frame.id, other.id))
        return other

    def drop(frame: Frame, rng: np.random.Generator) -> Frame:
        return frame.select(torch.arange(len(frame)) < 3)

    source = FrameSource(scans, ids, Field.SEMANTIC, [drop], 0, mixing=[mix])
    frames = [source.load(epoch, sample) for epoch in range(20) for sample in range(3)]
    assert all(len(frame) == 3 for frame in frames)
    assert {other for _, other in seen} == set(ids)
    assert {frame for frame, _ in seen} == set(ids)


def test_a_bad_second_scan_is_a_bad_sample() -> None:
    scans = MemoryDataset(frames=4, bad=(2,))
    ids = scans.frames("train")
    taken = FrameSource(scans, ids, Field.SEMANTIC, [], 0, "skip", mixing=[PolarMix([1])])
    loaded = [taken[epoch, 0] for epoch in range(12)]
    assert any("0002.bin" in message for one in loaded for message in one.skipped)
    assert all(one.frame is not None for one in loaded)


def test_held_out_frames_are_never_mixed(tmp_path: Path) -> None:
    splits = []

    def mix(frame: Frame, rng: np.random.Generator, another: Another) -> Frame:
        splits.extend([frame.id.sequence, another(rng).id.sequence])
        return frame

    train(tmp_path, settings(steps=4, validate_every=2), mixing=[mix])
    assert set(splits) == {"train"}
