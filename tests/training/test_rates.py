"""Learning rates: of every layer, and of every step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from backbones.test_contract import SMALL, backbones
from lidarssl.backbones.base import Backbone
from lidarssl.errors import ConfigError
from lidarssl.frame import Field, PointBatch, PointFeatures
from lidarssl.tasks.semantic import SemanticSegmentation
from lidarssl.training.fit import fit
from lidarssl.training.optimizer import Optimizer, Schedule, build_optimizer, parameter_groups
from lidarssl.training.settings import Training
from methods.small import backbone
from toys import MemoryDataset, ToyModule


class Stack(Backbone):
    """An embedding and three layers on points, one of them in two parts."""

    out_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.body = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)

    def layers(self) -> list[list[nn.Module]]:
        first, second, third = self.body
        return [[self.embed], [first], [second, self.norm], [third]]

    def forward(self, points: PointBatch) -> PointFeatures:
        first, second, third = self.body
        rows = third(self.norm(second(first(self.embed(points.points)).relu()))).relu()
        return PointFeatures(points.points, rows, points.batch, torch.arange(len(rows)))


def rates(module: nn.Module, optimizer: Optimizer) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of every trainable parameter, which is in one group alone."""
    names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    found = [
        (names[id(p)], (group["lr"], group["weight_decay"]))
        for group in parameter_groups(module, optimizer)
        for p in group["params"]
    ]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def test_rates_of_layers_follow_the_formula() -> None:
    """lr d^(depth + 1 - id): id 0 = embedding, l + 1 = layer l, depth + 1 = head."""
    task = SemanticSegmentation(Stack(), 3, head="norm_linear")
    found = rates(task, Optimizer("adamw", 2e-3, weight_decay=0.03, layer_decay=0.9))
    ids = {
        "backbone.embed": 0, "backbone.body.0": 1, "backbone.body.1": 2, "backbone.norm": 2,
        "backbone.body.2": 3, "head.0": 4, "head.1": 4,
    }  # fmt: skip
    expected = {
        f"{name}.{kind}": (pytest.approx(2e-3 * 0.9 ** (4 - number), rel=1e-12), 0.03)
        for name, number in ids.items()
        for kind in ("weight", "bias")
    }
    assert found == expected


def test_head_keeps_a_rate_of_its_own_beside_the_layers() -> None:
    optimizer = Optimizer(lr=0.1, head_lr=2.0, head_weight_decay=0.0, layer_decay=0.5)
    found = rates(SemanticSegmentation(Stack(), 3), optimizer)
    assert found["head.weight"] == (2.0, 0.0)
    assert found["backbone.embed.weight"] == (pytest.approx(0.1 / 16), 1e-4)


def test_frozen_backbone_leaves_the_head_alone() -> None:
    found = rates(SemanticSegmentation(Stack(), 3, freeze=True), Optimizer(layer_decay=0.9))
    assert found == {"head.weight": (0.5, 1e-4), "head.bias": (0.5, 1e-4)}


def test_layers_without_order_are_refused() -> None:
    class Plain(Stack):
        layers = Backbone.layers  # type: ignore[assignment]

    for module, words in (
        (ToyModule(), "no backbone"),
        (SemanticSegmentation(Plain(), 3), "Plain"),
    ):
        rates(module, Optimizer())
        with pytest.raises(ConfigError, match=words) as caught:
            parameter_groups(module, Optimizer(layer_decay=0.9))
        assert caught.value.field == "training.optimizer.layer_decay"


@pytest.mark.parametrize("cls", backbones(), ids=lambda cls: cls.__name__)
def test_layers_hold_every_parameter_once(cls: type[Backbone]) -> None:
    network = cls(**SMALL.get(cls.__name__, {}))
    if cls.layers is Backbone.layers:
        pytest.skip("its layers have no order")
    found = [p for layer in network.layers() for part in layer for p in part.parameters()]
    assert sorted(map(id, found)) == sorted(map(id, network.parameters()))


