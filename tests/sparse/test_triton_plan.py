"""Order, tables and pieces that the Triton kernels read."""

from __future__ import annotations

import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.frame import map_tensors
from lidarssl.sparse.backends.triton_plan import LARGEST_TILE, NONE, Plan, _gray_place
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.pairs import KernelMap
from lidarssl.sparse.tables import table_rows
from sparse.reference import random_sites

sizes = st.tuples(*[st.integers(1, 5)] * 3).filter(lambda size: max(size) > 1)


def some_map(seed: int, size: int | tuple[int, ...], stride: int = 1, count: int = 60) -> KernelMap:
    sites = random_sites(torch.Generator().manual_seed(seed), count, 4)
    return SparseConv3d(1, 1, size, stride).connect(KernelMaps.of(sites), 0)[1]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=sizes,
    stride=st.integers(1, 2),
    back=st.booleans(),
    rows=st.sampled_from([16, 64, LARGEST_TILE]),
    parts=st.integers(1, 3),
)
def test_tiles_hold_every_pair_and_name_every_weight(seed, size, stride, back, rows, parts):
    pairs = some_map(seed, size, stride)
    pairs = pairs.transposed() if back else pairs
    layout, table = Plan.of(pairs).layout(parts), table_rows(pairs)
    count, tiles = pairs.rows_out, layout.tiles(rows)
    assert tiles.listed.is_contiguous()
    assert tiles.counts.shape == (parts, layout.table.shape[1] // rows)
    assert (layout.parts[0], layout.parts[-1]) == (0, table.shape[1])
    assert bool((layout.table[:, count:] == NONE).all())
    for part, order in enumerate(layout.order):
        weights = slice(*layout.parts[part : part + 2])
        own, order = table[:, weights], order.long()
        assert torch.equal(order.sort().values, torch.arange(count))
        assert torch.equal(layout.table[weights, :count].t().long(), own[order])
        for tile, number in enumerate(tiles.counts[part]):
            inside = own[order[tile * rows : (tile + 1) * rows]] != NONE
            expected = weights.start + inside.any(0).nonzero().flatten()
            assert tiles.listed[part, tile, :number].tolist() == expected.tolist()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=sizes,
    stride=st.integers(1, 2),
    back=st.booleans(),
    length=st.integers(1, 70),
)
def test_pieces_hold_every_pair_once(seed, size, stride, back, length):
    pairs = some_map(seed, size, stride)
    pairs = pairs.transposed() if back else pairs
    plan, table = Plan.of(pairs), table_rows(pairs)
    chunks = plan.chunks(length)
    for weight in range(table.shape[1]):
        found = []
        for piece in range(int(chunks.first[weight]), int(chunks.first[weight + 1])):
            span = slice(int(chunks.start[piece]), int(chunks.stop[piece]))
            assert 0 < span.stop - span.start <= length
            found += plan.pairs[:, span].t().tolist()
        written = (table[:, weight] != NONE).nonzero().flatten().tolist()
        expected = [[int(table[row, weight]), row] for row in written]
        assert sorted(found) == sorted(expected)


def test_sorted_tiles_have_fewer_weights():
    """On a rough surface, as a scan is."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.rand(6000, 2, generator=generator) * 150
    height = 0.5 + 0.25 * torch.randn(6000, 1, generator=generator)
    sites = torch.nn.functional.pad(
        torch.cat([plane, height], 1).floor().long().unique(dim=0), (1, 0)
    )
    pairs = SparseConv3d(1, 1, 3).connect(KernelMaps.of(sites), 0)[1]
    blocks = [int(Plan.of(pairs).layout(parts).tiles(64).counts.sum()) for parts in (1, 3)]
    unsorted = torch.nn.functional.pad(table_rows(pairs), (0, 0, 0, -len(sites) % 64), value=NONE)
    before = int((unsorted.view(-1, 64, 27) != NONE).any(1).sum())
    assert blocks[0] < 0.4 * before
    assert blocks[1] < 0.8 * blocks[0]


def test_gray_code():
    """Successive places differ in one bit of their codes."""
    places = torch.arange(1 << 10)
    codes = places ^ (places >> 1)
    assert torch.equal(_gray_place(codes), places)
    large = torch.tensor([(1 << 62) - 1, 1 << 61])
    assert torch.equal(_gray_place(large) ^ (_gray_place(large) >> 1), large)


def test_layers_and_both_directions_share_plans():
    sites = random_sites(torch.Generator().manual_seed(0), 60, 4)
    maps = KernelMaps.of(sites)
    down, up = SparseConv3d(1, 1, 2, 2), SparseConv3d(1, 1, 2, 2, transposed=True)
    coarse, there = down.connect(maps, 0)
    plan = Plan.of(there)
    assert Plan.of(down.connect(maps, 0)[1]) is plan
    _, back = up.connect(maps, coarse)
    assert Plan.of(back) is not plan
    assert Plan.of(back) is Plan.of(there.transposed())
    assert Plan.of(back.transposed()) is plan
    assert plan.layout(1) is plan.layout(1)
    assert plan.layout(1).tiles(16) is plan.layout(1).tiles(16)
    assert plan.chunks(256) is plan.chunks(256)


def test_copies_start_without_plans():
    maps = KernelMaps.of(random_sites(torch.Generator().manual_seed(0), 60, 4))
    _, pairs = SparseConv3d(1, 1, 3).connect(maps, 0)
    Plan.of(pairs)
    (other,) = map_tensors(maps, torch.clone).maps.values()
    assert not other.plans
    assert torch.equal(Plan.of(other).layout(2).table, Plan.of(pairs).layout(2).table)


def test_pickled_maps_still_work():
    maps = KernelMaps.of(random_sites(torch.Generator().manual_seed(0), 60, 4))
    _, pairs = SparseConv3d(1, 1, 3).connect(maps, 0)
    table = Plan.of(pairs).layout(2).table
    (other,) = pickle.loads(pickle.dumps(maps)).maps.values()
    assert torch.equal(Plan.of(other).layout(2).table, table)
