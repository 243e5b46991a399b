from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ive

from lidarssl.losses.von_mises_fisher import (
    Bessel,
    ClassPrototypes,
    concentration,
    log_bessel,
    log_normalizer,
    negative_log_likelihood,
)

ORDERS = (0.0, 0.5, 1.0, 7.0, 31.0, 47.5, 127.0, 511.0)
WIDE = torch.logspace(-12, 6, 2000, dtype=torch.float64)


def random_units(rows: int, channels: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, channels, generator=generator, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("order", ORDERS)
def test_bessel_equals_scipy(order: float) -> None:
    x = WIDE.clone().requires_grad_()
    value = log_bessel(order, x)
    value.sum().backward()
    this, following = ive(order, WIDE.numpy()), ive(order + 1, WIDE.numpy())
    safe = (this > 1e-280) & (following > 1e-280) & (WIDE.numpy() > 1e-2)
    assert safe.any()
    expected = np.log(this[safe]) + WIDE.numpy()[safe]
    np.testing.assert_allclose(value.detach().numpy()[safe], expected, rtol=1e-10)
    slope = following[safe] / this[safe] + order / WIDE.numpy()[safe]
    np.testing.assert_allclose(x.grad.numpy()[safe], slope, rtol=1e-11)
    assert bool(value.isfinite().all())
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("order", ORDERS)
def test_bessel_of_small_arguments(order: float) -> None:
    """The first two terms of the series, where all others vanish."""
    x = WIDE[WIDE < 1e-6]
    leading = order * torch.log(x / 2) - math.lgamma(order + 1)
    expected = leading + torch.log1p(x**2 / (4 * (order + 1)))
    assert torch.allclose(log_bessel(order, x), expected, rtol=1e-12, atol=0)


def test_bessel_of_half_order_is_a_hyperbolic_sine() -> None:
    logarithm = WIDE + torch.log(-torch.expm1(-2 * WIDE)) - math.log(2)
    expected = logarithm + torch.log(2 / (math.pi * WIDE)) / 2
    assert torch.allclose(log_bessel(0.5, WIDE), expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(order=st.floats(1, 600), x=st.floats(1e-3, 1e4))
def test_bessel_recurrence(order: float, x: float) -> None:
    """I_{n - 1}(x) - I_{n + 1}(x) = 2 n / x I_n(x), across both ways of computing them."""
    argument = torch.tensor(x, dtype=torch.float64)
    below, middle, above = (float(log_bessel(order + step, argument)) for step in (-1, 0, 1))
    left = math.exp(below - middle) - math.exp(above - middle)
    scale = math.exp(below - middle)
    # Logarithms of size 1e4 have rounding errors of 1e-12, relative to the function.
    assert left == pytest.approx(2 * order / x, abs=1e-10 * scale)


@pytest.mark.parametrize("order", [0.0, 31.0])
def test_bessel_has_no_step_where_the_method_changes(order: float) -> None:
    edge = math.sqrt(100**2 - order**2)
    x = torch.tensor([edge - 1e-6, edge + 1e-6], dtype=torch.float64, requires_grad=True)
    value = log_bessel(order, x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert float((value[1] - value[0]).detach()) == pytest.approx(2e-6 * float(slope[0]), abs=1e-11)
    assert float(slope[1]) == pytest.approx(float(slope[0]), rel=1e-6)


@pytest.mark.parametrize("order", [0.0, 3.5, 31.0])
def test_bessel_gradients(order: float) -> None:
    x = torch.tensor([[0.1, 3.0], [60.0, 400.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: log_bessel(order, x), (x,))


def test_bessel_at_zero() -> None:
    zero = torch.zeros(1, requires_grad=True)
    value = log_bessel(0, zero)
    value.sum().backward()
    assert (value.item(), zero.grad.item()) == (0, 0)
    assert log_bessel(2, torch.zeros(())).item() == -math.inf
    assert log_bessel(2, torch.zeros(0)).shape == (0,)


def test_bessel_refuses_negative_orders() -> None:
    with pytest.raises(ValueError, match="order"):
        log_bessel(-0.5, torch.ones(()))


def test_concentration() -> None:
    length = torch.tensor([0, 0.5, 0.6321757], dtype=torch.float64)
    assert concentration(length, 64).tolist() == pytest.approx([0, 42.5, 66.9715], abs=1e-4)
    assert concentration(torch.tensor(2.0), 64).item() == concentration(torch.ones(()), 64).item()
    assert 1e7 < concentration(torch.ones(()), 64).item() < 64 * 5e5


@pytest.mark.parametrize(
    ("kappa", "order_zero", "exact"),
    [
        (6.4636, -5.5929, 40.4429),
        (21.0692, 17.0377, 37.4609),
        (42.5, 17.7133, 28.6917),
        (59.6625, 11.2364, 19.1827),
    ],
)
def test_normalizer_of_64_channels(kappa: float, order_zero: float, exact: float) -> None:
    value = torch.tensor(kappa, dtype=torch.float64)
    assert log_normalizer(value, 64).item() == pytest.approx(exact, abs=1e-3)
    assert log_normalizer(value, 64, "order_zero").item() == pytest.approx(order_zero, abs=1e-3)


@pytest.mark.parametrize("kappa", [0.0, 1e-6, 0.3, 5.0, 80.0, 3000.0])
@pytest.mark.parametrize("channels", [2, 3, 5, 64])
def test_density_integrates_to_one(kappa: float, channels: int) -> None:
    """Over the sphere, by the angle to the mean: a sphere of one dimension less at each angle."""
    width = math.pi / 400_000
    angle = (torch.arange(400_000, dtype=torch.float64) + 0.5) * width
    below = math.log(2) + (channels - 1) / 2 * math.log(math.pi) - math.lgamma((channels - 1) / 2)
    ring = (channels - 2) * torch.log(torch.sin(angle)) + below
    value = log_normalizer(torch.tensor(kappa, dtype=torch.float64), channels)
    density = torch.exp(ring + kappa * torch.cos(angle) + value)
    assert density.sum().item() * width == pytest.approx(1, abs=1e-8)


def test_normalizer_at_zero_is_that_of_the_uniform_density() -> None:
    kappa = torch.zeros(2, requires_grad=True)
    value = log_normalizer(kappa, 3)
    value.sum().backward()
    assert value.tolist() == pytest.approx([-math.log(4 * math.pi)] * 2)
    assert kappa.grad.tolist() == [0, 0]


def test_slope_of_the_normalizer_at_tiny_kappa_does_not_cancel() -> None:
    """-kappa / p: the difference of order / kappa with itself leaves nothing of it."""
    kappa = torch.tensor(1e-6, requires_grad=True)
    log_normalizer(kappa, 64).backward()
    assert kappa.grad.item() == pytest.approx(-1e-6 / 64, rel=1e-5)


def test_large_argument_is_order_zero_but_for_a_sign() -> None:
    kappa = torch.tensor(50.0, dtype=torch.float64)
    correction = math.log(1 + 1 / 400 + 9 / (128 * 2500))
    wrong, right = (log_normalizer(kappa, 64, name) for name in ("large_argument", "order_zero"))
    assert (wrong - right).item() == pytest.approx(2 * correction, abs=2e-6)


def test_normalizer_refuses() -> None:
    with pytest.raises(ValueError, match="channels"):
        log_normalizer(torch.ones(()), 1)
    with pytest.raises(ValueError, match="bessel"):
        log_normalizer(torch.ones(()), 64, "order_one")  # type: ignore[arg-type]


@pytest.mark.parametrize("bessel", ["exact", "order_zero", "large_argument"])
def test_likelihood_gradients(bessel: Bessel) -> None:
    features, direction = random_units(7, 6), 3 * random_units(1, 6, seed=1)[0]
    leaves = (features, direction, torch.tensor(4.0, dtype=torch.float64))
    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, mu, kappa: negative_log_likelihood(x, mu, kappa, bessel), leaves
    )


def test_likelihood_ignores_the_length_of_the_direction() -> None:
    features, direction = random_units(7, 6), random_units(1, 6, seed=1)[0]
    kappa = torch.tensor(4.0, dtype=torch.float64)
    likelihood = negative_log_likelihood(features, direction, kappa)
    assert torch.allclose(negative_log_likelihood(features, 9 * direction, kappa), likelihood)
    expected = -log_normalizer(kappa, 6) - 4 * sum(float(f @ direction) for f in features) / 7
    assert float(likelihood) == pytest.approx(float(expected))


def prototypes(bias_correction: bool = True, decay: float = 0.1) -> ClassPrototypes:
    return ClassPrototypes(4, 6, decay, bias_correction).double()


LABELS = torch.tensor([0, 2, 2, 0, 2, 0, 2, 2, 3, 2, 3])
"""Of 11 matches; class 1 is absent."""


def clustered(seed: int) -> torch.Tensor:
    """Unit features near a direction of their class."""
    centres = random_units(4, 6, seed=9)
    return F.normalize(centres[LABELS] + 0.2 * random_units(len(LABELS), 6, seed), dim=1)


def test_update_is_a_moving_average_of_present_classes() -> None:
    model, mean, weight = prototypes(), torch.zeros(4, 6, dtype=torch.float64), [0.0] * 4
    for seed in range(3):
        features = clustered(seed)
        model.update(features, LABELS)
        for k in (0, 2, 3):
            mean[k] = 0.9 * mean[k] + 0.1 * features[k == LABELS].mean(0)
            weight[k] = 0.9 * weight[k] + 0.1
    assert torch.allclose(model.mean, mean, rtol=1e-12)
    assert model.weight.tolist() == pytest.approx(weight, rel=1e-12)
    assert model.seen().tolist() == [True, False, True, True]
    assert torch.linalg.vector_norm(model.directions(), dim=1).tolist() == pytest.approx(
        [1, 0, 1, 1]
    )
    model.update(features[:0], LABELS[:0])
    assert torch.allclose(model.mean, mean, rtol=1e-12)


def test_kappa_grows_with_the_updates_only_without_bias_correction() -> None:
    corrected, published = prototypes(True), prototypes(False)
    features = clustered(0)
    length = torch.linalg.vector_norm(features[LABELS == 2].mean(0))
    for count in range(1, 4):
        for model in (corrected, published):
            model.update(features, LABELS)
        weight = 1 - 0.9**count
        assert torch.allclose(corrected.kappas()[2], concentration(length, 6))
        assert torch.allclose(published.kappas()[2], concentration(weight * length, 6))
    assert float(corrected.kappas()[1]) == float(published.kappas()[1]) == 0


def test_published_warm_up_bounds_kappa() -> None:
    """10001 updates by one and the same vector: R = 0.632, kappa = 66.97."""
    model = ClassPrototypes(1, 64, bias_correction=False)
    features = F.one_hot(torch.tensor([5]), 64).double()
    model = model.double()
    for _ in range(10_001):
        model.update(features, torch.zeros(1, dtype=torch.int64))
    assert float(model.kappas()[0]) == pytest.approx(66.9715, abs=2e-3)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("bessel", ["exact", "order_zero"])
def test_loss_is_the_mean_of_the_classes(shares: bool, bessel: Bessel) -> None:
    """Class 3 is present but not seen, class 1 is seen but not present."""
    model = prototypes()
    model.update(clustered(0), torch.where(LABELS == 3, 1, LABELS))
    features = clustered(1).requires_grad_()
    loss = model.loss(features, LABELS, shares, bessel)
    loss.backward()
    by_hand = features.detach().clone().requires_grad_()
    terms = [
        negative_log_likelihood(
            by_hand[k == LABELS], model.directions()[k], model.kappas()[k], bessel
        )
        for k in (0, 2)
    ]
    weights = (3 / 9, 6 / 9) if shares else (0.5, 0.5)
    expected = weights[0] * terms[0] + weights[1] * terms[1]
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert torch.allclose(features.grad, by_hand.grad, rtol=1e-12)
    assert not bool(features.grad[LABELS == 3].any())


@pytest.mark.parametrize("bessel", ["exact", "order_zero", "large_argument"])
@pytest.mark.parametrize("rows", [0, 11])
def test_loss_without_a_seen_class_is_zero_with_gradients(rows: int, bessel: Bessel) -> None:
    features = clustered(0).requires_grad_()
    loss = prototypes().loss(features[:rows], LABELS[:rows], bessel=bessel)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_loss_of_half_precision_features_is_float32() -> None:
    model = ClassPrototypes(4, 6)
    model.update(clustered(0).bfloat16(), LABELS)
    loss = model.loss(clustered(0).bfloat16(), LABELS)
    assert loss.dtype is torch.float32
    assert bool(loss.isfinite())


def test_state_is_buffers() -> None:
    model = ClassPrototypes(4, 6)
    assert set(model.state_dict()) == {"mean", "weight"}
    assert list(model.parameters()) == []


def test_prototypes_refuse() -> None:
    with pytest.raises(ValueError, match="decay"):
        ClassPrototypes(4, 6, decay=0)
    with pytest.raises(ValueError, match="must be"):
        prototypes().update(torch.ones(3, 5), torch.zeros(3, dtype=torch.int64))


SPLITS = (3, 8, len(LABELS))  # matches of the first process; the second has the others, or none


def step(rows: slice, shares: bool) -> dict[str, torch.Tensor]:
    """Update and loss of some of the matches, through one layer as of a network."""
    model = prototypes()
    model.update(clustered(0)[rows], LABELS[rows])
    layer = random_units(6, 6, seed=4).requires_grad_()
    loss = model.loss(F.normalize(clustered(1)[rows] @ layer, dim=1), LABELS[rows], shares)
    loss.backward()
    return {"loss": loss.detach(), "gradient": layer.grad, **model.state_dict()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    for split in SPLITS:
        mine = (slice(split), slice(split, None))[rank]
        result = {shares: step(mine, shares) for shares in (False, True)}
        torch.save(result, f"{folder}/{split}.{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of both processes for every split."""
    path = tmp_path_factory.mktemp("prototypes")
    mp.spawn(worker, (str(path),), nprocs=2)
    return path


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("shares", [False, True])
def test_two_processes_equal_one(folder: Path, split: int, shares: bool) -> None:
    """Gradients averaged over the processes, as distributed training does."""
    ranks = [
        torch.load(folder / f"{split}.{rank}.pt", weights_only=True)[shares] for rank in range(2)
    ]
    expected = step(slice(None), shares)
    for result in ranks:
        for key in ("loss", "mean", "weight"):
            assert torch.allclose(result[key], expected[key], rtol=1e-12, atol=1e-14), key
    averaged = (ranks[0]["gradient"] + ranks[1]["gradient"]) / 2
    assert torch.allclose(averaged, expected["gradient"], rtol=1e-12, atol=1e-14)
