"""Sizes of the frames of a batch against a count."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.batching import sizes_of
from lidarssl.frame import PointBatch


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_every_frame_has_its_size_also_without_points(sizes: list[int]) -> None:
    batch = torch.tensor([row for row, size in enumerate(sizes) for _ in range(size)]).long()
    count = len(batch)
    assert sizes_of(PointBatch(torch.zeros(count, 3), torch.zeros(count), batch, len(sizes))) == (
        sizes
    )
