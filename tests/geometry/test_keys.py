"""Keys against the order of Python tuples."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.geometry.keys import Box, find, pack, site_keys

# Small extents fit one key, large ones only as ranks.
extents = st.sampled_from([2, 50, 2**31, 2**62])


@given(extent=extents, columns=st.integers(1, 4), data=st.data())
def test_keys_sort_as_rows_do(extent: int, columns: int, data: st.DataObject) -> None:
    row = st.tuples(*[st.integers(-extent, extent - 1)] * columns)
    rows = data.draw(st.lists(row, max_size=12))
    keys = site_keys(torch.tensor(rows, dtype=torch.int64).view(-1, columns)).tolist()
    places = {one: place for place, one in enumerate(sorted(set(rows)))}
    rank = {key: place for place, key in enumerate(sorted(set(keys)))}
    assert [rank[key] for key in keys] == [places[one] for one in rows]


@given(
    rows=st.sets(st.tuples(*[st.integers(-2, 2)] * 2), min_size=1),
    queries=st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=1, max_size=9),
)
def test_a_run_of_keys_is_found(rows: set[tuple[int, int]], queries: list[tuple[int, int]]) -> None:
    run, ordered = 3, sorted(rows)
    box = Box((-2, -2), (2, 4))  # one column wider than the longest run
    steps = box.steps()
    assert steps is not None
    keys, wanted = (pack(torch.tensor(each), box, steps) for each in (ordered, queries))
    position, found = find(keys, wanted[None], run)
    for number, (x, y) in enumerate(queries):
        for step in range(run):
            there = (x, y + step) in rows
            assert bool(found[step, number]) == there
            assert not there or ordered[int(position[step, number])] == (x, y + step)
