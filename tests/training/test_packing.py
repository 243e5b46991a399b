"""Tensors of a batch in shared memory: the same values, few pieces."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.frame import Field, map_tensors
from lidarssl.training.loading import EpochBatches, FrameSource, good_batch, training_loader
from lidarssl.training.packing import packed
from toys import MemoryDataset

DTYPES = (torch.float32, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)


@dataclass
class Holder:
    tensors: list[Tensor]
    named: dict[str, Tensor]
    none: Tensor | None = None
    word: str = "x"


def tensor_of(dtype: torch.dtype, shape: tuple[int, ...], transposed: bool) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    values = torch.randint(0, 2, shape, generator=generator).to(dtype)
    return values.mT if transposed and len(shape) > 1 else values


TENSORS = st.builds(
    tensor_of,
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(TENSORS, max_size=8))
def test_values_shapes_and_types_stay(tensors: list[Tensor]) -> None:
    holder = Holder(tensors, {"again": tensors[0]} if tensors else {})
    found = packed(holder)
    assert (found.none, found.word) == (None, "x")
    assert len(found.tensors) == len(tensors)
    for before, after in zip(tensors, found.tensors, strict=True):
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        assert torch.equal(after, before)
        assert after.is_shared()
        assert after.is_contiguous()
        assert after.data_ptr() % 16 == 0
    if tensors:
        assert found.named["again"] is found.tensors[0]
    pieces = {tensor.untyped_storage().data_ptr() for tensor in found.tensors}
    assert len(pieces) == len({tensor.dtype for tensor in tensors})


def test_tensors_do_not_share_their_places() -> None:
    found = packed([torch.zeros(3), torch.zeros(5), torch.zeros(2)])
    found[0].fill_(1)
    found[2].fill_(2)
    assert [tensor.tolist() for tensor in found] == [[1] * 3, [0] * 5, [2] * 2]


def test_the_values_given_stay_as_they_are() -> None:
    given_ = [torch.arange(4), torch.ones(2)]
    packed(given_)[0].zero_()
    assert given_[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_a_worker_arrive_in_one_piece_for_each_type(workers: int) -> None:
    dataset = MemoryDataset(frames=4)
    source = FrameSource(dataset, dataset.frames("train"), Field.IMAGES | Field.SEMANTIC, [], 0)
    loader = training_loader(source, EpochBatches(4, 2, 1, 0), workers, None)
    (batch,) = (good_batch(loaded) for loaded in loader)
    tensors: list[Tensor] = []
    map_tensors(batch, tensors.append)
    assert len(tensors) > 6
    pieces = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    few = len({tensor.dtype for tensor in tensors})
    assert len(pieces) == few if workers else len(pieces) > few
    assert {item.name for item in fields(batch)} >= {"images", "semantic"}


def test_memory_that_is_handed_over_outlives_its_worker() -> None:
    dataset = MemoryDataset(frames=4)
    source = FrameSource(dataset, dataset.frames("train"), Field.IMAGES, [], 0)
    loader = training_loader(source, EpochBatches(4, 2, 2, 0), 1, None)
    batches = [good_batch(loaded) for loaded in loader]
    del loader
    for batch in batches:
        expected = torch.cat([dataset.load(frame).points for frame in batch.ids])
        assert torch.equal(batch.points.points, expected)
