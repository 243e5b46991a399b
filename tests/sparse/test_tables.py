"""Tables of neighbours: their rows by brute force, and convolutions with them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.sparse.kernel import Convention, volume
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.tables import NONE, TableKey, TableMaps, convolve_table, tables_read
from lidarssl.sparse.tensor import SparseTensor
from sparse.reference import dense_convolution, random_sites

ONE = (1, 1, 1)


def brute_force(written: Tensor, read: Tensor, offsets: Sequence[tuple[int, int, int]]) -> Tensor:
    """(N_written, K) row of ``read`` at each site + offset; -1 = none."""
    row = {tuple(site): index for index, site in enumerate(read.tolist())}
    table = [
        [row.get((frame, x + dx, y + dy, z + dz), -1) for dx, dy, dz in offsets]
        for frame, x, y, z in written.tolist()
    ]
    return torch.tensor(table).view(len(written), len(offsets))


def unet() -> MinkUNet:
    return MinkUNet(
        stem_channels=4,
        encoder_channels=(4, 6),
        decoder_channels=(6, 4),
        blocks=(1,) * 4,
        kernel_size=5,
    ).eval()


def keys_of(network: MinkUNet) -> list[TableKey]:
    row = torch.zeros(1, 1)
    return tables_read(
        lambda maps: network.forward_sparse(SparseTensor(row, maps)), torch.device("cpu")
    )


def test_a_network_reads_each_of_its_maps_once_and_by_name() -> None:
    with torch.no_grad():
        names = [key.name for key in keys_of(unet())]
    assert names == [
        "level0_k5", "level0_to_1_k2", "level1_k3", "level1_to_2_k2", "level2_k3",
        "level2_to_1_k2", "level1_to_0_k2", "level0_k3",
    ]  # fmt: skip


@given(seed=st.integers(0, 2**31), count=st.integers(1, 80), extent=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_rows_are_where_the_offsets_say(seed: int, count: int, extent: int) -> None:
    """Every table of a network on random sites, in random order and with negative values."""
    generator = torch.Generator().manual_seed(seed)
    sites = random_sites(generator, count, extent)
    network = unet()
    tensor = SparseTensor.of(sites, torch.zeros(len(sites), 1))
    with torch.no_grad():
        keys = keys_of(network)
        network.forward_sparse(tensor)
    levels = [level.coordinates for level in tensor.maps.levels]
    assert len(levels) == 3
    for key in keys:
        wanted = brute_force(levels[key.written], levels[key.read], key.offsets)
        assert torch.equal(key.rows(tensor.maps), wanted), key.name


@pytest.mark.parametrize(
    ("size", "stride", "dilation"),
    [(3, 1, 1), (2, 2, 1), ((3, 1, 2), 1, 1), (3, 1, (1, 2, 1)), (3, 2, 1)],
)
def test_a_convolution_with_a_table_is_a_dense_one(size, stride, dilation) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(1)
    layer = SparseConv3d(3, 5, size, stride, dilation).double()
    sites = random_sites(generator, 150, 4)
    features = torch.randn(len(sites), 3, generator=generator, dtype=torch.float64)
    maps = KernelMaps.of(sites)
    level, kernel_map = layer.connect(maps, 0)
    key = TableKey(0, level, ONE, layer.kernel_size, layer.dilation, layer.convention)
    found = convolve_table(features, layer.kernel, key.rows(maps))
    wanted = dense_convolution(layer, sites, features, maps.levels[level].coordinates)
    torch.testing.assert_close(found, wanted)
    assert sum(kernel_map.pairs_per_weight()) == int((key.rows(maps) != NONE).sum())


def test_a_network_on_tables_is_the_network_on_sites() -> None:
    generator = torch.Generator().manual_seed(2)
    torch.manual_seed(0)
    network = unet().double()
    sites = random_sites(generator, 400, 6)
    features = torch.randn(len(sites), 1, generator=generator, dtype=torch.float64)
    tensor = SparseTensor.of(sites, features)
    with torch.no_grad():
        wanted = network.forward_sparse(tensor).features
        tables = {key: key.rows(tensor.maps) for key in keys_of(network)}
        maps = TableMaps(lookup=tables.__getitem__)
        found = network.forward_sparse(SparseTensor(features, maps)).features
        torch.testing.assert_close(found, wanted)
        moved = {key: rows.roll(1, 0) for key, rows in tables.items()}
        other = TableMaps(lookup=moved.__getitem__)
        wrong = network.forward_sparse(SparseTensor(features, other)).features
    assert (wrong - wanted).abs().max() > 1e-3


def test_no_site_contributes_nothing() -> None:
    features, kernel = torch.randn(4, 3), torch.randn(8, 3, 2)
    rows = torch.full((6, 8), NONE)
    assert torch.equal(convolve_table(features, kernel, rows), torch.zeros(6, 2))


def test_names_tell_dilations_and_directions_apart() -> None:
    key = TableKey(0, 0, ONE, (3, 3, 1), (1, 2, 1), Convention.MINKOWSKI)
    assert key.name == "level0_k3x3x1_d1x2x1"
    assert len(key.offsets) == volume((3, 3, 1))
    assert TableKey(0, 0, ONE, (3, 3, 3), ONE, Convention.MINKOWSKI, True).name == (
        "level0_k3_transposed"
    )


def test_other_conventions_are_refused() -> None:
    layer = SparseConv3d(1, 1, 2, stride=2, convention="torchsparse")
    maps = TableMaps(lookup=lambda key: torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="torchsparse"):
        layer(SparseTensor(torch.zeros(1, 1), maps))
