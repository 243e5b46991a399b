"""Groups of equal cells against NumPy's unique rows, which sorts the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.geometry.grouping import cell_keys, group_rows

# Products of these spans need 31, 62 and more than 63 bits; single ones are beyond exact floats.
SPANS = [1, 5, 300, 2**12, 2**21, 2**24, 2**26, 2**31 - 1]


def check(cells: Tensor) -> None:
    """(D, N) cells."""
    rows = cells.t().long()
    _, index, inverse = np.unique(rows.numpy(), axis=0, return_index=True, return_inverse=True)
    groups = group_rows(cell_keys(cells))
    assert groups.first.tolist() == index.tolist()
    assert groups.of_rows().tolist() == inverse.reshape(-1).tolist()
    assert groups.order.tolist() == np.argsort(inverse.reshape(-1), kind="stable").tolist()
    assert groups.group.tolist() == sorted(inverse.reshape(-1).tolist())
    assert groups.start.tolist() == [groups.group.tolist().index(g) for g in range(len(index))]


@settings(max_examples=200, deadline=None)
@given(
    spans=st.lists(st.sampled_from(SPANS), min_size=2, max_size=4),
    count=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_unique_rows(spans: list[int], count: int, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    axes = [
        torch.randint(-(span // 2), span - span // 2, (count,), generator=generator)
        for span in spans
    ]
    cells = torch.stack(axes).to(dtype)
    again = torch.randint(count, (count,), generator=generator)
    check(torch.cat([cells, cells[:, again]], 1))


def test_neighbouring_cells_far_away_are_told_apart() -> None:
    """Where the difference to the lowest cell is no float."""
    far = float(2**24 + 2)
    check(torch.tensor([[-1.0, far, far - 2, -1.0, far], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_to_group(dtype: torch.dtype) -> None:
    groups = group_rows(cell_keys(torch.zeros((3, 0), dtype=dtype)))
    for column in (groups.order, groups.group, groups.start, groups.first, groups.of_rows()):
        assert (column.shape, column.dtype) == ((0,), torch.int64)
