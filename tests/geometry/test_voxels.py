"""Voxel rules against a dictionary that visits points one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.geometry.voxels import cell_coordinates, sorted_voxels, voxel_keys, voxelize

RULES = ("slidr_cylindrical", "slidr_cartesian", "also", "nclr_me", "nclr_torchsparse")
SORTED = ("also", "nclr_torchsparse")


def cells_by_numpy(points: np.ndarray, rule: str, size: float) -> np.ndarray:
    points = points.astype(np.float32)
    divisor = np.float32(size)
    if rule == "slidr_cylindrical":
        x, y, z = points.T
        rho = np.floor(np.sqrt(x * x + y * y) / divisor)
        phi = np.floor(np.arctan2(y, x) * np.float32(180) / np.float32(math.pi))
        return np.stack([rho, phi, np.floor(z / divisor)], 1).astype(np.int64)
    scaled = points / divisor
    if rule == "slidr_cartesian":
        return np.floor(scaled).astype(np.int64)
    if rule == "nclr_torchsparse":
        return np.floor(scaled - scaled.min(0)).astype(np.int64)
    rounded = np.round(scaled).astype(np.int64)
    return rounded - rounded.min(0)


def by_dictionary(cells: np.ndarray, in_order: bool) -> tuple[list, list, list]:
    first: dict[tuple[int, ...], int] = {}
    for row, cell in enumerate(map(tuple, cells.tolist())):
        first.setdefault(cell, row)
    voxels = sorted(first) if in_order else list(first)
    place = {cell: number for number, cell in enumerate(voxels)}
    inverse = [place[cell] for cell in map(tuple, cells.tolist())]
    return [list(cell) for cell in voxels], [first[cell] for cell in voxels], inverse


def cloud(seed: int, count: int = 2000, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, 3), generator=generator) * spread


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [0.1, 0.3])
def test_equals_a_dictionary(rule: str, size: float) -> None:
    points = cloud(0)
    points[-300:] = points[:300]
    # The azimuth is a float32 arc tangent, whose last bit is the library's: stay off the borders.
    if rule == "slidr_cylindrical":
        azimuth = torch.atan2(points[:, 1].double(), points[:, 0].double()).rad2deg()
        points = points[((azimuth - azimuth.round()).abs() > 1e-3)]
    voxels = voxelize(points, rule, size)
    coordinates, index, inverse = by_dictionary(
        cells_by_numpy(points.numpy(), rule, size), rule in SORTED
    )
    assert voxels.coordinates.tolist() == coordinates
    assert voxels.index.tolist() == index
    assert voxels.inverse.tolist() == inverse


@given(
    st.lists(st.tuples(*[st.floats(-50, 50, width=32)] * 3), min_size=1, max_size=40),
    st.sampled_from(RULES),
)
def test_every_point_is_in_its_voxel(points: list, rule: str) -> None:
    voxels = voxelize(torch.tensor(points), rule, 0.5)
    count = len(voxels.coordinates)
    assert len(voxels.coordinates.unique(dim=0)) == count
    assert voxels.inverse[voxels.index].tolist() == list(range(count))
    first = [voxels.inverse.tolist().index(number) for number in range(count)]
    assert voxels.index.tolist() == first


def cells_row_by_row(points: Tensor, rule: str, size: float) -> Tensor:
    """The same arithmetic on (N, 3) rows, bit by bit."""
    divisor = torch.tensor([size, 1.0 if rule == "slidr_cylindrical" else size, size])
    if rule == "slidr_cylindrical":
        x, y, z = points.unbind(1)
        half_turn, pi = points.new_tensor([180.0, torch.pi])
        points = torch.stack([(x * x + y * y).sqrt(), torch.atan2(y, x) * half_turn / pi, z], 1)
    if rule == "waffleiron":
        return ((points - points.amin(0)) / divisor).floor().long()
    scaled = points / divisor
    if rule == "nclr_torchsparse":
        return (scaled - scaled.amin(0)).floor().long()
    if rule.startswith("slidr"):
        return scaled.floor().long()
    cells = scaled.round().long()
    return cells - cells.amin(0)


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 300),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.1, 3.0, 80.0, 1e4, 1e7]),
    rule=st.sampled_from([*RULES, "waffleiron"]),
    size=st.sampled_from([0.05, 0.1, 0.3]),
)
def test_same_as_unique_rows_of_the_plain_cells(
    count: int, seed: int, spread: float, rule: str, size: float
) -> None:
    points = cloud(seed, count, spread)
    points = torch.cat([points, points[: count // 3]])
    cells = cells_row_by_row(points, rule, size)
    assert torch.equal(cell_coordinates(points, rule, size), cells)
    found, index, inverse = np.unique(cells.numpy(), axis=0, return_index=True, return_inverse=True)
    sites, groups = sorted_voxels(points, rule, size)
    assert torch.equal(sites.t(), torch.from_numpy(found))
    assert groups.first.tolist() == index.tolist()
    assert groups.of_rows().tolist() == inverse.reshape(-1).tolist()
    keys = voxel_keys(points, rule, size)
    assert keys.unique(return_inverse=True)[1].tolist() == inverse.reshape(-1).tolist()
    order = np.arange(len(index)) if rule in (*SORTED, "waffleiron") else np.argsort(index)
    voxels = voxelize(points, rule, size)
    assert torch.equal(voxels.coordinates, torch.from_numpy(found[order]))
    assert voxels.index.tolist() == index[order].tolist()
    assert voxels.inverse.tolist() == np.argsort(order)[inverse.reshape(-1)].tolist()


def test_three_sizes_divide_their_own_axes() -> None:
    points = torch.tensor([[1.0, 1.0, 1.0]])
    assert voxelize(points, "slidr_cartesian", (0.5, 0.25, 0.125)).coordinates.tolist() == [
        [2, 4, 8]
    ]
    # 45 degrees in cells of 10 degrees.
    assert voxelize(points, "slidr_cylindrical", (0.5, 10.0, 1.0)).coordinates.tolist() == [
        [2, 4, 1]
    ]


def test_hand_checked_cylinder_cell() -> None:
    points = torch.tensor([[-1.0, -1e-6, 0.05], [-1.0, 0.0, 0.05]])
    found = voxelize(points, "slidr_cylindrical", 0.1).coordinates
    assert found[:, 1].tolist() == [-180, 180]
    assert found[:, 2].tolist() == [0, 0]


@pytest.mark.parametrize("rule", RULES)
def test_empty_cloud(rule: str) -> None:
    voxels = voxelize(torch.zeros((0, 3)), rule, 0.1)
    assert voxels.coordinates.shape == (0, 3)
    assert voxels.index.shape == voxels.inverse.shape == (0,)
    assert voxels.inverse.dtype == voxels.coordinates.dtype == torch.int64


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_unusable_coordinates_are_refused(rule: str, value: float) -> None:
    points = cloud(1, 10)
    points[7, 2] = value
    with pytest.raises(DataError, match="points"):
        voxelize(points, rule, 0.1)


def test_huge_spans_do_not_overflow() -> None:
    # The product of the spans is 6e28, beyond int64.
    far = 1e8
    points = torch.tensor([[far, -far, far], [-far, far, -far], [0, 0, 0], [far, -far, far]])
    voxels = voxelize(points, "slidr_cartesian", 0.1)
    assert voxels.inverse.tolist() == [0, 1, 2, 0]
    assert voxelize(points, "also", 0.1).index.tolist() == [1, 2, 0]


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, (0.1, 0.1)])
def test_bad_sizes_are_refused(size: float) -> None:
    with pytest.raises(ConfigError, match="voxel size"):
        voxelize(cloud(0, 5), "also", size)


def test_unknown_rule_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="slidr_cartesian"):
        voxelize(cloud(0, 5), "slidr_cartesia", 0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rule", RULES[1:])
def test_devices_agree(rule: str) -> None:
    # Not the cylinder: the arc tangents of two devices differ in the last bit.
    points = cloud(3)
    here, there = voxelize(points, rule, 0.1), voxelize(points.cuda(), rule, 0.1)
    assert torch.equal(here.coordinates, there.coordinates.cpu())
    assert torch.equal(here.index, there.index.cpu())
    assert torch.equal(here.inverse, there.inverse.cpu())


@pytest.mark.parametrize("step", [1.0, 0.25, 3.0])
def test_azimuths_at_the_borders_of_cells_are_those_of_one_point_alone(step: float) -> None:
    # Whole columns may be computed by another arc tangent than single points.
    generator = torch.Generator().manual_seed(0)
    azimuth = torch.randint(-int(180 / step), int(180 / step), (20_000,), generator=generator)
    radius = 1 + 60 * torch.rand(20_000, generator=generator, dtype=torch.float64)
    angle = (azimuth * step).double().deg2rad()
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), radius], 1).float()
    found = cell_coordinates(points, "slidr_cylindrical", (0.1, step, 0.1))
    half_turn, pi = points.new_tensor([180.0, torch.pi])
    single = torch.stack([torch.atan2(y, x) for x, y, _ in points.unbind()])
    expected = (single * half_turn / pi / points.new_tensor(step)).floor().long()
    assert torch.equal(found[:, 1], expected)
    assert len((expected - azimuth).unique()) == 2
