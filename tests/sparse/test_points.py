from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.levels import Level
from lidarssl.sparse.maps import KernelMaps
from lidarssl.sparse.points import PointVoxelMaps, blend, point_to_voxel, voxel_to_point
from lidarssl.sparse.tensor import SparseTensor
from sparse.reference import random_sites

strides = st.one_of(st.integers(1, 4).map(lambda s: (s,) * 3), st.tuples(*[st.integers(1, 4)] * 3))


def scene(
    seed: int, stride: tuple[int, int, int], integer: bool = False
) -> tuple[Level, Tensor, Tensor]:
    """Voxels in random order, and points inside, beside and far from them, of two frames."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.tensor(stride)
    sites = random_sites(generator, 40, 2)
    sites[:, 1:] *= step
    batch = torch.randint(0, 2, (50,), generator=generator)
    points = (torch.rand(50, 3, generator=generator, dtype=torch.float64) * 8 - 4) * step
    points[0], points[1] = 1000.0, -1000.0
    return KernelMaps.of(sites, stride).levels[0], points.floor() if integer else points, batch


def features_of(count: int, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, channels, generator=generator, dtype=torch.float64)


def interpolated(level: Level, features: Tensor, points: Tensor, batch: Tensor) -> Tensor:
    """By the rule, one point and one corner after the other."""
    voxels = {tuple(site): row for row, site in enumerate(level.coordinates.tolist())}
    rows = []
    for point, frame in zip(points.tolist(), batch.tolist(), strict=True):
        total, value = 0.0, torch.zeros(features.shape[1], dtype=torch.float64)
        low = [math.floor(p / s) * s for p, s in zip(point, level.stride, strict=True)]
        part = [(p - c) / s for p, c, s in zip(point, low, level.stride, strict=True)]
        for bits in itertools.product((0, 1), repeat=3):
            corner = [c + s * bit for c, s, bit in zip(low, level.stride, bits, strict=True)]
            row = voxels.get((frame, *corner))
            if row is not None:
                weight = math.prod(f if bit else 1 - f for f, bit in zip(part, bits, strict=True))
                total, value = total + weight, value + weight * features[row]
        rows.append(value / (total + 1e-8))
    return torch.stack(rows)


def averaged(level: Level, features: Tensor, points: Tensor, batch: Tensor) -> Tensor:
    rows = []
    for frame, *low in level.coordinates.tolist():
        inside = [
            row
            for row, (point, owner) in enumerate(zip(points.tolist(), batch.tolist(), strict=True))
            if owner == frame
            and all(c <= p < c + s for p, c, s in zip(point, low, level.stride, strict=True))
        ]
        rows.append(features[inside].mean(0) if inside else torch.zeros_like(features[0]))
    return torch.stack(rows)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), stride=strides, integer=st.booleans())
def test_interpolation_equals_the_rule(seed, stride, integer):
    level, points, batch = scene(seed, stride, integer)
    features = features_of(level.coordinates.shape[0])
    expected = interpolated(level, features, points, batch)
    actual = blend(features, voxel_to_point(level, points, batch))
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    assert torch.equal(actual[:2], torch.zeros(2, 2, dtype=torch.float64))
    if integer:
        actual = blend(features, voxel_to_point(level, points.long(), batch))
        assert torch.allclose(actual, expected, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), stride=strides)
def test_mean_equals_the_rule(seed, stride):
    level, points, batch = scene(seed, stride)
    features = features_of(50)
    actual = blend(features, point_to_voxel(level, points, batch))
    assert torch.allclose(actual, averaged(level, features, points, batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", [voxel_to_point, point_to_voxel])
def test_gradients_by_differences(way):
    level, points, batch = scene(3, (2, 2, 2))
    weights = way(level, points[:12], batch[:12])
    count = level.coordinates.shape[0] if way is voxel_to_point else 12
    features = features_of(count, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: blend(x, weights), features)
    assert torch.autograd.gradgradcheck(lambda x: blend(x, weights), features)


def test_a_point_on_a_voxel_gets_its_features():
    level, _, _ = scene(4, (3, 3, 3))
    features = features_of(level.coordinates.shape[0])
    weights = voxel_to_point(level, level.coordinates[:, 1:], level.coordinates[:, 0])
    assert torch.equal(blend(features.float(), weights), features.float())


def test_between_two_voxels_there_is_no_shift():
    level = KernelMaps.of(torch.tensor([[0, 0, 0, 0], [0, 4, 0, 0]]), (4, 4, 4)).levels[0]
    points = torch.tensor([[1.0, 0, 0], [3.0, 0, 0], [5.0, 0, 0], [-1.0, 0, 0]])
    weights = voxel_to_point(level, points, torch.zeros(4, dtype=torch.int64))
    assert blend(torch.tensor([[0.0], [8.0]]), weights)[:, 0].tolist() == [2.0, 6.0, 8.0, 0.0]


def test_far_frames_of_points():
    """Extents beyond 63-bit keys."""
    level, points, batch = scene(5, (2, 2, 2))
    features = features_of(level.coordinates.shape[0])
    expected = blend(features, voxel_to_point(level, points, batch))
    far = torch.tensor([[2.0**40, -(2.0**40), 2.0**40]], dtype=torch.float64)
    apart = torch.cat([points, far])
    actual = blend(features, voxel_to_point(level, apart, torch.cat([batch, batch[:1]])))
    assert torch.equal(actual[:-1], expected)
    assert torch.equal(actual[-1], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_summed_in_float32(dtype):
    level, points, batch = scene(6, (2, 2, 2))
    features = features_of(level.coordinates.shape[0]).to(dtype).requires_grad_()
    weights = voxel_to_point(level, points, batch)
    out = blend(features, weights)
    assert out.dtype == dtype
    assert torch.equal(out, blend(features.float(), weights).to(dtype))
    out.float().sum().backward()
    assert features.grad.dtype == dtype


def test_nothing_in_nothing_out():
    level, points, batch = scene(7, (1, 1, 1))
    none = KernelMaps.of(torch.empty(0, 4, dtype=torch.int64)).levels[0]
    empty = torch.empty(0, 2, requires_grad=True)
    out = blend(empty, voxel_to_point(none, points, batch))
    assert torch.equal(out, torch.zeros(50, 2))
    out.sum().backward()
    assert empty.grad.shape == (0, 2)
    voxels = blend(empty, point_to_voxel(level, points[:0], batch[:0]))
    assert torch.equal(voxels, torch.zeros(level.coordinates.shape[0], 2))
    assert blend(torch.ones(50, 2), point_to_voxel(none, points, batch)).shape == (0, 2)


@pytest.mark.parametrize(
    ("points", "batch"),
    [
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 3), torch.zeros(2, dtype=torch.int64)),
        (torch.tensor([[0.0, math.nan, 0.0]]), torch.zeros(1, dtype=torch.int64)),
        (torch.tensor([[0.0, 0.0, math.inf]]), torch.zeros(1, dtype=torch.int64)),
    ],
)
def test_bad_points_are_refused(points, batch):
    level, _, _ = scene(8, (1, 1, 1))
    with pytest.raises(DataError, match="points"):
        voxel_to_point(level, points, batch)
    with pytest.raises(DataError, match="points"):
        point_to_voxel(level, points, batch)


def coarse(channels: int = 2) -> tuple[SparseTensor, SparseTensor]:
    """A fine tensor, and one of stride 4 from it, on maps with points."""
    sites = random_sites(torch.Generator().manual_seed(9), 80, 6)
    maps = PointVoxelMaps.around(KernelMaps.of(sites))
    fine = SparseTensor(features_of(sites.shape[0], channels), maps)
    down = SparseConv3d(channels, channels, 2, 2).double()
    return fine, down(down(fine))


def test_voxels_as_points():
    fine, voxels = coarse()
    to_points, to_voxels = fine.maps.between(voxels.level)
    level = fine.maps.levels[voxels.level]
    points, batch = fine.coordinates[:, 1:], fine.coordinates[:, 0]
    expected = interpolated(level, voxels.features.detach(), points, batch)
    assert torch.allclose(blend(voxels.features, to_points), expected, atol=1e-5)
    expected = averaged(level, fine.features, points, batch)
    assert torch.allclose(blend(fine.features, to_voxels), expected, atol=1e-5)
    assert fine.maps.between(voxels.level)[0] is to_points
    assert PointVoxelMaps.around(fine.maps) is fine.maps


def test_maps_survive_a_pickle():
    fine, voxels = coarse()
    expected = blend(voxels.features, fine.maps.between(voxels.level)[0])
    sent = pickle.loads(pickle.dumps(fine.maps))
    assert isinstance(sent, PointVoxelMaps)
    assert torch.equal(blend(voxels.features, sent.blends[voxels.level][0]), expected)
    assert torch.equal(sent.levels[0].coordinates, fine.coordinates)
