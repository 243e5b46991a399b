from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from lidarssl.backbones.minkunet import MinkUNet, res16unet34c
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch
from lidarssl.sparse.tensor import SparseTensor

SMALL: dict[str, Any] = {
    "stem_channels": 4,
    "encoder_channels": (6, 8, 8, 8),
    "decoder_channels": (8, 6, 6, 6),
    "blocks": (1,) * 8,
}


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def voxels(seed: int = 0, count: int = 300, extent: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sites = torch.randint(-extent, extent, (count, 4), generator=generator)
    sites[:, 0] = sites[:, 0] % 2
    sites[:, 3] = sites[:, 3] % 4
    sites = torch.unique(sites, dim=0)
    features = torch.randn(sites.shape[0], 1, generator=generator, dtype=torch.float64)
    return sites, features


def test_size_of_the_published_network() -> None:
    model = res16unet34c(64)
    state = model.state_dict()
    assert len(state) == 374
    assert sum(parameter.numel() for parameter in model.parameters()) == 37_849_184
    assert state["conv0p1s1.kernel"].shape == (27, 1, 32)
    assert state["convtr4p16s2.kernel"].shape == (8, 256, 256)
    assert state["block5.0.downsample.0.kernel"].shape == (384, 256)
    assert state["final.bias"].shape == (1, 64)
    assert "block1.0.downsample.0.kernel" not in state
    assert model.out_channels == 64


@pytest.mark.parametrize(
    ("blocks", "stem", "inputs", "classes", "parameters"),
    [
        ((2, 3, 4, 6, 2, 2, 2, 2), 1, 1, 17, 37_844_625),  # MinkUNet34 of ALSO and NCLR
        ((2, 3, 4, 6, 2, 2, 2, 2), 1, 4, 17, 37_847_217),
        ((2,) * 8, 1, 1, 17, 21_692_817),  # MinkUNet18
        ((2,) * 8, 2, 4, 20, 21_723_412),  # MinkUNet18SC
        ((2,) * 8, 2, 1, 20, 21_720_820),  # SegContrastMinkUNet18
    ],
)
def test_sizes_of_the_networks_of_also_and_nclr(blocks, stem, inputs, classes, parameters) -> None:
    model = MinkUNet(
        PointInputs(("one",) * inputs),
        rule="also",
        blocks=blocks,
        stem_convolutions=stem,
        head_channels=classes,
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_momenta_of_the_published_network() -> None:
    model = res16unet34c(64)
    assert model.bn0.bn.momentum == model.bntr7.bn.momentum == 0.05
    assert model.block2[0].downsample[1].bn.momentum == 0.05
    assert model.block2[0].norm1.bn.momentum == 0.1


def test_headless_network_gives_the_last_decoder_level() -> None:
    model = MinkUNet(**SMALL)
    assert model.out_channels == 6
    assert not any(name.startswith("final") for name in model.state_dict())


def test_moving_by_the_total_stride_changes_nothing() -> None:
    model = MinkUNet(**SMALL).double().eval()
    sites, features = voxels()
    moved = sites + torch.tensor([0, 16, -32, 48])
    expected = model.forward_sparse(SparseTensor.of(sites, features)).features
    actual = model.forward_sparse(SparseTensor.of(moved, features)).features
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    nudged = sites + torch.tensor([0, 1, 0, 0])
    other = model.forward_sparse(SparseTensor.of(nudged, features)).features
    assert (other - expected).norm() > 1e-3 * expected.norm()


def test_normalized_rows_have_length_one() -> None:
    model = MinkUNet(**SMALL, head_channels=3, normalize=True).double().eval()
    out = model.forward_sparse(SparseTensor.of(*voxels())).features
    assert torch.allclose(out.norm(dim=1), torch.ones(out.shape[0], dtype=torch.float64))


def test_checkpointing_changes_nothing() -> None:
    plain = MinkUNet(**SMALL, head_channels=3).double()
    saving = MinkUNet(**SMALL, head_channels=3, checkpointing=True).double()
    saving.load_state_dict(plain.state_dict())
    sites, features = voxels()
    for model in (plain, saving):
        model.forward_sparse(SparseTensor.of(sites, features)).features.square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_prepare_makes_every_map() -> None:
    model = MinkUNet(**SMALL, voxel_size=0.5)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 10
    batch = PointBatch(points, points[:, 0], torch.zeros(200, dtype=torch.int64), 1)
    prepared = model.prepare(batch)
    made = prepared.prepared.maps
    before = len(made.maps), len(made.levels)
    model(prepared)
    assert (len(made.maps), len(made.levels)) == before


def test_voxels_of_another_grid_are_not_used() -> None:
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 10
    batch = PointBatch(points, points[:, 0], torch.zeros(50, dtype=torch.int64), 1)
    coarse = MinkUNet(**SMALL, voxel_size=5.0, rule="slidr_cartesian").prepare(batch)
    fine = MinkUNet(**SMALL, voxel_size=0.01, rule="slidr_cartesian")
    assert fine(coarse).features.shape[0] == 50


def test_lists_must_fit() -> None:
    with pytest.raises(ConfigError, match="numbers of blocks"):
        MinkUNet(encoder_channels=(8, 8), decoder_channels=(8, 8), blocks=(1, 1, 1))
    with pytest.raises(ConfigError, match="stem"):
        MinkUNet(stem_convolutions=0)
    with pytest.raises(ConfigError, match="without a block"):
        MinkUNet(encoder_channels=(8,), decoder_channels=(8,), blocks=(1, 0))


def test_arguments_are_plain_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MinkUNet, "net")
    config = parser.parse_object(
        {
            "net": {
                "inputs": {"columns": ["intensity", "one"], "scale": [3.0, 1.0], "reduce": "mean"},
                "voxel_size": 0.2,
                "rule": "slidr_cartesian",
                "stem_channels": 16,
                "encoder_channels": [24, 48, 64],
                "decoder_channels": [48, 48, 48],
                "blocks": [1, 1, 1, 1, 1, 1],
                "stem_convolutions": 2,
            }
        }
    )
    model = parser.instantiate_classes(config).net
    assert model.grid.inputs == PointInputs(("intensity", "one"), (3.0, 1.0), None, "mean")
    assert model.out_channels == 48
    assert model.bn0_1.bn.weight.shape == (16,)
