"""The tables of OpenPCDet's backbones, against one written by hand from its documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lidarssl.checkpoints.openpcdet import (
    check_detector,
    detector_file,
    plane_shapes,
    trunk_shapes,
)
from lidarssl.checkpoints.spconv_layouts import SpconvLayout
from lidarssl.errors import ConfigError

# Convolutions of VoxelBackBone8x: name, kernel z y x, channels in and out. Each has a norm.
VOXEL_BACKBONE_8X = """
conv_input.0 333 4 16
conv1.0.0 333 16 16
conv2.0.0 333 16 32
conv2.1.0 333 32 32
conv2.2.0 333 32 32
conv3.0.0 333 32 64
conv3.1.0 333 64 64
conv3.2.0 333 64 64
conv4.0.0 333 64 64
conv4.1.0 333 64 64
conv4.2.0 333 64 64
conv_out.0 311 64 128
"""
VOXEL_RES_BACKBONE_8X = """
conv_input.0 333 4 16
conv1.0.conv1 333 16 16
conv1.0.conv2 333 16 16
conv1.1.conv1 333 16 16
conv1.1.conv2 333 16 16
conv2.0.0 333 16 32
conv2.1.conv1 333 32 32
conv2.1.conv2 333 32 32
conv2.2.conv1 333 32 32
conv2.2.conv2 333 32 32
conv3.0.0 333 32 64
conv3.1.conv1 333 64 64
conv3.1.conv2 333 64 64
conv3.2.conv1 333 64 64
conv3.2.conv2 333 64 64
conv4.0.0 333 64 128
conv4.1.conv1 333 128 128
conv4.1.conv2 333 128 128
conv4.2.conv1 333 128 128
conv4.2.conv2 333 128 128
conv_out.0 311 128 128
"""
# BaseBEVBackbone: name of the convolution, its shape, name of its norm, width of the norm.
BEV_BACKBONE = """
blocks.0.1 128x256x3x3 blocks.0.2 128
blocks.0.4 128x128x3x3 blocks.0.5 128
blocks.0.7 128x128x3x3 blocks.0.8 128
blocks.0.10 128x128x3x3 blocks.0.11 128
blocks.0.13 128x128x3x3 blocks.0.14 128
blocks.0.16 128x128x3x3 blocks.0.17 128
blocks.1.1 256x128x3x3 blocks.1.2 256
blocks.1.4 256x256x3x3 blocks.1.5 256
blocks.1.7 256x256x3x3 blocks.1.8 256
blocks.1.10 256x256x3x3 blocks.1.11 256
blocks.1.13 256x256x3x3 blocks.1.14 256
blocks.1.16 256x256x3x3 blocks.1.17 256
deblocks.0.0 128x256x1x1 deblocks.0.1 256
deblocks.1.0 256x256x2x2 deblocks.1.1 256
"""
NORM = ("weight", "bias", "running_mean", "running_var")
Table = dict[str, tuple[int, ...]]


def norm(name: str, width: int) -> Table:
    return {f"{name}.{one}": (width,) for one in NORM} | {f"{name}.num_batches_tracked": ()}


def trunk(rows: str) -> Table:
    table: Table = {}
    for row in rows.split("\n")[1:-1]:
        name, kernel, before, after = row.split()
        width = int(after)
        table[f"{name}.weight"] = (width, *map(int, kernel), int(before))
        if name[:-1].endswith(".conv"):
            table[f"{name}.bias"] = (width,)
            table |= norm(f"{name[:-5]}bn{name[-1]}", width)
        else:
            table |= norm(f"{name[:-1]}1", width)
    return {f"backbone_3d.{name}": shape for name, shape in table.items()}


def plane() -> Table:
    table: Table = {}
    for row in BEV_BACKBONE.split("\n")[1:-1]:
        name, shape, norm_name, width = row.split()
        table[f"{name}.weight"] = tuple(map(int, shape.split("x")))
        table |= norm(norm_name, int(width))
    return {f"backbone_2d.{name}": shape for name, shape in table.items()}


def filled(table: Table) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in table.items()}


SECOND = trunk(VOXEL_BACKBONE_8X) | plane()


def test_the_tables_are_those_written_by_hand() -> None:
    assert trunk_shapes() == trunk(VOXEL_BACKBONE_8X)
    assert trunk_shapes(residual=True) == trunk(VOXEL_RES_BACKBONE_8X)
    assert plane_shapes() == plane()
    five = trunk_shapes(inputs=5)
    assert five.pop("backbone_3d.conv_input.0.weight") == (16, 3, 3, 3, 5)
    assert five.items() <= trunk_shapes().items()


@pytest.mark.parametrize(
    ("case", "prefix", "expected"),
    [
        ("pcdet_second_kitti", "", SECOND),
        ("pcdet_voxel_res_backbone8x", "backbone_3d.", trunk(VOXEL_RES_BACKBONE_8X)),
    ],
)
def test_the_tables_are_those_of_openpcdet(
    goldens_root: Path, case: str, prefix: str, expected: Table
) -> None:
    path = goldens_root / case / "manifest.json"
    if not path.is_file():
        pytest.skip(f"no {case}")
    rows = json.loads(path.read_text())["state_dict"]
    found = {prefix + name: tuple(shape) for name, shape, _ in rows}
    assert expected == {
        name: shape for name, shape in found.items() if name.startswith("backbone_")
    }


def test_a_file_for_spconv_2_holds_the_weights_as_they_are() -> None:
    state = filled(SECOND)
    content = detector_file(state)
    assert list(content) == ["model_state"]
    assert content["model_state"].keys() == SECOND.keys()
    for name, value in content["model_state"].items():
        assert torch.equal(value, state[name]), name


def test_a_file_for_spconv_1_has_its_layout() -> None:
    state = filled(SECOND)
    content = detector_file(state, SpconvLayout.RSCK)["model_state"]
    name = "backbone_3d.conv_input.0.weight"
    assert content[name].shape == (3, 3, 3, 4, 16)
    assert content[name][0, 1, 2, 3, 5] == state[name][5, 0, 1, 2, 3]
    assert torch.equal(content["backbone_2d.blocks.0.1.weight"],
                       state["backbone_2d.blocks.0.1.weight"])  # fmt: skip


def test_old_files_without_counters_and_a_trunk_alone_pass() -> None:
    check_detector({name: v for name, v in filled(SECOND).items() if "num_batches" not in name})
    check_detector(filled(trunk(VOXEL_BACKBONE_8X)))
    check_detector(filled(trunk(VOXEL_RES_BACKBONE_8X) | plane()))


def changed(name: str, shape: tuple[int, ...] | None) -> dict[str, Tensor]:
    state = filled(SECOND)
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    return state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            changed("backbone_3d.conv2.1.0.weight", None),
            "conv2.1.0.weight' is missing",
        ),
        (changed("backbone_2d.deblocks.1.1.bias", None), "'backbone_2d.deblocks.1.1.bias' is miss"),
        (
            changed("backbone_3d.conv3.1.0.weight", (32, 3, 3, 3, 64)),
            r"is \(32, 3, 3, 3, 64\), not \(64, 3, 3, 3, 64\)",
        ),
        (changed("backbone_3d.conv9.0.0.weight", (1, 1, 1, 1, 1)), "conv9.0.0.weight' is unknown"),
        (changed("dense_head.conv_cls.weight", (18, 512, 1, 1)), "'dense_head.conv_cls.weight'"),
        ({name.removeprefix("backbone_3d."): v for name, v in filled(SECOND).items()}, "missing"),
        ({}, "missing"),
    ],
)
def test_one_wrong_key_and_nothing_is_written(state: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        detector_file(state)
