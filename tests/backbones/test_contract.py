"""What every backbone promises. A new one is found by itself; large ones get small arguments."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from dataclasses import replace
from typing import Any

import pytest
import torch

import lidarssl.backbones
from lidarssl.backbones.base import Backbone
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.frame import PointBatch, PointFeatures

GRID: dict[str, Any] = {
    "point_range": (-4.8, -4.8, -2.0, 4.8, 4.8, 2.0),
    "voxel_size": (0.3, 0.3, 0.1),
}
SMALL: dict[str, dict[str, Any]] = {
    "MinkUNet": {
        "inputs": PointInputs(("intensity", "z", "one"), reduce="mean"),
        "rule": "slidr_cartesian",
        "voxel_size": 0.5,
        "stem_channels": 4,
        "encoder_channels": (6, 8, 8),
        "decoder_channels": (8, 6, 6),
        "blocks": (1,) * 6,
        "head_channels": 5,
    },
    "Spvcnn": {
        "inputs": PointInputs(("intensity", "z", "one"), reduce="mean"),
        "voxel_size": 0.5,
        "width": 0.5,
        "stem_channels": 8,
        "encoder_channels": (12, 16, 16),
        "decoder_channels": (16, 12, 12),
        "blocks": (1,) * 6,
    },
    "VoxelNet": {
        **GRID,
        "inputs": PointInputs(("x", "y", "z", "intensity"), reduce="mean"),
        "channels": (4, 6, 8, 8),
        "trunk_channels": 6,
    },
    "Second": {
        **GRID,
        "inputs": PointInputs(("x", "y", "z", "intensity"), reduce="mean"),
        "channels": (4, 6, 8, 8),
        "trunk_channels": 6,
        "layers": (1, 1),
        "plane_channels": (6, 8),
        "up_channels": (5, 5),
    },
    "WaffleIron": {
        "channels": 8,
        "depth": 4,
        "fov": ((-4.0, -4.0, -1.0), (4.0, 4.0, 1.5)),
        "grids": ((8, 8), (8, 4), (8, 4)),
        "neighbours": 5,
        "voxel_size": 0.001,
        "inputs": PointInputs(("intensity", "x", "y", "z", "radius")),
    },
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Second of voxels": ("Second", SMALL["Second"] | {"tokens": "voxels"}),
}
"""More arguments of a class, where they change what its tokens are."""


# The batch norm that follows takes it out again.
WITHOUT_EFFECT = ("embed.conv2.0.bias",)


def backbones() -> list[type[Backbone]]:
    for module in pkgutil.walk_packages(lidarssl.backbones.__path__, "lidarssl.backbones."):
        importlib.import_module(module.name)
    found, pending = [], [Backbone]
    while pending:
        for cls in pending.pop().__subclasses__():
            pending.append(cls)
            if cls.__module__.startswith("lidarssl.") and not inspect.isabstract(cls):
                found.append(cls)
    return sorted(found, key=lambda cls: cls.__name__)


def configurations() -> dict[str, tuple[type[Backbone], dict[str, Any]]]:
    """Class and arguments of everything that keeps the contract."""
    classes = {cls.__name__: cls for cls in backbones()}
    small = {name: (cls, SMALL.get(name, {})) for name, cls in classes.items()}
    return small | {name: (classes[cls], kwargs) for name, (cls, kwargs) in VARIANTS.items()}


def cloud(seed: int, sizes: tuple[int, ...] = (150, 90)) -> PointBatch:
    """Points on a rough ground within 8 m, two frames."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    points = torch.rand(count, 3, generator=generator) * 8 - 4
    points[:, 2] *= 0.3
    return PointBatch(
        points=points,
        intensity=torch.rand(count, generator=generator),
        batch=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        batch_size=len(sizes),
    )


def part(points: PointBatch, frame: int) -> PointBatch:
    mine = points.batch == frame
    batch = torch.zeros(int(mine.sum()), dtype=torch.int64)
    return PointBatch(points.points[mine], points.intensity[mine], batch, 1)


@pytest.fixture(params=configurations())
def backbone(request: pytest.FixtureRequest) -> Backbone:
    cls, arguments = configurations()[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(**arguments)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def test_minkunet_is_found() -> None:
    assert "MinkUNet" in [cls.__name__ for cls in backbones()]


def test_shapes(backbone: Backbone) -> None:
    points = cloud(0)
    out = backbone(points)
    assert isinstance(out, PointFeatures)
    tokens = out.features.shape[0]
    assert out.features.shape == (tokens, backbone.out_channels)
    assert out.positions.shape == (tokens, 3)
    assert out.batch.shape == (tokens,)
    assert out.at_points().shape == (240, backbone.out_channels)
    assert torch.equal(out.batch[out.token_of_point], points.batch)
    assert torch.isfinite(out.features).all()
    assert (out.positions[out.token_of_point] - points.points).norm(dim=1).max() < 4


def test_gradients_reach_every_parameter(backbone: Backbone) -> None:
    out = backbone(cloud(1)).features
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        if name not in WITHOUT_EFFECT:
            assert parameter.grad.abs().max() > 0, name


def test_order_of_points_does_not_matter(backbone: Backbone) -> None:
    backbone.eval()
    points = cloud(2)
    generator = torch.Generator().manual_seed(0)
    order = torch.cat(
        [torch.randperm(150, generator=generator), 150 + torch.randperm(90, generator=generator)]
    )
    shuffled = replace(points, points=points.points[order], intensity=points.intensity[order])
    expected, actual = backbone(points).at_points()[order], backbone(shuffled).at_points()
    assert torch.allclose(actual, expected, atol=1e-5 * expected.abs().max().item())


def test_batch_of_two_equals_two_singles(backbone: Backbone) -> None:
    backbone.eval()
    points = cloud(3)
    together = backbone(points).at_points()
    for frame in range(2):
        alone = backbone(part(points, frame)).at_points()
        expected = together[points.batch == frame]
        assert torch.allclose(alone, expected, atol=1e-5 * expected.abs().max().item())


def test_prepared_ahead_gives_the_same(backbone: Backbone) -> None:
    points = cloud(4)
    sent = pickle.loads(pickle.dumps(backbone.prepare(points)))
    backbone.eval()
    expected, actual = backbone(points), backbone(sent.to("cpu"))
    assert torch.equal(actual.features, expected.features)
    assert torch.equal(actual.positions, expected.positions)
    assert torch.equal(actual.token_of_point, expected.token_of_point)


def test_same_input_same_output(backbone: Backbone) -> None:
    backbone.eval()
    points = cloud(5)
    assert torch.equal(backbone(points).features, backbone(points).features)


@pytest.mark.parametrize("sizes", [(60, 0), (0, 60), (1, 60), (1, 1), (0, 0)])
@pytest.mark.parametrize("training", [True, False])
def test_nearly_empty_frames(backbone: Backbone, sizes: tuple[int, ...], training: bool) -> None:
    backbone.train(training)
    points = cloud(6, sizes)
    out = backbone(points)
    assert out.at_points().shape == (sum(sizes), backbone.out_channels)
    assert torch.isfinite(out.features).all()
    out.features.sum().backward()
    assert all(torch.isfinite(v).all() for v in backbone.state_dict().values())
