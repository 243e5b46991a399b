from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.spvcnn import Spvcnn
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch
from lidarssl.sparse.tensor import SparseTensor

SMALL: dict[str, Any] = {
    "stem_channels": 4,
    "encoder_channels": (6, 8, 10, 12),
    "decoder_channels": (12, 10, 8, 6),
    "blocks": (1,) * 8,
}


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def voxels(seed: int = 0, count: int = 300, extent: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sites = torch.randint(-extent, extent, (count, 4), generator=generator)
    sites[:, 0] = sites[:, 0] % 2
    sites[:, 3] = sites[:, 3] % 4
    sites = torch.unique(sites, dim=0)
    features = torch.randn(sites.shape[0], 1, generator=generator, dtype=torch.float64)
    return sites, features


def test_sizes_of_the_published_networks() -> None:
    """With the linear head of 17 classes of nuScenes."""
    for width, expected in ((1.0, 21_775_217), (0.5, 5_447_873)):
        model = Spvcnn(width=width, head_channels=17)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert model.conv0p1s1_1.kernel.shape == (27, 16, 16)
    assert model.point_transforms[0][0].weight.shape == (128, 16)
    assert model.point_transforms[2][1].bn.weight.shape == (48,)
    assert Spvcnn().out_channels == 96


def interpolate(values: dict[tuple[int, ...], Tensor], site: tuple[int, ...], s: int) -> Tensor:
    """From voxels of stride s at one integer site, over a dictionary."""
    frame, *point = site
    low = [p // s * s for p in point]
    total: Any = 0
    weights = 0.0
    for bits in itertools.product((0, 1), repeat=3):
        key = (frame, *(c + s * b for c, b in zip(low, bits, strict=True)))
        if key in values:
            part = [(p - c) / s for p, c in zip(point, low, strict=True)]
            weight = math.prod(f if b else 1 - f for f, b in zip(part, bits, strict=True))
            total, weights = total + weight * values[key], weights + weight
    return total / weights


def exchange(model: Spvcnn, number: int, z: Tensor, fine: Tensor, x: SparseTensor) -> Tensor:
    """The points after they met the voxels ``x``, row by row."""
    linear, norm = model.point_transforms[number]
    z = torch.relu(norm.bn(linear(z)))
    sites = [tuple(row) for row in x.coordinates.tolist()]
    values = dict(zip(sites, x.features, strict=True))
    rows = [interpolate(values, tuple(site), x.stride[0]) for site in fine.tolist()]
    return z + torch.stack(rows)


def mean_of(z: Tensor, fine: Tensor, x: SparseTensor) -> Tensor:
    stride = torch.tensor((1, *x.stride))
    low = torch.div(fine, stride, rounding_mode="floor") * stride
    inside = [(low == site).all(1) for site in x.coordinates]
    return torch.stack([z[mask].mean(0) for mask in inside])


def test_equals_the_published_order_of_steps() -> None:
    """The network written out, its point branch over dictionaries, in float64."""
    model = Spvcnn(**SMALL).double().eval()
    fine, features = voxels(count=120, extent=12)
    x = SparseTensor.of(fine, features)
    stage = model._apply_stage
    with torch.no_grad():
        x0 = model._apply_stem(x)
        x1 = stage(x0, model._encoder[0])
        x2 = stage(x1, model._encoder[1])
        x3 = stage(x2, model._encoder[2])
        x4 = stage(x3, model._encoder[3])
        z1 = exchange(model, 0, x0.features, fine, x4)
        y1 = stage(x4.with_features(mean_of(z1, fine, x4)), model._decoder[0], x3)
        y2 = stage(y1, model._decoder[1], x2)
        z2 = exchange(model, 1, z1, fine, y2)
        y3 = stage(y2.with_features(mean_of(z2, fine, y2)), model._decoder[2], x1)
        y4 = stage(y3, model._decoder[3], x0)
        expected = exchange(model, 2, z2, fine, y4)
        actual = model.forward_sparse(SparseTensor.of(fine, features)).features
    assert torch.allclose(actual, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_moving_by_the_total_stride_changes_nothing() -> None:
    model = Spvcnn(**SMALL).double().eval()
    sites, features = voxels()
    expected = model.forward_sparse(SparseTensor.of(sites, features)).features
    moved = sites + torch.tensor([0, 16, -32, 48])
    actual = model.forward_sparse(SparseTensor.of(moved, features)).features
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


def test_checkpointing_changes_nothing() -> None:
    """Dropout included: it draws once."""
    plain = Spvcnn(**SMALL, head_channels=3).double()
    saving = Spvcnn(**SMALL, head_channels=3, checkpointing=True).double()
    saving.load_state_dict(plain.state_dict())
    sites, features = voxels()
    for model in (plain, saving):
        torch.manual_seed(1)
        model.forward_sparse(SparseTensor.of(sites, features)).features.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_dropout_follows_the_generator_of_torch() -> None:
    model = Spvcnn(**SMALL).double()
    x = SparseTensor.of(*voxels())

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.forward_sparse(x).features

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), run(2))
    model = Spvcnn(**SMALL, dropout=0.0).double()
    assert torch.equal(run(1), run(2))


def test_dropout_is_where_points_return_to_voxels() -> None:
    """Three of ten features vanish there, the others are scaled up."""
    model = Spvcnn(**SMALL).double()
    x = SparseTensor.of(*voxels(count=2000, extent=200))
    seen: dict[str, list[Tensor]] = {"convtr4p16s2": [], "convtr6p4s2": []}
    for name, inputs in seen.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, inputs=inputs: inputs.append(given[0].features)
        )
    for dropout in (0.3, 0.0):
        model.dropout = dropout
        model.forward_sparse(x)
    dropped, whole = seen["convtr4p16s2"]
    kept = dropped != 0
    assert torch.allclose(dropped[kept], whole[kept] / 0.7)
    assert abs(kept[whole != 0].double().mean().item() - 0.7) < 0.03
    dropped, whole = seen["convtr6p4s2"]
    assert 0.25 < (dropped == 0)[whole != 0].double().mean() < 0.4


