"""WaffleIron against a plain padded implementation in float64, and what it promises beside."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.backbones.plane_cells import WholePlane
from lidarssl.backbones.plane_tokens import PlaneTokens
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.waffleiron import Activation, LayerScale, Norm, WaffleIron
from lidarssl.checkpoints.waffleiron_names import from_published, to_published
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch
from plain_waffleiron import PlainWaffleIron

FOV = ((-4.0, -4.0, -2.0), (4.0, 4.0, 2.0))
INPUTS = PointInputs(("intensity", "x", "y", "z", "radius"))
SIZES = (40, 23, 31)


def cloud(seed: int, sizes: tuple[int, ...] = SIZES) -> PointBatch:
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    spread = torch.tensor([7.0, 7.0, 3.0])
    return PointBatch(
        points=(torch.rand(count, 3, generator=generator) - 0.5) * spread,
        intensity=torch.rand(count, generator=generator),
        batch=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        batch_size=len(sizes),
    )


def build(seed: int = 0, depth: int = 4, channels: int = 6, **changes: Any) -> WaffleIron:
    """A disturbed network in float64, whose running statistics are not their defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        arguments: dict[str, Any] = {
            "fov": FOV, "grids": ((5, 4), (4, 3), (3, 6)), "neighbours": 4, "voxel_size": None,
            "inputs": INPUTS,
        }  # fmt: skip
        network = WaffleIron(channels, depth, **arguments | changes).double()
        for name, value in network.named_buffers():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) if "var" in name else torch.randn_like(value))
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def doubled(tokens: PlaneTokens) -> PlaneTokens:
    tokens = copy.copy(tokens)
    tokens.features = tokens.features.double()
    sizes = (1 / tokens.weights.double()).round()
    tokens.weights = 1 / (sizes + 1e-6)
    return tokens


@dataclass
class Padded:
    """Tokens as the published code has them: padded clouds, channels first."""

    feat: Tensor
    cells: Tensor
    occupied: Tensor
    neighbours: Tensor

    @classmethod
    def of(cls, tokens: PlaneTokens, grids: tuple[tuple[int, int], ...]) -> Padded:
        sizes = torch.bincount(tokens.batch[: tokens.real], minlength=tokens.batch_size).tolist()
        longest, first = max(sizes), 0
        feat = torch.zeros(len(sizes), tokens.features.shape[1], longest, dtype=torch.float64)
        cells = torch.zeros(len(sizes), len(grids), longest, dtype=torch.int64)
        neighbours = torch.full((len(sizes), tokens.neighbours.shape[1] + 1, longest), longest - 1)
        for frame, size in enumerate(sizes):
            rows = slice(first, first + size)
            feat[frame, :, :size] = tokens.features[rows].T
            for plane, (height, width) in enumerate(grids):
                cells[frame, plane, :size] = tokens.cells[plane, rows] - frame * height * width
            neighbours[frame, 0, :size] = torch.arange(size)
            neighbours[frame, 1:, :size] = tokens.neighbours[rows].T - first
            first += size
        occupied = (torch.arange(longest) < torch.tensor(sizes)[:, None]).double()
        return cls(feat, cells, occupied, neighbours)

    def rows(self, maps: Tensor) -> Tensor:
        """(B, C, N) -> (T, C) of the real points."""
        return maps.transpose(1, 2)[self.occupied > 0]


def reference_of(network: WaffleIron) -> PlainWaffleIron:
    state = to_published(network.state_dict())
    inputs = state["embed.conv1.weight"].shape[1]
    first: Any = network.waffleiron.channel_mix[0]
    plain = PlainWaffleIron(
        inputs, network.out_channels, len(network.waffleiron.channel_mix),
        "layer" if isinstance(first.norm, torch.nn.LayerNorm) else "batch",
        "gelu" if isinstance(first.mlp[1], torch.nn.GELU) else "relu",
        network.rule.grids.grids,
    ).double()  # fmt: skip
    plain.load_state_dict(state)
    return plain


def weights_like(rows: Tensor) -> Tensor:
    return torch.randn(rows.shape, generator=torch.Generator().manual_seed(7), dtype=rows.dtype)


