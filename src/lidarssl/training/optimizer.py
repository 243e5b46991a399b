"""Optimiser and learning-rate schedule of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lidarssl import schedules
from lidarssl.backbones.base import Backbone
from lidarssl.errors import ConfigError


@dataclass
class Optimizer:
    """Optimiser of a run.

    Args:
        name: ``sgd`` or ``adamw``.
        lr: learning rate.
        weight_decay: decoupled for adamw.
        betas: of adamw.
        decay: the weights that decay: ``all``, or ``matrices``, which leaves out biases, norms
            and learned scalars, as transformers are trained.
        momentum: of sgd; the papers of the SLidR family use 0.9.
        dampening: of sgd; the papers of the SLidR family use 0.1.
        head_lr: rate of parameters whose name contains ``head``; None = ``lr``.
        head_weight_decay: likewise; None = ``weight_decay``.
        layer_decay: factor on the rate of each layer of the backbone for every layer that comes
            after it, the head included; None = one rate for all layers.
        gradient_clip: largest norm of the gradient; None = no clipping.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.5
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    decay: Literal["all", "matrices"] = "all"
    momentum: float = 0.9
    dampening: float = 0.1
    head_lr: float | None = None
    head_weight_decay: float | None = None
    layer_decay: float | None = None
    gradient_clip: float | None = None


ScheduleName = Literal[
    "constant", "cosine_epoch", "warmup_cosine", "warmup_restarts", "inverse_sqrt", "poly"
]


