"""Learning-rate curves as pure functions of a step (an iteration or an epoch, from 0)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def constant(step: float, lr: float) -> float:
    """ALSO: no schedule."""
    return lr


def cosine(step: float, total: float, lr: float, min_lr: float = 0.0) -> float:
    """From ``lr`` at step 0 to ``min_lr`` at ``total``; periodic beyond, as in torch.

    SLidR and PPKT step it once per epoch (Loshchilov & Hutter, 2017, eq. 5 without restarts).
    """
    return _ease(lr, min_lr, step / total)


def warmup_cosine(
    step: float,
    warmup: float,
    total: float,
    lr: float,
    min_lr: float = 0.0,
    *,
    published_peak: bool = False,
) -> float:
    """Linear from 0 at step 0 to ``lr`` at ``warmup``, then cosine to ``min_lr`` at ``total``.

    WaffleIron and ScaLR step it once per iteration, so their first iteration has rate 0.

    Args:
        warmup: steps of the rise.
        total: steps of the run.
        published_peak: the rise ends with ``lr`` at ``warmup - 1``, and the cosine starts with it
            once more: the published code of NCLR.
    """
    if step < warmup:
        return lr * step / (max(warmup - 1, 1) if published_peak else warmup)
    return cosine(step - warmup, max(total - warmup, 1), lr, min_lr)


def inverse_sqrt(
    step: float,
    warmup: float,
    cooldown: float,
    total: float,
    lr: float,
    *,
    timescale: float,
    published_jump: bool = False,
) -> float:
    """Linear from 0 to ``lr``, then as 1 / sqrt of the time, then linear to 0.

    ScaLR+ steps it once per iteration: ``lr / sqrt(1 + (step - warmup) / timescale)`` between
    ``warmup`` and ``cooldown``; 0 at step 0 and at ``total - 1``, the last one. (Zhai et al.,
    "Scaling Vision Transformers", CVPR 2022, section 3.5.)

    Args:
        warmup: steps of the rise.
        cooldown: step from which the rate falls linearly.
        total: steps of the run.
        timescale: steps.
        published_jump: count the time of the fall's first rate from step 0 instead of from
            ``warmup``: the published code, whose rate makes a small jump there.
    """
    if step < warmup:
        return lr * step / warmup
    since = 0.0 if published_jump and step > cooldown else warmup
    plateau = lr / math.sqrt(1 + (min(step, max(cooldown, warmup)) - since) / timescale)
    if step <= cooldown:
        return plateau
    length = max(total - cooldown - 1, 1)
    return plateau * max(0.0, 1 - (step - cooldown) / length)


def warmup_restarts(
    step: float,
    warmup: float,
    lr: float,
    *,
    start_factor: float,
    period: float,
    period_factor: int = 1,
    min_lr: float = 0.0,
) -> float:
    """Linear from ``start_factor * lr`` to ``lr``, then cosine with warm restarts (SGDR).

    CLCP steps it once per epoch.

    Args:
        warmup: steps of the linear part.
        period: steps of the first cosine.
        period_factor: how many times longer each cosine is than the one before, >= 1.
    """
    if step < warmup:
        return lr * (start_factor + (1 - start_factor) * step / warmup)
    step -= warmup
    while step >= period:
        step -= period
        period *= period_factor
    return _ease(lr, min_lr, step / period)


def one_cycle(
    step: float,
    total: int,
    lr: float,
    *,
    momenta: tuple[float, float] = (0.95, 0.85),
    div_factor: float = 10.0,
    warm_fraction: float = 0.4,
) -> tuple[float, float]:
    """Learning rate and momentum (Adam's beta1) of the one-cycle policy (Smith, 2018).

    OpenPCDet's form, set before every iteration: ``lr / div_factor`` -> ``lr`` over the first
    ``warm_fraction`` of the steps while momentum falls, then down to ``lr / div_factor / 1e4``
    while it rises again; both cosine.

    Returns:
        (learning rate, momentum).
    """
    boundary = int(warm_fraction * total)
    high, low = momenta
    if step < boundary:
        progress = step / boundary
        return _ease(lr / div_factor, lr, progress), _ease(high, low, progress)
    progress = (step - boundary) / (total - boundary)
    return _ease(lr, lr / div_factor / 1e4, progress), _ease(low, high, progress)


def poly(step: float, total: float, lr: float, min_lr: float = 0.0, power: float = 0.9) -> float:
    """From ``lr`` at step 0 to ``min_lr`` at ``total``, falling as (1 - step / total)^power.

    Segmenter steps it once per iteration, with power 0.9.
    """
    return min_lr + (lr - min_lr) * (1 - min(step / total, 1)) ** power


def step_decay(step: float, lr: float, milestones: Sequence[float], factor: float = 0.1) -> float:
    """``lr`` times ``factor`` for every milestone reached.

    SLidR's ``steplr`` has one milestone, ``int(0.9 * epochs)``.
    """
    return lr * factor ** sum(step >= milestone for milestone in milestones)


def _ease(start: float, end: float, progress: float) -> float:
    """Half a cosine from ``start`` at progress 0 to ``end`` at 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
