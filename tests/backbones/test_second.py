from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import pytest
import torch

from backbones.test_voxelnet import SMALL, cloud
from lidarssl.backbones.bev import Reading
from lidarssl.backbones.second import BevConvolutions, Second, bevnet
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch

PLANE = {"layers": (1, 1), "plane_channels": (6, 8), "up_channels": (5, 4)}


def test_published_sizes() -> None:
    model = Second()
    assert (model.bev.width, model.bev.height) == (176, 200)
    assert model.out_channels == 512
    assert model.columns
    state = model.state_dict()
    assert state["backbone_2d.blocks.0.1.weight"].shape == (128, 256, 3, 3)
    assert state["backbone_2d.deblocks.1.0.weight"].shape == (256, 256, 2, 2)
    assert {key.split(".")[0] for key in state} == {"backbone_3d", "backbone_2d"}
    assert bevnet().state_dict()["final.weight"].shape == (64, 512, 1, 1)
    assert (bevnet().bev.width, bevnet().bev.height) == (256, 256)
    assert not bevnet().columns


def test_tokens_are_the_cells_in_row_major_order() -> None:
    model = Second(**SMALL, **PLANE).eval()
    points = cloud()
    out = model(points)
    cells = model.bev.width * model.bev.height
    assert out.features.shape == (cells, 9)
    assert (out.positions[:, 2] == 0).all()
    offset = (out.positions[out.token_of_point] - points.points)[:, :2].abs()
    half = torch.tensor(model.bev.cell) / 2
    assert (offset <= half + 1e-5).all()
    x = model.backbone_3d.voxels(points).tensor()
    maps = model.forward_map(x, 1)
    assert torch.equal(maps[0].flatten(1).t(), out.features)


