"""On a CUDA device every backbone, method and search computes what the CPU computes.

Networks with sparse convolutions by both of their implementations there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backbones.test_contract import SMALL, backbones, cloud
from lidarssl.backbones.base import Backbone
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.geometry.balls import ball_pairs
from lidarssl.geometry.knn import nearest_table, neighbour_table
from lidarssl.geometry.neighbours import nearest, within_radius
from lidarssl.methods.base import Method
from lidarssl.methods.scalr import Scalr
from lidarssl.sparse.backends.choice import backend
from methods.small import batch_of, build, frames, methods

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """No TF32, whose ten bits of mantissa would hide what is compared here."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision(before)


SPARSE = pytest.mark.parametrize("sparse", ["torch", "triton"])


@contextmanager
def on(device: str, sparse: str) -> Iterator[None]:
    """Inside, sparse convolutions run by ``sparse`` on the GPU, always by torch on the CPU."""
    with backend(sparse if device == "cuda" else "torch"):
        yield


def close(found: Tensor, expected: Tensor, relative: float, floor: float = 0.0) -> bool:
    """Whether they differ by a small share of the largest value."""
    error = (found.detach().cpu().double() - expected.detach().cpu().double()).abs().max()
    return bool(error <= relative * expected.detach().abs().max().clamp(min=floor))


def gradients_agree(found: nn.Module, expected: nn.Module) -> None:
    wanted = {n: p.grad for n, p in expected.named_parameters() if p.grad is not None}
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    assert wanted
    for name, parameter in found.named_parameters():
        if name in wanted:
            assert parameter.grad is not None, name
            assert close(parameter.grad, wanted[name], 1e-3, floor=1e-2 * largest), name


def made(cls: type[Backbone]) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(**SMALL.get(cls.__name__, {}))
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("cls", backbones(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("ahead", [True, False], ids=["prepared", "on the device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@SPARSE
def test_backbone(cls: type[Backbone], ahead: bool, dtype: torch.dtype, sparse: str) -> None:
    points, outputs, models = cloud(0), [], []
    for device in ("cpu", "cuda"):
        model = made(cls).to(device, dtype).eval()
        given = (model.prepare(points) if ahead else points).to(device)
        with on(device, sparse):
            output = model(given)
        (output.features * torch.linspace(-1, 1, output.features.shape[1]).to(output.features)).sum(
            1
        ).square().mean().backward()
        outputs.append(output)
        models.append(model)
    expected, found = outputs
    assert found.features.device.type == "cuda"
    assert torch.equal(found.token_of_point.cpu(), expected.token_of_point)
    assert torch.equal(found.batch.cpu(), expected.batch)
    assert close(found.positions, expected.positions, 1e-5)
    assert close(found.features, expected.features, 1e-4 if dtype == torch.float32 else 1e-9)
    if dtype == torch.float64:
        gradients_agree(models[1], models[0])


@pytest.mark.parametrize("cls", methods(), ids=lambda cls: cls.__name__)
@SPARSE
def test_training_step(cls: type[Method], sparse: str) -> None:
    steps = []
    for device in ("cpu", "cuda"):
        method = build(cls)
        batch = batch_of(method, frames(method))
        method.to(device)
        with on(device, sparse):
            output = method.training_step(batch.to(device), torch.Generator().manual_seed(0))
        output.loss.backward()
        steps.append((method, output))
    (expected, wanted), (found, output) = steps
    assert output.loss.device.type == "cuda"
    assert output.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-4)
    gradients_agree(found, expected)


VARIANTS: dict[str, dict[str, Any]] = {
    "layer norm, gelu": {"norm": "layer", "activation": "gelu"},
    "checkpointing": {"checkpointing": True},
    "padded": {"padded": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_waffleiron_in_training(variant: str) -> None:
    points, models, outputs = cloud(0, (70, 41)), [], []
    for device in ("cpu", "cuda"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = WaffleIron(**SMALL["WaffleIron"] | VARIANTS[variant])
        model.to(device, torch.float64).train()
        output = model(points.to(device)).features
        (output * torch.linspace(-1, 1, output.shape[1]).to(output)).sum(
            1
        ).square().mean().backward()
        models.append(model)
        outputs.append(output)
    assert close(outputs[1], outputs[0], 1e-9)
    gradients_agree(models[1], models[0])
    state = models[0].state_dict()
    for name, value in models[1].state_dict().items():
        assert close(value, state[name], 1e-9), name


def test_tokens_made_on_the_device() -> None:
    points = cloud(1)
    rule = WaffleIron(**SMALL["WaffleIron"] | {"voxel_size": 0.5, "padded": True}).rule
    expected, found = rule(points), rule(points.to("cuda"))
    for name in ("neighbours", "cells", "batch", "token_of_point", "positions"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name
    assert close(found.features, expected.features, 1e-6)
    assert close(found.weights, expected.weights, 1e-6)


def test_scalr_in_half_precision() -> None:
    losses = []
    for device, half in (("cpu", False), ("cuda", True)):
        method = build(Scalr)
        batch = batch_of(method, frames(method))
        method.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = method.training_step(batch.to(device), torch.Generator()).loss
        loss.backward()
        assert loss.dtype == torch.float32
        trained = [p for p in method.parameters() if p.requires_grad]
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.parametrize("k", [1, 6, 700])
def test_neighbour_tables(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, sources = torch.randn((2, 500, 3), generator=generator).unbind()
    found = nearest_table(queries.cuda(), sources.cuda(), k).cpu()
    assert torch.equal(found, nearest_table(queries, sources, k))
    assert torch.equal(neighbour_table(sources.cuda(), k).cpu(), neighbour_table(sources, k))


@pytest.mark.parametrize("limit", [None, 5])
def test_searches(limit: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, sources = torch.randn((2, 500, 3), generator=generator).unbind()
    batch = torch.arange(500) % 3
    arguments = [queries, sources, 0.7, limit, batch, batch]
    expected = ball_pairs(*arguments)
    found = ball_pairs(*[a.cuda() if isinstance(a, Tensor) else a for a in arguments])
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
    for search, size in ((nearest, 4), (within_radius, 0.7)):
        expected = search(queries, sources, size, batch, batch)
        found = search(queries.cuda(), sources.cuda(), size, batch.cuda(), batch.cuda())
        assert torch.equal(found.query.cpu(), expected.query)
        assert torch.equal(found.source.cpu(), expected.source)
