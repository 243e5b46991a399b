"""Folded batch norms against the network as it is written."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lidarssl.images import folding
from lidarssl.images.resnet import ResNet

DEPTHS = [(18, False), (50, False), (50, True)]


def randomised(depth: int = 18, dilated: bool = False, frozen: bool = True) -> ResNet:
    """An encoder whose batch norms are no identity."""
    generator = torch.Generator().manual_seed(depth)
    torch.manual_seed(depth)
    encoder = ResNet(depth, dilated=dilated, frozen=frozen)  # type: ignore[arg-type]
    for name, value in encoder.model.state_dict().items():
        if "normalization" in name and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.25)
    return encoder


def images(count: int = 2, height: int = 40, width: int = 72) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((count, 3, height, width), generator=generator)


def as_written(encoder: ResNet, batch: Tensor) -> Tensor:
    with torch.no_grad():
        maps: Tensor = encoder.model(encoder.normalised(batch)).last_hidden_state
    return maps


def assert_folded_equals_written(encoder: ResNet, batch: Tensor, bound: float) -> None:
    expected, actual = as_written(encoder, batch), encoder(batch)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert (actual - expected).norm() <= bound * expected.norm()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that were folded."""
    found: list[nn.Module] = []
    fold = folding.FoldedResNet.of

    def counted(model: nn.Module) -> folding.FoldedResNet:
        found.append(model)
        return fold(model)

    monkeypatch.setattr(folding.FoldedResNet, "of", counted)
    return found


@pytest.mark.parametrize(("depth", "dilated"), DEPTHS)
def test_equals_the_network_as_written(depth: int, dilated: bool) -> None:
    encoder = randomised(depth, dilated)
    assert_folded_equals_written(encoder, images(), 3e-6)
    assert_folded_equals_written(encoder.double(), images().double(), 1e-12)


def test_is_folded_once(calls: list[nn.Module]) -> None:
    encoder = randomised()
    first = encoder(images())
    assert torch.equal(encoder(images()), first)
    assert calls == [encoder.model]


def halved(encoder: ResNet) -> None:
    with torch.no_grad():
        encoder.model.encoder.stages[0].layers[0].layer[1].convolution.weight.mul_(0.5)


def loaded(encoder: ResNet) -> None:
    state = {
        key: value * 1.5 if value.is_floating_point() else value
        for key, value in encoder.state_dict().items()
    }
    encoder.load_state_dict(state)


def assigned(encoder: ResNet) -> None:
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    state["model.embedder.embedder.normalization.running_mean"] += 0.5
    encoder.load_state_dict(state, assign=True)


def put_in_place(encoder: ResNet) -> None:
    norm = encoder.model.embedder.embedder.normalization
    norm.weight = nn.Parameter(norm.weight.detach() * 2, requires_grad=False)


def given_other_data(encoder: ResNet) -> None:
    norm = encoder.model.embedder.embedder.normalization
    norm.bias.data = norm.bias.data + 0.25


def measured_anew(encoder: ResNet) -> None:
    encoder.model.embedder.embedder.normalization.running_var.add_(0.75)


CHANGES = [halved, loaded, assigned, put_in_place, given_other_data, measured_anew]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_follows_the_weights(change: Callable[[ResNet], None]) -> None:
    encoder = randomised()
    before = encoder(images())
    change(encoder)
    assert not torch.allclose(encoder(images()), before, rtol=1e-3)
    assert_folded_equals_written(encoder, images(), 3e-6)


def test_follows_the_type_there_and_back() -> None:
    encoder = randomised()
    before = encoder(images())
    assert_folded_equals_written(encoder.double(), images().double(), 1e-12)
    assert torch.equal(encoder.float()(images()), before)
    encoder.to(memory_format=torch.channels_last)
    assert_folded_equals_written(encoder, images(), 3e-6)


def test_follows_weights_of_inference_mode() -> None:
    with torch.inference_mode():
        encoder = randomised()
        encoder(images())
        encoder.model.embedder.embedder.normalization.weight.mul_(2)
        assert_folded_equals_written(encoder, images(), 3e-6)


def test_the_state_is_that_of_the_network() -> None:
    encoder = randomised()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    names = [name for name, _ in encoder.named_parameters()]
    encoder(images())
    assert list(encoder.state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert [name for name, _ in encoder.named_parameters()] == names


def test_copies_fold_for_themselves(calls: list[nn.Module]) -> None:
    encoder = randomised()
    expected = encoder(images())
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(images()), expected)
        assert calls[-1] is twin.model
        halved(twin)
        assert not torch.allclose(twin(images()), expected)
    assert torch.equal(encoder(images()), expected)


def test_training_is_never_folded(calls: list[nn.Module]) -> None:
    encoder = randomised(frozen=False).train()
    encoder(images()).sum().backward()
    statistics = encoder.model.embedder.embedder.normalization.running_mean.clone()
    with torch.no_grad():
        encoder(images())
    assert not torch.equal(encoder.model.embedder.embedder.normalization.running_mean, statistics)
    encoder.eval()
    encoder(images()).sum().backward()
    frozen = randomised()
    frozen.model.train()  # behind the encoder's back
    with torch.no_grad():
        expected = copy.deepcopy(frozen.model)(frozen.normalised(images())).last_hidden_state
    assert torch.equal(frozen(images()), expected)
    assert calls == []


def test_gradients_of_images_are_those_of_the_network(calls: list[nn.Module]) -> None:
    encoder = randomised()
    batch = images().requires_grad_()
    (gradient,) = torch.autograd.grad(encoder.features(batch).sum(), batch)
    (expected,) = torch.autograd.grad(encoder.model(batch).last_hidden_state.sum(), batch)
    assert torch.equal(gradient, expected)
    assert calls == []


def test_hooks_of_layers_are_called() -> None:
    encoder = randomised()
    seen: list[Tensor] = []
    last = encoder.model.encoder.stages[3]
    with last.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        assert torch.equal(encoder(images()), seen[0])
    assert torch.allclose(encoder(images()), seen[0], rtol=1e-3, atol=1e-4)
    assert len(seen) == 1


@pytest.mark.parametrize("together", [1, 2, 3, 5])
def test_images_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    encoder = randomised().double()
    batch = images(5).double()
    expected = as_written(encoder, batch)
    monkeypatch.setattr(folding, "_PIXELS_AT_ONCE", together * 40 * 72)
    torch.testing.assert_close(encoder(batch), expected, rtol=1e-10, atol=1e-10)


def test_no_image_gives_no_map() -> None:
    assert randomised()(torch.zeros(0, 3, 64, 96)).shape == (0, 512, 2, 3)


def test_follows_autocast() -> None:
    encoder = randomised(50, True)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = as_written(encoder, images()), encoder(images())
    exact = as_written(encoder, images())
    assert actual.dtype == expected.dtype == torch.bfloat16
    error, allowed = (actual - exact).norm(), (expected - exact).norm()
    assert 0 < error < 1.5 * allowed
