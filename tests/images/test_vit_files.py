"""Files of vision transformers: every layout is found, renamed both ways, and its shape told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.vit import ARCHITECTURES, ViT, ViTArchitecture, filled_model
from lidarssl.images.vit_files import find_vit, shape_of, to_timm
from lidarssl.images.vit_keys import to_original, to_transformers

SHAPE = ViTArchitecture("dino", 32, 8, width=24, depth=2, heads=3)
REGISTERS = ViTArchitecture("dinov2", 28, 7, width=24, depth=2, heads=2, registers=4)
GATED = ViTArchitecture("dinov2", 28, 7, width=24, depth=2, heads=4, swiglu=True)
DINOV3 = ViTArchitecture("dinov3", 28, 7, width=24, depth=2, heads=2, registers=4)
DINOV3_GATED = ViTArchitecture(
    "dinov3", 28, 7, width=24, depth=2, heads=2, registers=1, swiglu=True
)
SHAPES = [SHAPE, REGISTERS, GATED, DINOV3, DINOV3_GATED]


def random_state(shape: ViTArchitecture) -> dict[str, Tensor]:
    """Tensors as the original authors store them: DINOv3 keeps no bias of its keys."""
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(s, generator=generator) / 4 for k, s in shape.shapes().items()}
    for key in [key for key in state if key.endswith("bias_mask")]:
        bias, width = state[key.replace("bias_mask", "bias")], shape.width
        bias[width : 2 * width] = 0
        state[key] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(width)
    return state


def reduced(shape: ViTArchitecture) -> ViTArchitecture:
    """The same kind of network, small."""
    return ViTArchitecture(
        shape.family, 3 * shape.patch_size, shape.patch_size, 16, 2, 2, shape.registers,
        shape.swiglu,
    )  # fmt: skip


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_of_transformers_and_back_is_the_identity(name: str) -> None:
    shape = reduced(ARCHITECTURES[name])
    state = random_state(shape)
    theirs = to_transformers(state, shape.family)
    assert same(to_original(theirs, shape.family), state)
    assert same(to_transformers(to_original(theirs, shape.family), shape.family), theirs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_names_inside_transformers_are_read_as_well(shape: ViTArchitecture) -> None:
    """A state dict has the names of the installed release, which are not those of its files."""
    state = random_state(shape)
    inside = dict(filled_model(shape, state, "state").state_dict())
    if shape.family != "dino":
        del inside["embeddings.mask_token"]  # as ViT drops it
        state["mask_token"] = torch.zeros_like(state["mask_token"])
    assert same(to_original(inside, shape.family), state)


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(["dino", "dinov2", "dinov3"]),
    cells=st.integers(1, 5),
    patch=st.sampled_from([2, 7, 8]),
    heads=st.integers(1, 3),
    depth=st.integers(1, 3),
    registers=st.integers(0, 3),
    swiglu=st.booleans(),
    prefix=st.sampled_from(["", "model.", "image_encoder.model.", "a.b.c."]),
    theirs=st.booleans(),
)
def test_a_network_is_found_whole_and_tells_its_shape(
    family: Any, cells: int, patch: int, heads: int, depth: int, registers: int, swiglu: bool,
    prefix: str, theirs: bool,
) -> None:  # fmt: skip
    rest = {} if family == "dino" else {"registers": registers, "swiglu": swiglu}
    size = max(1, 224 // patch) if family == "dinov3" else cells
    eps = 1e-5 if family == "dinov3" else 1e-6
    shape = ViTArchitecture(
        family, size * patch, patch, 8 * heads, depth, heads, norm_eps=eps, **rest
    )
    state = random_state(shape)
    stored = to_transformers(state, family) if theirs else state
    beside = {"head.weight": torch.ones(2, 8), "pooler.dense.weight": torch.ones(3, 3)}
    content = {f"{prefix}{key}": value for key, value in (stored | beside).items()}
    content |= {"temperature": torch.ones(()), "decode_head.cls_emb": torch.ones(1, 19, 8)}
    found = find_vit(content)
    assert found is not None
    inside = {} if prefix else {"temperature", "decode_head.cls_emb"}
    assert found.prefix == prefix
    assert set(found.heads) == {"head.weight", "pooler.dense.weight"}
    assert same({k: v for k, v in found.state.items() if k not in inside}, state)
    assert shape_of(found.state, heads=heads) == shape


LAYOUTS: dict[str, tuple[str, list[str]]] = {
    "timm": ("", ["head.weight", "head.bias", "pre_logits.fc.weight"]),
    "clcp": (
        "image_encoder.model.",
        ["image_encoder.projection.weight", "point_cloud_encoder.projection.weight", "temperature"],
    ),
    "lip-loc": ("model.", ["model.fc.0.weight", "fc.weight"]),
    "mmsegmentation": ("backbone.timm_model.", ["decode_head.cls_emb", "backbone.other"]),
    "dino": ("module.backbone.", ["module.head.last_layer.weight"]),
    "lidarssl": ("encoder.model.", ["head.mask_norm.weight"]),
}


@pytest.mark.parametrize("container", [None, "state_dict"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_features(
    layout: str, container: str | None, tmp_path: Path
) -> None:
    prefix, others = LAYOUTS[layout]
    state = random_state(SHAPE)
    torch.save(state, tmp_path / "plain.pth")
    content: dict[str, Any] = {f"{prefix}{key}": value for key, value in state.items()}
    content |= {key: torch.ones(3) for key in others}
    if container:
        content = {container: content, "epoch": 5, "hyper_parameters": {"embed_dim": 384}}
    torch.save(content, tmp_path / "trainer.ckpt")
    images = torch.rand(1, 3, 32, 40)
    expected = ViT(SHAPE, tmp_path / "plain.pth")(images)
    assert torch.equal(ViT(SHAPE, tmp_path / "trainer.ckpt")(images), expected)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_strictly(layout: str, change: str, tmp_path: Path) -> None:
    prefix, _ = LAYOUTS[layout]
    state = random_state(SHAPE)
    key = "blocks.1.attn.qkv.bias"
    if change == "missing":
        del state[key]
    elif change == "unknown":
        key = "blocks.1.attn.qkv.q_bias"
        state[key] = torch.zeros(24)
    else:
        state[key] = torch.zeros(71)
    torch.save({f"{prefix}{k}": value for k, value in state.items()}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=re.escape(key)):
        ViT(SHAPE, tmp_path / "w.pth")


def test_a_student_of_this_library_is_read_as_weights(tmp_path: Path) -> None:
    student = ViT(REGISTERS, frozen=False)
    torch.save(student.state_dict(), tmp_path / "student.pth")
    images = torch.rand(1, 3, 28, 35)
    assert torch.equal(ViT(REGISTERS, tmp_path / "student.pth")(images), student(images))


def test_of_several_networks_one_has_to_be_chosen() -> None:
    state = random_state(SHAPE)
    content = {f"encoder_camera.{key}": value for key, value in state.items()}
    content |= {f"encoder_lidar.{key}": value + 1 for key, value in state.items()}
    with pytest.raises(ConfigError, match=r"'encoder_camera\.', 'encoder_lidar\.'"):
        find_vit(content)
    with pytest.raises(ConfigError, match="below 'encoder'"):
        find_vit(content, "encoder")
    found = find_vit(content, "encoder_camera.")
    assert found is not None
    assert same(found.state, state)
    assert find_vit({"conv0p1s1.kernel": torch.ones(27, 1, 8)}) is None


def test_names_of_timm_are_those_of_the_original_but_for_registers_and_gates() -> None:
    plain = random_state(SHAPE)
    assert same(to_timm(plain), plain)
    gated = to_timm(random_state(GATED))
    assert gated["blocks.0.mlp.fc1.weight"].shape == (2 * 64, 24)
    assert not any("w12" in key or "w3" in key or key == "mask_token" for key in gated)
    state = random_state(REGISTERS)
    timm = to_timm(state)
    assert torch.equal(timm["reg_token"], state["register_tokens"])
    assert timm["pos_embed"].shape == (1, 16, 24)
    torch.testing.assert_close(timm["cls_token"], state["cls_token"] + state["pos_embed"][:, :1])


@pytest.mark.parametrize("shape", [SHAPE, REGISTERS, GATED], ids=str)
def test_what_is_written_for_timm_is_read_again(shape: ViTArchitecture, tmp_path: Path) -> None:
    state = random_state(shape)
    torch.save(state, tmp_path / "ours.pth")
    torch.save(to_timm(state), tmp_path / "timm.pth")
    images = torch.rand(1, 3, 28, 42)
    ours, again = (ViT(shape, tmp_path / name) for name in ("ours.pth", "timm.pth"))
    torch.testing.assert_close(again(images), ours(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"patch_embed.proj.weight": torch.zeros(64, 3, 8, 4)}, "patch_embed.proj.weight"),
        ({"pos_embed": torch.zeros(1, 18, 64)}, "pos_embed"),
        ({"pos_embed": torch.zeros(17, 64)}, "pos_embed"),
        ({"pos_embed": torch.zeros(1, 1, 64)}, "pos_embed"),
    ],
)
def test_shapes_that_are_of_no_vision_transformer(change: dict[str, Tensor], field: str) -> None:
    state = random_state(ViTArchitecture("dino", 32, 8, width=64, depth=1, heads=1))
    with pytest.raises(DataError) as caught:
        shape_of(state | change)
    assert caught.value.field == field


def test_heads_are_of_64_channels_or_have_to_be_told() -> None:
    wide = random_state(ViTArchitecture("dino", 32, 8, width=128, depth=1, heads=4))
    assert shape_of(wide).heads == 2
    assert shape_of(wide, heads=4).heads == 4
    for heads in (None, 5, 0):
        with pytest.raises(ConfigError) as caught:
            shape_of(random_state(SHAPE), heads=heads)
        assert caught.value.field == "--heads"