def compare(network: WaffleIron, points: PointBatch, training: bool) -> None:
    """Outputs, gradients of inputs and parameters, running statistics."""
    reference = reference_of(network).train(training)
    network.train(training)
    tokens = doubled(network.rule(points))
    padded = Padded.of(tokens, network.rule.grids.grids)
    tokens.features.requires_grad_()
    padded.feat.requires_grad_()
    actual = network.forward_tokens(tokens)[: tokens.real]
    masked = not network.rule.padded
    expected = padded.rows(
        reference(padded.feat, padded.cells, padded.occupied, padded.neighbours, masked)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    weight = weights_like(expected)
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    assert tokens.features.grad is not None
    assert padded.feat.grad is not None
    close(tokens.features.grad[: tokens.real], padded.rows(padded.feat.grad), "features")
    theirs = {name: value.grad for name, value in reference.named_parameters()}
    shaped = from_published({name: grad for name, grad in theirs.items() if grad is not None})[0]
    largest = max(float(value.abs().max()) for value in shaped.values())
    for name, value in network.named_parameters():
        assert value.grad is not None, name
        # A shift before a batch norm has no effect: its gradient is rounding.
        torch.testing.assert_close(
            value.grad, shaped[name], rtol=1e-5, atol=1e-9 * largest, msg=name
        )
    state = from_published(reference.state_dict())[0]
    for name, buffer in network.named_buffers():
        close(buffer.double(), state[name].double(), name)


def close(actual: Tensor, expected: Tensor, name: str) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7 * (scale + 1e-3), msg=name)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("norm", "activation"), [("batch", "relu"), ("layer", "gelu")])
def test_equal_to_plain_convolutions_on_padded_clouds(
    norm: Norm, activation: Activation, padded: bool, training: bool
) -> None:
    compare(build(norm=norm, activation=activation, padded=padded), cloud(1), training)


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_equal_to_plain_convolutions_whatever_the_sizes(data: st.DataObject) -> None:
    draw = data.draw
    planes = tuple(draw(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=4)))
    side = st.integers(1, 5)
    network = build(
        seed=draw(st.integers(0, 99)),
        channels=draw(st.integers(1, 7)),
        depth=draw(st.integers(1, 5)),
        norm=draw(st.sampled_from(["batch", "layer"])),
        activation=draw(st.sampled_from(["relu", "gelu"])),
        planes=planes,
        grids=tuple(draw(st.tuples(side, side)) for _ in planes),
        neighbours=draw(st.integers(1, 9)),
        padded=draw(st.booleans()),
        checkpointing=draw(st.booleans()),
    )
    sizes = tuple(draw(st.lists(st.integers(6, 30), min_size=1, max_size=3)))
    compare(network, cloud(draw(st.integers(0, 99)), sizes), draw(st.booleans()))


def test_frames_of_one_size_have_no_padding() -> None:
    points = cloud(2, (25, 25))
    for padded in (False, True):
        compare(build(padded=padded), points, training=True)


