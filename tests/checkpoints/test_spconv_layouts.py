"""spconv weight layouts: by the definition of each, and which one a file has."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.checkpoints.spconv_layouts import (
    SpconvLayout,
    convert_layout,
    from_krsc,
    recognise_layout,
    to_krsc,
)
from lidarssl.errors import ConfigError, DataError

KRSC, RSKC, RSCK = SpconvLayout.KRSC, SpconvLayout.RSKC, SpconvLayout.RSCK
# What a layer computes at one output site from a full window, written out for each layout.
DEFINITION = {KRSC: "zyxc,ozyxc->o", RSKC: "zyxc,zyxoc->o", RSCK: "zyxc,zyxco->o"}
LAYOUTS = st.sampled_from(SpconvLayout)
SIZES = st.tuples(*[st.integers(1, 3)] * 3)
CHANNELS = st.integers(1, 9)


def weight(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(LAYOUTS, SIZES.filter(lambda size: max(size) > 1), CHANNELS, CHANNELS)
def test_the_function_stays(
    layout: SpconvLayout, size: tuple[int, int, int], before: int, after: int
) -> None:
    krsc = weight((after, *size, before))
    window = weight((*size, before), seed=1)
    other = from_krsc(krsc, layout)
    expected = torch.einsum(DEFINITION[KRSC], window, krsc)
    assert torch.allclose(torch.einsum(DEFINITION[layout], window, other), expected)
    assert torch.equal(to_krsc(other, layout), krsc)
    assert other.is_contiguous()


@given(LAYOUTS, CHANNELS, CHANNELS)
def test_the_function_of_a_single_cell_stays(layout: SpconvLayout, before: int, after: int) -> None:
    """spconv multiplies by the memory of the weight, seen as (C_in, C_out)."""
    krsc = weight((after, 1, 1, 1, before))
    features = weight((4, before), seed=1)
    other = from_krsc(krsc, layout)
    shapes = {
        KRSC: (after, 1, 1, 1, before),
        RSKC: (1, 1, 1, after, before),
        RSCK: (1, 1, 1, before, after),
    }
    assert other.shape == shapes[layout]
    assert torch.equal(features @ other.view(before, after), features @ krsc.view(before, after))
    assert torch.equal(to_krsc(other, layout), krsc)


def chain(widths: list[int], layout: SpconvLayout, norms: bool = True) -> dict[str, Tensor]:
    """Convolutions 3x3x3, each with a norm, in the layout; as in VoxelBackBone8x."""
    state = {}
    for index, (before, after) in enumerate(pairwise(widths)):
        state[f"conv{index}.0.weight"] = from_krsc(weight((after, 3, 3, 3, before)), layout)
        if norms:
            state[f"conv{index}.1.weight"] = torch.ones(after)
    return state


def shapes_of(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@given(LAYOUTS, st.lists(st.integers(8, 64), min_size=2, max_size=6))
def test_a_file_tells_its_layout(layout: SpconvLayout, widths: list[int]) -> None:
    state = chain(widths, layout)
    if layout is not KRSC and len(set(widths)) == 1:
        with pytest.raises(ConfigError, match="RSKC or RSCK"):
            recognise_layout(shapes_of(state))
    else:
        assert recognise_layout(shapes_of(state)) is layout


def test_one_layer_decides_for_all() -> None:
    state = chain([16, 16, 16, 32, 32], RSCK)
    assert recognise_layout(shapes_of(state)) is RSCK
    back = convert_layout(state, RSCK, KRSC)
    for name, value in chain([16, 16, 16, 32, 32], KRSC).items():
        assert torch.equal(back[name], value), name


def test_layers_with_names_of_residual_blocks_or_with_a_bias() -> None:
    blocks = {
        "conv1.0.conv1.weight": (3, 3, 3, 16, 32),
        "conv1.0.bn1.weight": (32,),
    }
    assert recognise_layout(blocks) is RSCK
    assert recognise_layout({"a.weight": (3, 3, 3, 16, 32), "a.bias": (16,)}) is RSKC
    assert recognise_layout({"0.weight": (3, 3, 3, 16, 32), "1.weight": (16,)}) is RSKC


def test_without_norms_only_one_layout_can_be_told() -> None:
    assert recognise_layout(shapes_of(chain([8, 16], KRSC, norms=False))) is KRSC
    for layout in (RSKC, RSCK):
        with pytest.raises(ConfigError, match="RSKC or RSCK") as caught:
            recognise_layout(shapes_of(chain([8, 16], layout, norms=False)))
        assert caught.value.field == "--spconv-layout"
        assert "RSCK (1.x)" in (caught.value.remedy or "")


def test_mixed_layouts_are_refused() -> None:
    mixed = chain([8, 16, 32], RSCK) | {
        name: value for name, value in chain([8, 16, 32], RSKC).items() if name.startswith("conv1.")
    }
    with pytest.raises(DataError, match=r"'conv1.0.weight' .* is not in the layout of the other"):
        recognise_layout(shapes_of(mixed))


@pytest.mark.parametrize(
    ("shapes", "problem"),
    [
        ({}, "no spconv weights"),
        ({"a.weight": (3, 3)}, "no spconv weights"),
        ({"a.kernel": (3, 3, 3, 1, 2)}, "no spconv weights"),
        ({"a.weight": (99, 99, 99, 99, 99)}, "of no spconv layout"),
        ({"a.weight": (16, 3, 3, 3, 4), "a.bias": (5,)}, "of no spconv layout"),
    ],
)
def test_what_is_no_spconv_file(shapes: dict[str, tuple[int, ...]], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        recognise_layout(shapes)


@given(st.dictionaries(st.text(max_size=12), st.lists(st.integers(0, 40), max_size=6), max_size=6))
def test_any_shapes_are_a_layout_or_an_error(shapes: dict[str, list[int]]) -> None:
    shapes = {f"{name}.weight": shape for name, shape in shapes.items()}
    try:
        layout = recognise_layout(shapes)
    except DataError:
        return
    for shape in shapes.values():
        if len(shape) == 5:
            assert max(shape[axis] for axis in layout.axes[1:4]) <= 7
