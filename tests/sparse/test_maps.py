from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import DataError
from lidarssl.frame import map_tensors
from lidarssl.sparse.kernel import Convention, axis_offsets, triple
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.pairs import Rows
from lidarssl.sparse.tensor import SparseTensor
from sparse.reference import random_sites

M, T = Convention.MINKOWSKI, Convention.TORCHSPARSE
ONE, TWO, THREE = (1, 1, 1), (2, 2, 2), (3, 3, 3)


def sites(seed: int = 0, count: int = 80, extent: int = 5) -> torch.Tensor:
    return random_sites(torch.Generator().manual_seed(seed), count, extent)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(*[st.integers(1, 4)] * 3),
    dilation=st.tuples(*[st.integers(1, 2)] * 3),
    stride=st.sampled_from([ONE, TWO, (1, 2, 3)]),
    convention=st.sampled_from([M, T]),
)
def test_pairs_equal_brute_force(seed, size, dilation, stride, convention):
    maps = KernelMaps.of(sites(seed, 30, 3) * torch.tensor([1, 2, 2, 2]), TWO)
    coarse = 0 if stride == ONE else maps.coarser(0, size, stride, convention)
    found = maps.kernel_map(0, coarse, size, dilation, convention)
    rows = {tuple(row): i for i, row in enumerate(maps.levels[0].coordinates.tolist())}
    x, y, z = (axis_offsets(length, convention) for length in size)
    if convention is T and (size[0] * size[1] * size[2]) % 2 == 0:
        offsets = [(a, b, c) for a in x for b in y for c in z]
    else:
        offsets = [(a, b, c) for c in z for b in y for a in x]

    def read_from(site: list[int], offset: tuple[int, ...]) -> tuple[int, ...]:
        frame, *xyz = site
        moved = zip(xyz, offset, dilation, strict=True)
        return (frame, *(place + 2 * step * by for place, by, step in moved))

    written = maps.levels[coarse].coordinates.tolist()
    expected = [
        sorted(
            (rows[read_from(site, offset)], out)
            for out, site in enumerate(written)
            if read_from(site, offset) in rows
        )
        for offset in offsets
    ]
    assert found.pairs_per_weight() == [len(pairs) for pairs in expected]
    start = 0
    for weight, count in enumerate(found.counts):
        group = slice(start, start + count)
        pairs = sorted(
            zip(found.in_row[group].tolist(), found.out_row[group].tolist(), strict=True)
        )
        if weight == found.identity:
            assert count == 0
            assert expected[weight] == [(row, row) for row in range(len(rows))]
        else:
            assert sorted(map(tuple, pairs)) == expected[weight]
        start += count


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), stride=st.integers(2, 4))
def test_strided_sites_are_floored(seed, stride):
    maps = KernelMaps.of(sites(seed))
    level = maps.coarser(0, THREE, triple(stride, "stride"), M)
    expected = {
        (b, x // stride * stride, y // stride * stride, z // stride * stride)
        for b, x, y, z in maps.levels[0].coordinates.tolist()
    }
    assert [tuple(row) for row in maps.levels[level].coordinates.tolist()] == sorted(expected)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([TWO, THREE, (1, 2, 3), (2, 1, 1)]),
    convention=st.sampled_from([M, T]),
    ordered=st.booleans(),
)
def test_pairs_of_whole_cells_are_those_that_a_search_finds(seed, size, convention, ordered):
    fine = sites(seed, 60, 4)
    fine = fine.unique(dim=0) if ordered else fine
    derived, searched = KernelMaps.of(fine), KernelMaps.of(fine)
    coarse = derived.coarser(0, size, size, convention)
    assert coarse == searched.coarser(0, size, size, convention)
    searched.levels[coarse].row_in = None
    ours = derived.kernel_map(0, coarse, size, ONE, convention)
    theirs = searched.kernel_map(0, coarse, size, ONE, convention)
    assert ours.counts == theirs.counts
    assert ours.identity is None
    assert theirs.identity is None
    for pair in (
        (ours.in_row, theirs.in_row),
        (ours.out_row, theirs.out_row),
        (ours.by_in.pairs, theirs.by_in.pairs),
        (ours.by_out.start, theirs.by_out.start),
    ):
        torch.testing.assert_close(*pair, rtol=0, atol=0)


def test_strided_sites_of_torchsparse_dilate():
    start = sites(4)
    maps = KernelMaps.of(start)
    level = maps.coarser(0, THREE, TWO, T)
    low = start[:, 1:].min(0).values.tolist()
    near = {
        (b, x + i, y + j, z + k)
        for b, x, y, z in start.tolist()
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
        for k in (-1, 0, 1)
    }
    expected = sorted(
        site
        for site in near
        if all(c % 2 == 0 and c >= least for c, least in zip(site[1:], low, strict=True))
    )
    assert [tuple(row) for row in maps.levels[level].coordinates.tolist()] == expected
    assert maps.coarser(0, TWO, TWO, T) != level


def test_levels_and_maps_are_made_once():
    maps = KernelMaps.of(sites())
    level = maps.coarser(0, TWO, TWO, M)
    assert maps.coarser(0, THREE, TWO, M) == level
    assert maps.kernel_map(0, level, TWO, ONE, M) is maps.kernel_map(0, level, TWO, ONE, M)
    assert len(maps.levels) == 2
    deeper = maps.coarser(level, TWO, TWO, M)
    assert maps.finer(deeper, TWO) == level
    assert maps.finer(deeper, (4, 4, 4)) == 0


def test_maps_survive_a_pickle():
    maps = KernelMaps.of(sites())
    maps.kernel_map(0, maps.coarser(0, TWO, TWO, M), TWO, ONE, M)
    maps.kernel_map(0, 0, THREE, ONE, M)
    copy = pickle.loads(pickle.dumps(maps))
    before, after = [], []
    map_tensors(maps, before.append)
    map_tensors(copy, after.append)
    assert len(before) > 10
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert copy.children == maps.children
    assert [m.counts for m in copy.maps.values()] == [m.counts for m in maps.maps.values()]


def test_rows_sum_equals_index_add():
    generator = torch.Generator().manual_seed(0)
    row = torch.randint(0, 7, (40,), generator=generator)
    values = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    expected = torch.zeros(9, 3, dtype=torch.float64).index_add(0, row, values)
    assert torch.allclose(Rows.of(row, 9).sum(values), expected, atol=1e-13)


def test_bad_sites_are_refused():
    twice = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0], [0, 1, 2, 3]])
    with pytest.raises(DataError, match="same site"):
        KernelMaps.of(twice)
    with pytest.raises(DataError, match="integers"):
        KernelMaps.of(twice.float())
    with pytest.raises(DataError, match=r"\(N, 4\)"):
        KernelMaps.of(twice[:, :3])
    with pytest.raises(DataError, match="3 sites but 2 rows"):
        SparseTensor.of(twice, torch.zeros(2, 1))


@pytest.mark.parametrize("value", [0, -1, (1, 2), (1, 2, 0), (1.0, 1, 1)])
def test_bad_sizes_are_refused(value):
    with pytest.raises(ValueError, match="kernel_size must be"):
        triple(value, "kernel_size")