def test_padding_counts_in_batch_norms() -> None:
    """Otherwise the option would be without effect, and comparing it would say nothing."""
    one, other = build(padded=False).train(), build(padded=True).train()
    tokens = doubled(one.rule(cloud(1)))
    filled = doubled(other.rule(cloud(1)))
    assert filled.real == tokens.real < len(filled.features)
    difference = one.forward_tokens(tokens) - other.forward_tokens(filled)[: filled.real]
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_checkpointing_changes_memory_alone(norm: Norm) -> None:
    gradients = []
    for checkpointing in (False, True):
        network = build(norm=norm, checkpointing=checkpointing).train()
        tokens = doubled(network.rule(cloud(3)))
        output = network.forward_tokens(tokens)
        (output * weights_like(output)).sum().backward()
        statistics = {name: value.clone() for name, value in network.named_buffers()}
        found = {name: value.grad for name, value in network.named_parameters()}
        gradients.append({"output": output.detach(), **found, **statistics})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_merged_is_the_same_function(norm: Norm, activation: Activation) -> None:
    network = build(norm=norm, activation=activation).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tokens = doubled(network.rule(cloud(4)))
    merged = network.merged()
    with torch.no_grad():
        expected, actual = network.forward_tokens(tokens), merged.forward_tokens(tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    left = [type(module).__name__ for module in merged.modules()]
    assert "LayerScale" not in left
    assert left.count("RowNorm") == (4 if norm == "batch" else 0)
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_merged_as_float32_on_points() -> None:
    network, points = build(norm="batch").float().eval(), cloud(4)
    expected, actual = network(points), network.merged()(points)
    scale = float(expected.features.detach().abs().max())
    torch.testing.assert_close(
        actual.features, expected.features.detach(), rtol=0, atol=2e-5 * scale
    )


def test_a_frame_is_the_same_alone_and_in_company() -> None:
    network, points = build().float().eval(), cloud(5)
    together = network(points)
    for padded in (False, True):
        network = build(padded=padded).float().eval()
        for frame in range(3):
            mine = points.batch == frame
            alone = network(
                PointBatch(
                    points.points[mine],
                    points.intensity[mine],
                    torch.zeros(int(mine.sum())).long(),
                    1,
                )
            )
            of_frame = together.at_points()[mine]
            torch.testing.assert_close(alone.at_points(), of_frame, rtol=1e-5, atol=1e-5)


def dropped_rows(network: WaffleIron, tokens: PlaneTokens, seed: int) -> Tensor:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        return network.forward_tokens(tokens)


def test_drop_path_skips_whole_frames() -> None:
    """One layer: per frame the mix after the embedding is left out, or counts twice."""
    network = build(depth=1, norm="layer", drop_path=0.5)
    tokens = doubled(network.rule(cloud(6)))
    network.eval()
    with torch.no_grad():
        embedded = network.embed(tokens.features, tokens.neighbours)
        spatial, channel = network.waffleiron.spatial_mix[0], network.waffleiron.channel_mix[0]
        mixed = spatial(embedded, WholePlane(tokens.cells[0], tokens.weights[0], (3, 5, 4)))
        ways = [embedded + share * mixed for share in (0.0, 2.0)]
        results = torch.stack([way + share * channel(way) for way in ways for share in (0.0, 2.0)])
    network.embed.train(False)
    network.training = True
    seen = set()
    for seed in range(40):
        found = dropped_rows(network, tokens, seed)
        choice = []
        for frame in range(3):
            mine = tokens.batch == frame
            same = [torch.allclose(found[mine], result[mine]) for result in results]
            assert sum(same) == 1
            choice.append(same.index(True))
        seen.add(tuple(choice))
        assert torch.equal(found, dropped_rows(network, tokens, seed)), "seeded"
    assert len(seen) > 15
    assert {way for choice in seen for way in choice} == {0, 1, 2, 3}


def test_drop_path_keeps_the_expectation() -> None:
    """Of the last mix, which is not followed by anything that is not linear."""
    network = build(depth=1, norm="layer", drop_path=0.3)
    tokens = doubled(network.rule(cloud(6)))
    rows = weights_like(tokens.features)
    network.train()
    torch.manual_seed(0)
    many = torch.stack([network._dropped(rows, tokens) for _ in range(4000)])
    standard_error = math.sqrt(0.3 / 0.7 / 4000)
    assert ((many.mean(0) / rows - 1).abs() < 5 * standard_error).all()
    kept = (many != 0).double().mean()
    assert abs(float(kept) - 0.7) < 5 * math.sqrt(0.3 * 0.7 / 4000 / 3)


def test_no_frame_is_skipped_in_eval_mode() -> None:
    calm, wild = build().eval(), build(drop_path=0.9).eval()
    tokens = doubled(calm.rule(cloud(6)))
    assert torch.equal(calm.forward_tokens(tokens), wild.forward_tokens(tokens))


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_half_precision_runs_and_is_near(norm: Norm, checkpointing: bool) -> None:
    network = build(norm=norm, checkpointing=checkpointing).float().train()
    exact = copy.deepcopy(network)
    points = cloud(8)
    with torch.autocast("cpu", torch.bfloat16):
        features = network(points).features
        loss = features.float().square().mean()
    loss.backward()
    expected = exact(points).features
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    error = (features.float() - expected).norm() / expected.norm()
    assert float(error.detach()) < 0.05
    for name, value in network.named_buffers():
        assert value.dtype in (torch.float32, torch.int64), name


def test_layers_hold_every_parameter_once() -> None:
    network = build(depth=3)
    layers = network.layers()
    assert layers[0] == [network.embed]
    found = [p for layer in layers for module in layer for p in module.parameters()]
    assert len(found) == len({id(p) for p in found}) == len([*network.parameters()])
    for number, layer in enumerate(layers[1:]):
        assert layer == [
            network.waffleiron.channel_mix[number], network.waffleiron.spatial_mix[number],
        ]  # fmt: skip
    assert len(layers) == 4


def test_gelu_leaves_the_embedding_alone() -> None:
    network = build(activation="gelu")
    assert isinstance(network.embed.conv2[3], torch.nn.ReLU)
    names = [type(module).__name__ for module in network.waffleiron.modules()]
    assert names.count("GELU") == 8
    assert "ReLU" not in names


def test_initial_scales_are_those_of_a_depthwise_convolution() -> None:
    torch.manual_seed(0)
    weight = LayerScale(4000).weight.detach()
    assert weight.abs().max() <= 1
    assert abs(float(weight.mean())) < 0.05
    assert abs(float(weight.var()) - 1 / 3) < 0.02


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"channels": 0}, "channels"),
        ({"depth": 0}, "depth"),
        ({"neighbours": 0}, "neighbours"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"drop_path": -0.1}, "drop_path"),
        ({"norm": "group"}, "norm"),
        ({"activation": "silu"}, "activation"),
        ({"fov": ((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))}, "fov"),
        ({"fov": ((0.0, 0.0, 0.0), (1.0, math.inf, 1.0))}, "fov"),
        ({"fov": ((0.0, 0.0, math.nan), (1.0, 1.0, 1.0))}, "fov"),
        ({"planes": (3, 1, 0)}, "planes"),
        ({"planes": ()}, "planes"),
        ({"planes": (2, 1)}, "grids"),
        ({"grids": ((4, 4), (4, 0), (4, 4))}, "grids"),
        ({"voxel_size": 0.0}, "voxel_size"),
        ({"voxel_size": -0.1}, "voxel_size"),
        ({"voxel_size": math.nan}, "voxel_size"),
    ],
)
def test_arguments_that_make_no_sense(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**changes)
    assert caught.value.field == field