def test_a_point_outside_has_the_nearest_cell() -> None:
    model = Second(**SMALL, **PLANE).eval()
    points = PointBatch(
        torch.tensor([[1e5, -1e5, 0.0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), 1
    )
    out = model(points)
    assert out.token_of_point.tolist() == [model.bev.width - 1]
    assert torch.isfinite(out.at_points()).all()


def test_stretched_positions_move_tokens_only() -> None:
    model, other = Second(**SMALL, **PLANE).eval(), Second(**SMALL, **PLANE, positions="stretched")
    other.load_state_dict(model.state_dict())
    one, two = model(cloud()), other.eval()(cloud())
    assert torch.equal(one.features, two.features)
    assert torch.equal(one.token_of_point, two.token_of_point)
    assert two.positions[0].tolist() == pytest.approx([-4.8, -4.8, 0])
    assert one.positions[0].tolist() == pytest.approx([-3.6, -3.6, 0])


def test_plane_of_odd_size_keeps_its_size() -> None:
    plane = BevConvolutions(3, (1, 0), (1, 2), (4, 5), (2, 3)).eval()
    assert plane(torch.zeros(2, 3, 7, 5)).shape == (2, 5, 7, 5)
    assert plane.out_channels == 5


def test_order_of_frames() -> None:
    model = Second(**SMALL, **PLANE).eval()
    first, second = cloud(seed=1), cloud(120, seed=2)
    both = PointBatch(
        torch.cat([first.points, second.points]),
        torch.cat([first.intensity, second.intensity]),
        torch.cat([first.batch, second.batch + 1]),
        2,
    )
    out, alone = model(both), model(second)
    cells = model.bev.width * model.bev.height
    assert torch.allclose(out.features[cells:], alone.features, atol=1e-6)
    assert torch.equal(out.token_of_point[200:], alone.token_of_point + cells)


def test_a_prepared_batch_of_another_grid_is_not_used() -> None:
    model = Second(**SMALL, **PLANE).eval()
    other = Second(**(SMALL | {"voxel_size": (0.3, 0.3, 0.15)}), **PLANE)
    points = cloud()
    foreign = replace(points, prepared=other.prepare(points).prepared)
    assert torch.equal(model(foreign).features, model(points).features)


def mixed_frames() -> PointBatch:
    """Two frames of one grid, with points outside of it."""
    points = torch.cat([cloud(spread=12, seed=1).points, cloud(120, spread=12, seed=2).points])
    intensity = torch.linspace(0, 1, 320)
    return PointBatch(points, intensity, torch.arange(320) // 200, 2)


@pytest.mark.parametrize("max_points", [None, 2])
@pytest.mark.parametrize("max_voxels", [None, 30])
def test_voxels_stand_at_the_mean_of_their_points(
    max_points: int | None, max_voxels: int | None
) -> None:
    limits = {"max_points": max_points, "max_voxels": max_voxels}
    coarse = SMALL | {"voxel_size": (1.2, 1.2, 0.1)}
    model = Second(**coarse, **PLANE, **limits, tokens="voxels").eval()
    batch = mixed_frames()
    out = model(batch)
    members: dict[tuple[int, ...], list[int]] = {}
    for row, (point, frame) in enumerate(
        zip(batch.points.tolist(), batch.batch.tolist(), strict=True)
    ):
        low, size = coarse["point_range"][:3], coarse["voxel_size"]
        cell = tuple(math.floor((p - a) / s) for p, a, s in zip(point, low, size, strict=True))
        if all(0 <= c < n for c, n in zip(cell, (8, 8, 40), strict=True)):
            members.setdefault((frame, *cell), []).append(row)
    if max_voxels is not None:
        kept = [[c for c in members if c[0] == frame][:max_voxels] for frame in range(2)]
        members = {cell: members[cell] for cell in chain(*kept)}
    assert max(map(len, members.values())) > 1
    alone = set(range(320)) - set(chain(*members.values()))
    assert alone
    assert out.features.shape == (len(members) + len(alone), 9)
    for token, cell in enumerate(sorted(members)):
        mean = batch.points[members[cell][:max_points]].double().mean(0)
        assert torch.allclose(out.positions[token].double(), mean, atol=1e-5)
        assert out.batch[token] == cell[0]
        assert (out.token_of_point[members[cell]] == token).all()
    assert out.token_of_point[sorted(alone)].tolist() == list(
        range(len(members), len(out.features))
    )
    assert torch.equal(out.positions[len(members) :], batch.points[sorted(alone)])
    assert (out.features[len(members) :] == 0).all()


@pytest.mark.parametrize("reading", ["centers", "corners"])
def test_voxels_read_the_map_where_they_are(reading: Reading) -> None:
    model = Second(**SMALL, **PLANE, tokens="voxels", reading=reading).eval()
    batch = mixed_frames()
    out = model(batch)
    maps = model.forward_map(model.backbone_3d.voxels(batch).tensor(), 2).double()
    inside = (out.features != 0).any(1)
    shift = 0.5 if reading == "centers" else 0.0
    last = torch.tensor([model.bev.width - 1, model.bev.height - 1])
    checked = 0
    for token in inside.nonzero()[:, 0].tolist():
        place = (out.positions[token, :2].double() + 4.8) / 2.4 - shift
        if (place < 0).any() or (place > last).any():
            continue
        checked += 1
        (x, y), (u, v) = place.floor().long().tolist(), place.frac().tolist()
        expected = sum(
            weight * maps[out.batch[token], :, min(y + j, int(last[1])), min(x + i, int(last[0]))]
            for i, j, weight in (
                (0, 0, (1 - u) * (1 - v)),
                (1, 0, u * (1 - v)),
                (0, 1, (1 - u) * v),
                (1, 1, u * v),
            )
        )
        assert torch.allclose(out.features[token].double(), expected, atol=1e-5)
    assert checked > 50


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match="layers, strides"):
        Second(**SMALL, layers=(1,), plane_channels=(6, 8), up_channels=(5, 4))