def test_autocast_computes_in_its_dtype() -> None:
    model = Spvcnn(**SMALL).eval()
    sites, features = voxels()
    x = SparseTensor.of(sites, features.float())
    expected = model.forward_sparse(x).features
    with torch.autocast("cpu", torch.bfloat16):
        out = model.forward_sparse(x).features
    assert torch.allclose(out.float(), expected, atol=0.05 * expected.abs().max().item())
    out.float().sum().backward()
    weight = model.point_transforms[0][0].weight
    assert weight.grad.dtype == torch.float32


def test_prepare_makes_every_map_and_blend() -> None:
    model = Spvcnn(**SMALL, voxel_size=0.5)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 10
    batch = PointBatch(points, points[:, 0], torch.zeros(200, dtype=torch.int64), 1)
    prepared = model.prepare(batch)
    made = prepared.prepared.maps
    before = len(made.maps), len(made.levels), len(made.blends)
    assert before[2] == 2
    model(prepared)
    assert (len(made.maps), len(made.levels), len(made.blends)) == before


def test_voxels_that_a_minkunet_prepared_are_used() -> None:
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 10
    batch = PointBatch(points, points[:, 0], torch.zeros(200, dtype=torch.int64), 1)
    model = Spvcnn(**SMALL, voxel_size=0.5).eval()
    other = MinkUNet(**SMALL, rule="also", voxel_size=0.5, stem_convolutions=2)
    assert torch.equal(model(other.prepare(batch)).features, model(batch).features)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"width": 0.01}, "no channel"),
        ({"encoder_channels": (8,), "decoder_channels": (8,), "blocks": (1, 1)}, "middle"),
        ({"dropout": 1.0}, "dropout"),
        ({"blocks": (2,) * 7}, "numbers of blocks"),
    ],
)
def test_bad_arguments_are_refused(arguments, problem) -> None:
    with pytest.raises(ConfigError, match=problem):
        Spvcnn(**arguments)


def test_arguments_are_plain_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Spvcnn, "net")
    config = parser.parse_object({"net": {"width": 0.5, "inputs": {"columns": ["one", "z"]}}})
    assert parser.instantiate_classes(config).net.out_channels == 48
