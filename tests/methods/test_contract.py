"""What every pretraining method promises. A new one is found by itself; see ``small.py``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backbones.test_contract import WITHOUT_EFFECT
from lidarssl.backbones.base import Backbone
from lidarssl.errors import ConfigError
from lidarssl.experiments.pretrain import train_student
from lidarssl.frame import Field
from lidarssl.images.base import ImageEncoder
from lidarssl.methods.base import Method
from lidarssl.recipes.kinds import PretrainRecipe
from methods.small import batch_of, build, entry, frames, methods
from toys import MemoryDataset


@pytest.fixture(params=methods(), ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> type[Method]:
    return request.param


@pytest.fixture
def method(cls: type[Method]) -> Method:
    return build(cls)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoders(method: Method) -> list[ImageEncoder]:
    return [module for module in method.modules() if isinstance(module, ImageEncoder)]


def test_methods_are_found() -> None:
    assert {"Also", "Clcp", "Nclr", "Olivine", "Ppkt", "Scalr", "Slidr"} <= {
        cls.__name__ for cls in methods()
    }


def test_student_is_a_network_of_the_method(method: Method) -> None:
    assert isinstance(method.student, Backbone | ImageEncoder)
    assert isinstance(method.lidar_encoder, Backbone)
    assert getattr(method, method.student_argument) is method.student
    own = {id(parameter) for parameter in method.parameters()}
    assert all(id(parameter) in own for parameter in method.student.parameters())


def test_missing_needs_stop_before_the_first_step(method: Method, tmp_path: Path) -> None:
    for need in method.needs:
        recipe = PretrainRecipe(MemoryDataset(lacking=need), method)
        with pytest.raises(ConfigError) as caught:
            train_student(recipe, "", tmp_path / "run")
        name = str(need.name).lower()
        assert caught.value.field == name
        assert all(word in str(caught.value) for word in (name, "'memory'", "remedy: "))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("training", [True, False])
def test_what_is_needed_is_enough(method: Method, training: bool) -> None:
    batch = batch_of(method, frames(method, training=training))
    output = method.train(training).training_step(batch, draws())
    assert output.loss.shape == ()
    assert torch.isfinite(output.loss)
    assert all(not value.requires_grad for value in output.terms.values())
    if Field.IMAGES in method.needs:
        assert batch.images is not None
        assert batch.images.shape[-2:] == (32, 48)


def test_gradients_reach_every_trainable_parameter(method: Method) -> None:
    method.training_step(batch_of(method, frames(method)), draws()).loss.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            if not name.endswith(WITHOUT_EFFECT):
                assert parameter.grad.abs().max() > 0, name
    assert all(parameter.requires_grad for parameter in method.student.parameters())


def test_frozen_encoders_stay_as_they_are(method: Method) -> None:
    frozen = [encoder for encoder in encoders(method) if encoder.frozen]
    assert frozen or encoders(method) in ([], [method.student])
    before = [{k: v.clone() for k, v in encoder.state_dict().items()} for encoder in frozen]
    trained = [p for p in method.parameters() if p.requires_grad]
    method.train()
    method.training_step(batch_of(method, frames(method)), draws()).loss.backward()
    torch.optim.SGD(trained, lr=1.0).step()
    for encoder, state in zip(frozen, before, strict=True):
        assert not any(module.training for module in encoder.modules())
        assert all(parameter.grad is None for parameter in encoder.parameters())
        assert all(torch.equal(state[key], value) for key, value in encoder.state_dict().items())


def test_loss_falls_on_a_fixed_batch(method: Method) -> None:
    batch = batch_of(method, frames(method))
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = method.training_step(batch, draws()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert losses[-1] < 0.8 * losses[5]


def test_same_seed_same_loss_bit_for_bit(cls: type[Method]) -> None:
    losses = []
    for seed in (3, 3, 4):
        method = build(cls)
        losses.append(method.training_step(batch_of(method, frames(method)), draws(seed)).loss)
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2]) is not entry(cls).samples


def test_a_step_draws_from_its_generator_alone(method: Method) -> None:
    before, batch = torch.random.get_rng_state(), batch_of(method, frames(method))
    method.training_step(batch, draws())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_batch_without_matches_is_a_loss_of_zero(method: Method) -> None:
    some = frames(method)
    if some[0].matches is None:
        pytest.skip(f"{type(method).__name__} needs no match")
    for frame in some:
        assert frame.matches is not None
        frame.matches = frame.matches[torch.empty(0, dtype=torch.int64)]
    loss = method.training_step(batch_of(method, some), draws()).loss
    assert loss.item() == 0
    loss.backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_frames_that_differ_in_points_make_a_batch(method: Method) -> None:
    some = frames(method)
    keep = torch.arange(len(some[0])) < 5
    some[0] = some[0].select(keep)
    some[1] = some[1].select(torch.zeros(len(some[1]), dtype=torch.bool))
    loss = method.training_step(batch_of(method, some), draws()).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_images_must_fit_the_stride_of_the_encoder(cls: type[Method], method: Method) -> None:
    strides = [encoder.stride for encoder in encoders(method)]
    if max(strides, default=1) == 1:
        pytest.skip(f"{cls.__name__} has no strided image encoder")
    with pytest.raises(ConfigError, match="not a multiple") as caught:
        build(cls, size=(32, 48 + max(strides) - 1))
    assert caught.value.field is not None
    assert "image_size" in caught.value.field
    assert caught.value.remedy


def test_order_of_matches_does_not_matter(cls: type[Method]) -> None:
    if entry(cls).samples or Field.IMAGES not in build(cls).needs:
        pytest.skip(f"{cls.__name__} samples its matches, or has none")
    losses = []
    for turned in (False, True):
        method = build(cls).double()
        some = frames(method)
        for number, frame in enumerate(some):
            if turned and frame.matches is not None:
                order = torch.randperm(len(frame.matches), generator=draws(number))
                some[number] = replace(frame, matches=frame.matches[order])
        batch = batch_of(method, some)
        assert batch.images is not None
        batch.images = batch.images.double()
        losses.append(method.training_step(batch, draws()).loss)
    assert torch.allclose(losses[0], losses[1], rtol=1e-9)
