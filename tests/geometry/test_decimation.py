from __future__ import annotations

import math

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


def test_truncated_cells_are_twice_as_wide_around_zero() -> None:
    points = torch.tensor([[-0.3, 0.1, 0.1], [0.3, 0.1, 0.1]])
    assert decimate(points, 0.5, "floor").tolist() == [0, 1]
    assert decimate(points, 0.5, "trunc").tolist() == [0]


def test_unknown_rounding() -> None:
    with pytest.raises(ConfigError, match="ceil"):
        decimate(torch.zeros(1, 3), 0.1, "ceil")  # type: ignore[arg-type]
