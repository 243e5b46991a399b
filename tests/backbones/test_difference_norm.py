"""The affine map of two batch norms and a layer against these layers one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lidarssl.backbones.difference_norm import difference_affine
from lidarssl.sparse.norms import RowNorm

TOKENS, NEIGHBOURS, INPUTS, CHANNELS = 20, 3, 4, 5
SPLITS = (7, 13, TOKENS)  # tokens of the first rank


def layers(
    norm: type[nn.BatchNorm1d], seed: int = 0, momentum: float | None = 0.3, inputs: int = INPUTS
) -> nn.Sequential:
    """Norm, linear layer and norm, with disturbed parameters and statistics, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(
            norm(inputs, momentum=momentum),
            nn.Linear(inputs, CHANNELS, bias=False),
            norm(CHANNELS, momentum=momentum, eps=1e-3),
        ).double()
        for name, value in made.state_dict().items():
            if value.is_floating_point():
                value.add_(
                    0.5 * torch.rand_like(value) if "var" in name else torch.randn_like(value)
                )
    return made


def rows(seed: int = 0, tokens: int = TOKENS, inputs: int = INPUTS) -> tuple[Tensor, Tensor]:
    """Values far from zero, as heights and radii are, and neighbours."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64) * 2 + 30
    return values, torch.randint(tokens, (tokens, NEIGHBOURS), generator=generator)


def by_map(
    made: nn.Sequential, values: Tensor, neighbours: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    values = values.clone().requires_grad_()
    matrix, bias = difference_affine(values, neighbours, made)
    out = (values[neighbours] - values[:, None]) @ matrix.T + bias
    return outcome(made, values, out, weight)


def one_by_one(
    made: nn.Sequential, values: Tensor, neighbours: Tensor, weight: Tensor
) -> dict[str, Tensor]:
    values = values.clone().requires_grad_()
    difference = (values[neighbours] - values[:, None]).flatten(0, 1)
    out = made(difference).view(*neighbours.shape, CHANNELS)
    return outcome(made, values, out, weight)


def outcome(made: nn.Sequential, values: Tensor, out: Tensor, weight: Tensor) -> dict[str, Tensor]:
    (out.square() * weight[: len(out)]).sum().backward()
    assert values.grad is not None
    gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    state = {f"{name} after": value.clone() for name, value in made.state_dict().items()}
    return {"out": out.detach(), "values": values.grad, **gradients, **state}


def weights() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(100, 1, CHANNELS, generator=generator, dtype=torch.float64)


def close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        # The gradient of the inner shift is zero up to rounding, as the outer norm removes it.
        scale = float(value.abs().max()) + 1
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-9 * scale, msg=name)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_equal_to_the_layers_one_after_the_other(training: bool, momentum: float | None) -> None:
    ours = layers(RowNorm, momentum=momentum).train(training)
    theirs = layers(nn.BatchNorm1d, momentum=momentum).train(training)
    for step in range(3):
        values, neighbours = rows(step)
        close(
            by_map(ours, values, neighbours, weights()),
            one_by_one(theirs, values, neighbours, weights()),
        )
        ours.zero_grad()
        theirs.zero_grad()


@given(seed=st.integers(0, 1000), tokens=st.integers(2, 30), inputs=st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_equal_whatever_the_sizes(seed: int, tokens: int, inputs: int) -> None:
    ours, theirs = (layers(norm, seed, inputs=inputs) for norm in (RowNorm, nn.BatchNorm1d))
    values, neighbours = rows(seed, tokens, inputs)
    close(
        by_map(ours, values, neighbours, weights()),
        one_by_one(theirs, values, neighbours, weights()),
    )


def test_float32_is_near_float64_far_from_the_origin() -> None:
    values, neighbours = rows()
    values = values + 1000
    exact = difference_affine(values.float().double(), neighbours, layers(RowNorm))
    rounded = difference_affine(values.float(), neighbours, layers(RowNorm).float())
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_no_pair_leaves_the_statistics_alone() -> None:
    made = layers(RowNorm).train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    values, neighbours = torch.zeros(0, INPUTS).double(), torch.zeros(0, NEIGHBOURS).long()
    matrix, bias = difference_affine(values, neighbours, made)
    expected = difference_affine(*rows(), layers(RowNorm).eval())
    assert torch.equal(matrix, expected[0])
    assert torch.equal(bias, expected[1])
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_once_folded_the_layer_is_the_map() -> None:
    linear = nn.Linear(INPUTS, CHANNELS)
    folded = nn.Sequential(nn.Identity(), linear, nn.Identity())
    matrix, bias = difference_affine(*rows(), folded)
    assert matrix is linear.weight
    assert bias is linear.bias


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    for split in SPLITS:
        mine = slice(0, split) if rank == 0 else slice(split, TOKENS)
        torch.save(step(mine), f"{folder}/{split}.{rank}.pt")
    dist.destroy_process_group()


def step(mine: slice) -> dict[str, Tensor]:
    """Forward and backward of some tokens, whose neighbours are among them."""
    values, neighbours = rows()
    first = mine.start or 0
    inside = first + (neighbours[mine] - first) % max(mine.stop - first, 1)
    return by_map(layers(RowNorm), values[mine], inside - first, weights()[mine])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of both ranks for every split."""
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_equal_one(folder: Path, split: int) -> None:
    """The second rank has the other tokens, or none."""
    ranks = [torch.load(folder / f"{split}.{rank}.pt", weights_only=True) for rank in range(2)]
    values, neighbours = rows()
    parts = ((0, split), (split, TOKENS))
    near = torch.cat(
        [low + (neighbours[low:high] - low) % max(high - low, 1) for low, high in parts]
    )
    expected = one_by_one(layers(nn.BatchNorm1d), values, near, weights())
    together = {name: torch.cat([result[name] for result in ranks]) for name in ("out", "values")}
    for name in expected.keys() - together.keys():
        if name.endswith(" after"):
            assert torch.allclose(ranks[0][name].double(), ranks[1][name].double())
            together[name] = ranks[0][name]
        else:
            together[name] = ranks[0][name] + ranks[1][name]
    close(together, expected)