@dataclass
class Schedule:
    """How the learning rate moves.

    Args:
        name: ``constant``; ``cosine_epoch`` (stepped once per epoch, as SLidR);
            ``warmup_cosine``, ``warmup_restarts``, ``inverse_sqrt`` and ``poly`` (every step).
        warmup: length of the linear warm-up of the second to fourth.
        final: last rate of ``warmup_cosine`` and ``poly`` as a fraction of the first; of
            ``warmup_restarts`` the rate at the end of every cosine.
        start: of ``warmup_restarts``: the first rate as a fraction of the full one.
        period: of ``warmup_restarts``: length of the first cosine.
        period_factor: of ``warmup_restarts``: how many times longer each cosine is than the one
            before.
        epoch_steps: of ``warmup_restarts``: the rate stays the same through each epoch, as in
            the published code of CLCP.
        power: of ``poly``.
        timescale: of ``inverse_sqrt``: the rate is 1 / sqrt(1 + time / timescale).
        cooldown: length of the linear fall to 0 at the end of ``inverse_sqrt``.
        unit: of the lengths: the whole ``run``, an ``epoch`` or a ``step``.
        first_rate_zero: a warm-up starts from 0 in the first step, which then trains nothing, as
            the published code of WaffleIron and ScaLR.
        published_jump: of ``inverse_sqrt``: the jump that the published code of ScaLR+ makes
            where the fall begins.
        published_peak: of ``warmup_cosine``: the warm-up, its length rounded down, ends with the
            full rate and the cosine starts with it once more, as the published code of NCLR.

    Raises:
        ConfigError: a length beyond the run.
    """

    name: ScheduleName = "cosine_epoch"
    warmup: float = 0.0
    final: float = 0.0
    start: float = 0.01
    period: float = 1.0
    period_factor: int = 1
    epoch_steps: bool = False
    power: float = 0.9
    timescale: float = 0.01
    cooldown: float = 0.0
    unit: Literal["run", "epoch", "step"] = "run"
    first_rate_zero: bool = False
    published_jump: bool = False
    published_peak: bool = False

    def __post_init__(self) -> None:
        for name in ("warmup", "cooldown", "period"):
            if self.unit == "run" and getattr(self, name) > 1:
                raise ConfigError(
                    f"{getattr(self, name)} runs are longer than the run",
                    field=f"training.schedule.{name}",
                    remedy="give a number from 0 to 1, or training.schedule.unit epoch or step",
                )

    def factor(self, steps: int, steps_per_epoch: int) -> Callable[[int], float]:
        """Rate at a step as a fraction of the rate of the optimiser."""
        if self.name == "constant":
            return lambda step: 1.0
        if self.name == "cosine_epoch":
            epochs = max(1, steps // steps_per_epoch)
            return lambda step: schedules.cosine(
                min(step // steps_per_epoch, epochs), lr=1.0, total=epochs
            )
        if self.name == "poly":
            return lambda step: schedules.poly(
                step, total=steps, lr=1.0, min_lr=self.final, power=self.power
            )
        unit = {"run": steps, "epoch": steps_per_epoch, "step": 1}[self.unit]
        if self.name == "warmup_restarts":
            held = steps_per_epoch if self.epoch_steps else 1
            return lambda step: schedules.warmup_restarts(
                step // held * held, self.warmup * unit, lr=1.0, start_factor=self.start,
                period=self.period * unit, period_factor=self.period_factor, min_lr=self.final,
            )  # fmt: skip
        warmup = (math.floor if self.published_peak else round)(self.warmup * unit)
        # The first step of a warm-up trains too: a rate of exactly 0 would waste it.
        first = 1 if warmup and not self.first_rate_zero else 0
        if self.name == "warmup_cosine":
            return lambda step: schedules.warmup_cosine(
                min(step + first, steps), lr=1.0, warmup=warmup, total=steps, min_lr=self.final,
                published_peak=self.published_peak,
            )  # fmt: skip
        cooldown = steps - round(self.cooldown * unit)
        return lambda step: schedules.inverse_sqrt(
            step + first, warmup, cooldown + first, steps + first, lr=1.0,
            timescale=self.timescale * unit, published_jump=self.published_jump,
        )  # fmt: skip


def parameter_groups(module: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Trainable parameters with their rates; empty groups are left out.

    With ``layer_decay`` d, layer i of the L of the backbone (from 0, the embedding) has d^(L - i)
    times the rate (ScaLR, with L = depth + 1); what is in no layer has the whole one.

    Raises:
        ConfigError: ``layer_decay`` of a module without a backbone, or of a backbone whose layers
            have no order.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    head_lr = optimizer.lr if optimizer.head_lr is None else optimizer.head_lr
    head_decay = (
        optimizer.weight_decay
        if optimizer.head_weight_decay is None
        else optimizer.head_weight_decay
    )
    decay = 1.0 if optimizer.layer_decay is None else optimizer.layer_decay
    heights = {} if optimizer.layer_decay is None else layers_above(module)
    head = [p for name, p in named if "head" in name.split(".")]
    rest: dict[int, list[nn.Parameter]] = {}
    for name, parameter in named:
        if "head" not in name.split("."):
            rest.setdefault(heights.get(parameter, 0), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": rest[height],
            "lr": optimizer.lr * decay**height,
            "weight_decay": optimizer.weight_decay,
        }
        for height in sorted(rest)
    ]
    groups.append({"params": head, "lr": head_lr, "weight_decay": head_decay})
    if optimizer.decay == "matrices":
        groups = [part for group in groups for part in _matrices_apart(group)]
    return [group for group in groups if group["params"]]


def _matrices_apart(group: dict[str, Any]) -> list[dict[str, Any]]:
    """The matrices of a group, and the rest of it without decay."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in group["params"]:
        long_axes = sum(side > 1 for side in parameter.shape)
        (matrices if long_axes >= 2 else others).append(parameter)
    return [{**group, "params": matrices}, {**group, "params": others, "weight_decay": 0.0}]


def layers_above(module: nn.Module) -> dict[nn.Parameter, int]:
    """Number of layers after the layer of each parameter of a backbone, the head included.

    Raises:
        ConfigError: there is no backbone, or its layers have no order.
    """
    backbone = next((part for part in module.modules() if isinstance(part, Backbone)), None)
    if backbone is None:
        raise ConfigError(
            "there is no backbone whose rates could decay",
            field="training.optimizer.layer_decay",
            remedy="set it to null",
        )
    layers = backbone.layers()
    return {
        parameter: len(layers) - number
        for number, layer in enumerate(layers)
        for part in layer
        for parameter in part.parameters()
    }


def build_optimizer(module: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    groups = parameter_groups(module, optimizer)
    if optimizer.name == "adamw":
        return torch.optim.AdamW(groups, betas=optimizer.betas)
    return torch.optim.SGD(groups, momentum=optimizer.momentum, dampening=optimizer.dampening)
