from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError
from lidarssl.geometry.decimation import Rounding, decimate

coordinate = st.floats(-3, 3, width=32)


@settings(max_examples=100, deadline=None)
@given(
    points=st.lists(st.tuples(coordinate, coordinate, coordinate), max_size=40),
    rounding=st.sampled_from(["floor", "trunc"]),
)
def test_equals_a_dictionary_of_cells(
    points: list[tuple[float, float, float]], rounding: Rounding
) -> None:
    first: dict[tuple[int, ...], int] = {}
    for number, point in enumerate(points):
        # 1/2 is exact in binary: both divisions give the same quotient.
        cell = tuple((math.floor if rounding == "floor" else math.trunc)(v / 0.5) for v in point)
        first.setdefault(cell, number)
    cloud = torch.tensor(points, dtype=torch.float32).reshape(-1, 3)
    assert decimate(cloud, 0.5, rounding).tolist() == [first[cell] for cell in sorted(first)]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 200),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.2, 5.0, 80.0, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    rounding=st.sampled_from(["floor", "trunc"]),
)
def test_equals_unique_rows(
    count: int, seed: int, spread: float, dtype: torch.dtype, rounding: Rounding
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn((count, 3), generator=generator, dtype=dtype) * spread
    points = torch.cat([points, points[: count // 2]])
    scaled = points / points.new_tensor(0.05)
    cells = (scaled.floor() if rounding == "floor" else scaled.trunc()).long().numpy()
    first = np.unique(cells, axis=0, return_index=True)[1]
    assert decimate(points, 0.05, rounding).tolist() == first.tolist()


def test_truncated_cells_are_twice_as_wide_around_zero() -> None:
    points = torch.tensor([[-0.3, 0.1, 0.1], [0.3, 0.1, 0.1]])
    assert decimate(points, 0.5, "floor").tolist() == [0, 1]
    assert decimate(points, 0.5, "trunc").tolist() == [0]


def test_unknown_rounding() -> None:
    with pytest.raises(ConfigError, match="ceil"):
        decimate(torch.zeros(1, 3), 0.1, "ceil")  # type: ignore[arg-type]
