"""Image encoders in files: whatever a file or its card claims ends in a network or an error."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file

from lidarssl import checkpoints
from lidarssl.checkpoints import Architecture, Card
from lidarssl.checkpoints.image_networks import read_image_network, settings_of, unlike
from lidarssl.errors import DataError
from lidarssl.images.vit import ARCHITECTURES, ViTArchitecture
from lidarssl.images.vit_files import to_timm
from lidarssl.images.vit_keys import to_transformers
from weight_files import Bomb

SHAPE = ViTArchitecture("dino", 16, 8, width=64, depth=2, heads=1)
REGISTERS = ViTArchitecture("dinov2", 16, 8, width=64, depth=1, heads=1, registers=2)
DINOV3 = ViTArchitecture("dinov3", 16, 8, width=64, depth=1, heads=1, registers=2)
GATED = ViTArchitecture("dinov2", 16, 8, width=64, depth=1, heads=1, swiglu=True)
CLASS_PATH = "lidarssl.images.vit.ViT"


def state_of(shape: ViTArchitecture) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(size) for key, size in shape.shapes().items()}


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(),
    shape=st.sampled_from([SHAPE, REGISTERS, DINOV3, GATED]),
    layout=st.sampled_from(["original", "transformers", "timm"]),
)
def test_damaged_tensors_end_in_a_network_or_an_error(
    data: st.DataObject, shape: ViTArchitecture, layout: str
) -> None:
    state = state_of(shape)
    if layout == "transformers":
        state = to_transformers(state, shape.family)
    elif layout == "timm" and shape is not DINOV3:
        state = to_timm(state)
    for key in data.draw(st.lists(st.sampled_from(sorted(state)), max_size=3, unique=True)):
        size = data.draw(st.lists(st.integers(0, 65), max_size=4))
        if size and data.draw(st.booleans()) and torch.Size(size).numel() < 100_000:
            state[key] = torch.zeros(size)
        else:
            del state[key]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vit.safetensors"
        save_file(state | {"other": torch.zeros(1)}, path)
        try:
            network = read_image_network(path)
        except DataError as refusal:
            said = str(refusal)
            assert str(path) in said
            return
    if network is not None:
        found = {key: tuple(value.shape) for key, value in network.state.items()}
        assert found == network.shape.shapes()


@pytest.mark.parametrize(
    "init_args",
    [
        {"architecture": asdict(SHAPE) | {"depth": 10**12}},
        {"architecture": asdict(SHAPE) | {"width": 2**40}},
        {"architecture": asdict(SHAPE) | {"patch_size": 0}},
        {"architecture": asdict(SHAPE) | {"width": "wide"}},
        {"architecture": asdict(SHAPE) | {"colour": "red"}},
        {"architecture": asdict(SHAPE) | {"heads": 5}},
        {"architecture": "vit_enormous"},
        {"architecture": ["dino"]},
        {"architecture": asdict(SHAPE), "normalization": "none"},
        {"architecture": asdict(SHAPE), "normalization": ["half"]},
        {"architecture": asdict(SHAPE), "final_norm": False},
        {},
    ],
    ids=str,
)
def test_a_card_of_another_network_is_an_error(init_args: dict[str, Any], tmp_path: Path) -> None:
    card = Card(Architecture(CLASS_PATH, init_args))
    path = tmp_path / "student.safetensors"
    checkpoints.save(path, state_of(SHAPE), card)
    with pytest.raises(DataError, match=r"student\.safetensors"):
        read_image_network(path)


def test_blocks_cannot_be_claimed_by_their_number(tmp_path: Path) -> None:
    state = state_of(SHAPE) | {"blocks.99999999999.norm1.weight": torch.zeros(64)}
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(DataError, match="99999999999"):
        read_image_network(tmp_path / "vit.safetensors")


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "vit.pth", tmp_path / "run"
    torch.save({"state_dict": state_of(SHAPE), "extra": Bomb(mark)}, path)
    with pytest.raises(DataError, match="nothing in it was run"):
        read_image_network(path)
    assert not mark.exists()


def test_where_normalisation_is_known(tmp_path: Path) -> None:
    for prefix, known in (
        ("", ""), ("model.", ""), ("image_encoder.model.", "imagenet"),
        ("backbone.timm_model.", "imagenet"),
    ):  # fmt: skip
        state = {f"{prefix}{key}": value for key, value in state_of(SHAPE).items()}
        save_file(state, tmp_path / "vit.safetensors")
        network = read_image_network(tmp_path / "vit.safetensors")
        assert network is not None
        assert network.normalization == known
    save_file(state_of(REGISTERS), tmp_path / "vit.safetensors")
    network = read_image_network(tmp_path / "vit.safetensors")
    assert network is not None
    assert network.normalization == "imagenet"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_settings_of_a_name_are_those_of_the_encoder_it_builds(name: str) -> None:
    told = settings_of({"architecture": name, "normalization": None})
    assert told.shape == ARCHITECTURES[name]
    assert told.final_norm
    assert told.normalization == ("half" if name.startswith("vit_") else "imagenet")
    assert unlike(told.shape, told.shape) == []


def test_without_a_vision_transformer_nothing_is_found(tmp_path: Path) -> None:
    torch.save({"model_points": {"conv0p1s1.kernel": torch.zeros(27, 1, 8)}}, tmp_path / "m.pt")
    assert read_image_network(tmp_path / "m.pt") is None
