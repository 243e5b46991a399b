from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lidarssl.backbones.bev import BevGrid
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.voxelnet import VoxelNet, bounded_voxels, slidr_voxelnet
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch

SMALL = {
    "point_range": (-4.8, -4.8, -2.0, 4.8, 4.8, 2.0),
    "voxel_size": (0.3, 0.3, 0.1),
    "channels": (4, 6, 8, 8),
    "trunk_channels": 6,
}
BEV = BevGrid(origin=(-4.0, 2.0), cell=(2.0, 1.0), width=3, height=4)


def cloud(count: int = 200, spread: float = 8.0, seed: int = 0) -> PointBatch:
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 3, generator=generator) - 0.5) * spread
    points[:, 2] *= 0.3
    intensity = torch.rand(count, generator=generator)
    return PointBatch(points, intensity, torch.zeros(count, dtype=torch.int64), 1)


def test_published_sizes() -> None:
    plain = VoxelNet((0, -40, -3, 70.4, 40, 1), (0.05, 0.05, 0.1), added_height=1)
    assert plain.voxelization.shape == (1408, 1600, 41)
    assert (plain.bev.width, plain.bev.height) == (176, 200)
    assert plain.out_channels == 2 * 128
    own = slidr_voxelnet(64)
    assert own.voxelization.shape == (1024, 1024, 40)
    assert (own.bev.width, own.bev.height) == (128, 128)
    assert own.out_channels == 64
    assert own.state_dict()["final.weight"].shape == (64, 1, 1, 1, 128)
    residual = VoxelNet(residual=True, channels=(16, 32, 64, 128)).state_dict()
    assert residual["conv4.2.conv2.bias"].shape == (128,)


def test_points_outside_get_zeros_and_change_nothing() -> None:
    model = VoxelNet(**SMALL).eval()
    points = cloud()
    expected = model(points).features
    far = torch.tensor([[100.0, 0.0, 0.0], [0.0, 0.0, 9.0], [-1e6, 0.0, 0.0]])
    more = PointBatch(
        torch.cat([points.points, far]),
        torch.cat([points.intensity, torch.ones(3)]),
        torch.zeros(203, dtype=torch.int64),
        1,
    )
    found = model(more).features
    assert torch.allclose(found[:200], expected, atol=1e-6)
    assert torch.equal(found[200:], torch.zeros(3, model.out_channels))


def test_radius_drops_the_corners() -> None:
    model = VoxelNet(**SMALL, radius=2.0).eval()
    points = cloud()
    near = points.points[:, :2].norm(dim=1) <= 2
    found = model(points).features
    assert 0 < near.sum() < 200
    assert (found[~near] == 0).all()
    mine = replace(
        points,
        points=points.points[near],
        intensity=points.intensity[near],
        batch=points.batch[near],
    )
    assert torch.allclose(model(mine).features, found[near], atol=1e-6)


def test_a_far_change_of_a_voxel_is_not_seen() -> None:
    """Only what the convolutions reach counts: features are local."""
    wide = SMALL | {"point_range": (-48.0, -4.8, -2.0, 48.0, 4.8, 2.0)}
    model = VoxelNet(**wide).eval()
    points = cloud()
    moved = replace(points, points=points.points + torch.tensor([40.0, 0.0, 0.0]))
    both = PointBatch(
        torch.cat([points.points, moved.points]),
        points.intensity.repeat(2),
        torch.zeros(400, dtype=torch.int64),
        1,
    )
    assert torch.allclose(model(both).features[:200], model(points).features, atol=1e-6)


def test_limits_keep_the_first_points() -> None:
    points = cloud(400, spread=2.0)
    rule = VoxelNet(**SMALL, max_points=2, max_voxels=30).voxelization
    voxels = bounded_voxels(points, rule)
    assert voxels.features.shape[0] == 30
    first = bounded_voxels(points, replace(rule, inputs=PointInputs(("x",)), max_voxels=None))
    rows = {row.item() for row in first.features[:, 0]}
    assert rows <= {row.item() for row in points.points[:, 0]}


def test_map_of_published_order() -> None:
    model = VoxelNet(**SMALL, added_height=8).double().eval()
    heights = model.out_channels // 6
    assert heights == 2
    x = bounded_voxels(cloud(), model.voxelization).tensor()
    x = x.with_features(x.features.double())
    sites = model.forward_sparse(x)
    maps = model.forward_map(x, 1)
    cells = sites.coordinates // torch.tensor([1, *sites.stride])
    for (_, column, row, level), values in zip(cells.tolist(), sites.features, strict=True):
        assert torch.equal(maps[0, level::heights, row, column], values)


def test_normalized_sites_have_length_one() -> None:
    model = VoxelNet(**SMALL, head_channels=5, normalize=True).eval()
    x = bounded_voxels(cloud(), model.voxelization).tensor()
    norm = model.forward_sparse(x).features.norm(dim=1)
    assert torch.allclose(norm[norm > 0], torch.ones(int((norm > 0).sum())))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"voxel_size": (0.3, 0.3, 0.5)}, "height"),
        ({"voxel_size": (0.3, 0.3, -0.1)}, "point_range"),
        ({"max_voxels": 0}, "max_voxels"),
    ],
)
def test_errors_name_the_field(changes: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        VoxelNet(**(SMALL | changes))


def test_reading_a_plane_gives_the_plane() -> None:
    """Bilinear interpolation of a linear function is exact between the outermost centres."""
    centres = BEV.positions().double()
    slope = torch.tensor([0.7, -1.3, 0.0], dtype=torch.float64)
    maps = (centres @ slope).view(1, 1, BEV.height, BEV.width)
    points = torch.tensor([[-2.9, 2.6], [-0.4, 4.1], [0.9, 5.4]], dtype=torch.float64)
    batch = torch.zeros(3, dtype=torch.int64)
    expected = points @ slope[:2]
    assert torch.allclose(BEV.read(maps, points, batch)[:, 0], expected, atol=1e-6)
    shifted = BEV.read(maps, points - torch.tensor([1.0, 0.5]), batch, "corners")[:, 0]
    assert torch.allclose(shifted, expected, atol=1e-6)


def test_reading_beyond_the_border() -> None:
    maps = torch.ones(1, 1, BEV.height, BEV.width)
    points = torch.tensor([[-3.9, 2.1], [1.9, 5.9], [50.0, 3.0], [-50.0, 3.0]])
    batch = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(BEV.read(maps, points, batch), torch.ones(4, 1))
    assert torch.equal(BEV.read(maps, points, batch, "corners")[1:], torch.zeros(3, 1))


def test_positions_and_cells() -> None:
    positions = BEV.positions()
    assert positions[:4].tolist() == [[-3, 2.5, 0], [-1, 2.5, 0], [1, 2.5, 0], [-3, 3.5, 0]]
    cells = BEV.cell_of(positions, torch.ones(12, dtype=torch.int64))
    assert cells.tolist() == list(range(12, 24))
    stretched = BEV.positions(stretched=True)
    assert stretched[0].tolist() == [-4, 2, 0]
    assert stretched[-1].tolist() == [2, 6, 0]
    assert BEV.cell_of(torch.tensor([[99.0, -99.0, 0.0]]), torch.tensor([0])).tolist() == [2]