def test_layers_are_in_order() -> None:
    """Every layer acts on the next ones, none on those before it."""
    network = backbone().eval()
    layers = network.layers()
    seen: list[int] = []
    for number, layer in enumerate(layers):
        convolution = next(iter(layer))
        convolution.register_forward_hook(lambda *_, number=number: seen.append(number))
    dataset = MemoryDataset(1)
    points = dataset.load(dataset.frames("train")[0], Field.NONE)
    batch = torch.zeros(len(points), dtype=torch.int64)
    network(PointBatch(points.points, points.intensity, batch, 1))
    assert list(dict.fromkeys(seen)) == list(range(len(layers)))


def run(folder: Path, training: Training, resume: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    task, dataset = SemanticSegmentation(Stack(), 3, head="norm_linear"), MemoryDataset()
    fit(
        task, dataset, dataset.frames("train"), Field.SEMANTIC, task.transforms(True), training,
        folder, "some", resume=resume, progress=False,
    )  # fmt: skip
    return task.state_dict()


def test_a_run_with_layers_goes_on_exactly(tmp_path: Path) -> None:
    def training(steps: int, decay: float = 0.7) -> Training:
        return Training(
            batch_size=4, steps=steps, workers=0, accelerator="cpu", schedule=Schedule("constant"),
            optimizer=Optimizer("adamw", lr=1e-2, layer_decay=decay),
        )  # fmt: skip

    run(tmp_path / "cut", training(8))
    resumed = run(tmp_path / "cut", training(16), resume=True)
    whole = run(tmp_path / "whole", training(16))
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    flat = run(tmp_path / "flat", training(16, decay=1.0))
    assert any(not torch.equal(flat[key], value) for key, value in whole.items())


def published_curve(warmup: int, steps: int, final: float) -> np.ndarray:
    """The schedule of WaffleIron: linear from 0, then half a cosine, in float64."""
    i = np.arange(steps, dtype=np.float64)
    eased = final + 0.5 * (1 - final) * (1 + np.cos(np.pi * (i - warmup) / (steps - warmup)))
    return np.where(i < warmup, i / max(warmup, 1), eased)


@pytest.mark.parametrize(
    ("unit", "length"), [("run", 0.1), ("epoch", 2.0), ("step", 20.0)]
)  # fmt: skip
def test_warmup_in_every_unit(unit: str, length: float) -> None:
    """20 of 200 steps, 10 of which are an epoch."""
    schedule = Schedule(
        "warmup_cosine", warmup=length, final=0.005, unit=unit, first_rate_zero=True  # type: ignore[arg-type]
    )  # fmt: skip
    factor = schedule.factor(200, 10)
    found = [factor(step) for step in range(200)]
    np.testing.assert_allclose(found, published_curve(20, 200, 0.005), rtol=1e-12)
    schedule.first_rate_zero = False
    shifted = [schedule.factor(200, 10)(step) for step in range(200)]
    assert shifted[0] == pytest.approx(1 / 20)
    np.testing.assert_allclose(shifted[:-1], found[1:], rtol=1e-12)


def test_published_peak_has_the_rates_of_nclr() -> None:
    schedule = Schedule(
        "warmup_cosine", warmup=0.05, final=0.01, first_rate_zero=True, published_peak=True
    )
    factor = schedule.factor(1000, 20)
    anchors = {0: 0.0, 1: 2.0408e-5, 49: 1e-3, 50: 1e-3, 525: 5.05e-4, 999: 1.00027e-5}
    assert {step: 1e-3 * factor(step) for step in anchors} == pytest.approx(anchors, rel=1e-5)
    assert schedule.factor(1019, 20)(49) == 1, "1/20 of the run is rounded down"
    schedule.first_rate_zero = False
    shifted = schedule.factor(1000, 20)
    assert [shifted(step) for step in range(999)] == [factor(step) for step in range(1, 1000)]


@pytest.mark.parametrize("published", [False, True])
def test_inverse_sqrt_of_epochs(published: bool) -> None:
    """ScaLR+: 1 epoch of warm-up, time scale 0.45 epochs, 2 of 65 epochs to cool down."""
    per_epoch, steps = 20, 65 * 20
    schedule = Schedule(
        "inverse_sqrt", warmup=1, timescale=0.45, cooldown=2, unit="epoch",
        first_rate_zero=True, published_jump=published,
    )  # fmt: skip
    found = [schedule.factor(steps, per_epoch)(step) for step in range(steps)]
    i = np.arange(steps, dtype=np.float64)
    w, tau, c = per_epoch, 0.45 * per_epoch, 63 * per_epoch
    m = steps - c
    base = (1 + (c if published else c - w) / tau) ** -0.5
    expected = np.select(
        [i < w, i <= c],
        [i / w, (1 + (i - w).clip(0) / tau) ** -0.5],
        base * (m - (i - c) - 1) / (m - 1),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_inverse_sqrt_trains_in_its_first_step_by_default() -> None:
    schedule = Schedule("inverse_sqrt", warmup=0.1, timescale=0.05, cooldown=0.2)
    factor = schedule.factor(100, 10)
    found = [factor(step) for step in range(101)]
    assert found[0] == pytest.approx(0.1)
    assert found[9] == pytest.approx(1.0)
    assert found[80] == pytest.approx((1 + 71 / 5) ** -0.5)
    assert found[98] > 0
    assert found[99] == pytest.approx(0, abs=1e-12)
    assert found[100] == 0
    assert min(found) >= 0


@pytest.mark.parametrize("name", ["warmup", "cooldown"])
def test_a_length_beyond_the_run_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)longer than the run.*unit epoch") as caught:
        Schedule("inverse_sqrt", **{name: 2.0})
    assert caught.value.field == f"training.schedule.{name}"


def test_restarts_are_those_of_torch() -> None:
    """Epoch by epoch, in float64: the curve of a sequence of torch's own schedules."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.02, total_iters=3)
    waves = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, T_0=2, T_mult=3, eta_min=0.2
    )
    whole = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, waves], milestones=[3])
    expected = []
    for _ in range(30):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        whole.step()
    schedule = Schedule(
        "warmup_restarts", warmup=3, start=0.02, period=2, period_factor=3, final=0.1,
        unit="epoch", epoch_steps=True,
    )  # fmt: skip
    factor = schedule.factor(steps=300, steps_per_epoch=10)
    found = [2.0 * factor(10 * epoch + 7) for epoch in range(30)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    schedule.epoch_steps = False
    smooth = schedule.factor(steps=300, steps_per_epoch=10)
    assert [smooth(10 * epoch) for epoch in range(30)] == pytest.approx(
        [factor(10 * epoch) for epoch in range(30)]
    )
    assert smooth(15) == pytest.approx((factor(10) + factor(20)) / 2), "the rise is a line"
    assert smooth(35) != factor(35)


def test_poly_falls_to_its_last_rate() -> None:
    factor = Schedule("poly", final=0.01, power=0.9).factor(steps=80, steps_per_epoch=10)
    expected = [0.01 + 0.99 * (1 - step / 80) ** 0.9 for step in range(81)]
    assert [factor(step) for step in range(81)] == pytest.approx(expected)
    assert factor(90) == pytest.approx(0.01)


def test_a_period_cannot_outlast_the_run() -> None:
    with pytest.raises(ConfigError, match="longer than the run") as caught:
        Schedule("warmup_restarts", period=2.0)
    assert caught.value.field == "training.schedule.period"


def test_vectors_and_scalars_can_be_left_without_decay() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
            self.scale, self.token = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(1, 1, 4))
            self.head = nn.Linear(4, 2)

    module = Scaled()
    names = {parameter: name for name, parameter in module.named_parameters()}

    def decays(optimizer: Optimizer) -> dict[str, float]:
        return {
            names[parameter]: group["weight_decay"]
            for group in parameter_groups(module, optimizer)
            for parameter in group["params"]
        }

    some = decays(Optimizer("adamw", weight_decay=0.1, head_weight_decay=0.2, decay="matrices"))
    assert some == dict.fromkeys(names.values(), 0.0) | {"linear.weight": 0.1, "head.weight": 0.2}
    assert set(decays(Optimizer("adamw", weight_decay=0.1)).values()) == {0.1}


def test_betas_reach_the_optimiser() -> None:
    made = build_optimizer(nn.Linear(2, 2), Optimizer("adamw", betas=(0.8, 0.95)))
    assert [group["betas"] for group in made.param_groups] == [(0.8, 0.95)]
