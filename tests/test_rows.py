"""Rows under a mask against the definition."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.rows import true_rows


@given(st.lists(st.booleans(), max_size=40))
def test_rows_are_those_that_are_true(mask: list[bool]) -> None:
    found = true_rows(torch.tensor(mask, dtype=torch.bool))
    assert found.dtype == torch.int64
    assert found.tolist() == [row for row, value in enumerate(mask) if value]
