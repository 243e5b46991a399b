"""From confusion matrices of single frames to what a shift costs, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.metrics.bootstrap import (
    frame_draws,
    percentiles,
    resampled_miou,
    summarise_seeds,
)
from lidarssl.metrics.segmentation import iou_report
from lidarssl.report.shift import (
    POOLED,
    ConditionGain,
    ConditionScore,
    Estimate,
    MethodGain,
    MethodScores,
)

RESAMPLES = 2000
DRAWS_SEED = 0
"""Of the resampled frames: equal commands give equal intervals."""


@dataclass(frozen=True)
class JudgedRun:
    """A run under every condition.

    Attributes:
        name: of its folder.
        method: how its encoder was pretrained.
        seed: of its training.
        matrices: (F, C, C) int64 of each condition, the source first; ``POOLED`` may be the last.
    """

    name: str
    method: str
    seed: int
    matrices: Mapping[str, Tensor]


def with_pooled(matrices: Mapping[str, Tensor], paired: bool) -> dict[str, Tensor]:
    """The conditions, and all but the source together where there are several.

    Args:
        matrices: (F, C, C) of each condition, the source first.
        paired: frame i is of one scene in every condition; those of a scene stay together.
    """
    targets = list(matrices.values())[1:]
    if len(targets) < 2:
        return dict(matrices)
    together = torch.stack(targets).sum(0) if paired else torch.cat(targets)
    return {**matrices, POOLED: together}


def draw_frames(matrices: Mapping[str, Tensor], paired: bool) -> dict[str, Tensor]:
    """How often each frame counts in each resample, (RESAMPLES, F) of every condition.

    Args:
        paired: frame i is of one scene in every condition, and is drawn in all or in none.

    Returns:
        NaN where there is a single frame: it does not tell how much others would differ.
    """
    generator = torch.Generator().manual_seed(DRAWS_SEED)
    if paired:
        count = len(next(iter(matrices.values())))
        return dict.fromkeys(matrices, _draws(count, generator))
    return {name: _draws(len(each), generator) for name, each in matrices.items()}


def _draws(frames: int, generator: torch.Generator) -> Tensor:
    draws = frame_draws(frames, RESAMPLES, generator)
    return draws if frames > 1 else torch.full_like(draws, torch.nan)


def method_scores(runs: Sequence[JudgedRun], draws: Mapping[str, Tensor]) -> MethodScores:
    """One or several runs of a method in every condition.

    The interval of one run is that of resampled frames; of several runs it is Student's, of the
    mean over them.
    """
    source = next(iter(runs[0].matrices))
    conditions = []
    for condition in runs[0].matrices:
        together = torch.stack([run.matrices[condition].sum(0) for run in runs]).sum(0)
        relative = None
        if condition != source:
            relative = _estimate([_relative(run, condition, source, draws) for run in runs])
        conditions.append(
            ConditionScore(
                condition,
                _frames(runs[0].matrices, condition),
                _estimate([_miou(run, condition, draws) for run in runs]),
                relative,
                tuple(_finite(miou(run.matrices[condition])) for run in runs),
                tuple(_finite(float(value)) for value in iou_report(together).iou[1:]),
            )
        )
    names, seeds = tuple(run.name for run in runs), tuple(run.seed for run in runs)
    return MethodScores(runs[0].method, names, seeds, tuple(conditions))


def method_gain(
    runs: Sequence[JudgedRun], baseline: Sequence[JudgedRun], draws: Mapping[str, Tensor]
) -> MethodGain | None:
    """A method beside the one without pretraining; None where their runs do not pair up.

    Two single runs are paired frame by frame, several by the seeds that both have.
    """
    pairs, what = _pairs(runs, baseline)
    if not pairs:
        return None
    source = next(iter(runs[0].matrices))
    gains = []
    for condition in runs[0].matrices:
        relative = None
        if condition != source:
            relative = _estimate(
                [
                    _difference(
                        _relative(one, condition, source, draws),
                        _relative(other, condition, source, draws),
                    )
                    for one, other in pairs
                ]
            )
        scores = [
            _difference(_miou(one, condition, draws), _miou(other, condition, draws))
            for one, other in pairs
        ]
        gains.append(ConditionGain(condition, _estimate(scores), relative))
    return MethodGain(runs[0].method, baseline[0].method, what, tuple(gains))


def miou(matrices: Tensor) -> float:
    """mIoU in [0, 1] over all frames of (F, C, C)."""
    return float(iou_report(matrices.sum(0)).miou)


def _frames(matrices: Mapping[str, Tensor], condition: str) -> int:
    """Frames behind a condition; of one scene there may be several in all conditions together."""
    targets = [len(each) for name, each in matrices.items() if name != POOLED][1:]
    together = condition == POOLED and len(targets) > 1
    return sum(targets) if together else len(matrices[condition])


_Resampled = tuple[float, Tensor]
"""A number of one run, and the same number of every resample of its frames."""


def _miou(run: JudgedRun, condition: str, draws: Mapping[str, Tensor]) -> _Resampled:
    matrices = run.matrices[condition]
    return miou(matrices), resampled_miou(matrices, draws[condition])


def _relative(
    run: JudgedRun, condition: str, source: str, draws: Mapping[str, Tensor]
) -> _Resampled:
    value, resampled = _miou(run, condition, draws)
    of_source, resampled_source = _miou(run, source, draws)
    return value / of_source if of_source else math.nan, resampled / resampled_source


def _difference(one: _Resampled, other: _Resampled) -> _Resampled:
    return one[0] - other[0], one[1] - other[1]


def _estimate(runs: Sequence[_Resampled]) -> Estimate:
    values = [value for value, _ in runs]
    if not all(math.isfinite(value) for value in values):
        return Estimate(None)
    if len(runs) == 1:
        low, high = percentiles(runs[0][1])
        return Estimate(values[0], _finite(low), _finite(high))
    summary = summarise_seeds(values)
    return Estimate(summary.mean, summary.low, summary.high, summary.std)


def _pairs(
    runs: Sequence[JudgedRun], baseline: Sequence[JudgedRun]
) -> tuple[list[tuple[JudgedRun, JudgedRun]], str]:
    """Runs of two methods that belong together, and what makes them pairs."""
    if len(runs) == len(baseline) == 1:
        return [(runs[0], baseline[0])], f"the frames of {runs[0].name} and {baseline[0].name}"
    first, second = ({run.seed: run for run in some} for some in (runs, baseline))
    seeds = sorted(first.keys() & second.keys())
    repeated = len(first) < len(runs) or len(second) < len(baseline)
    if repeated or len(seeds) < 2:
        return [], ""
    return [(first[seed], second[seed]) for seed in seeds], f"seeds {', '.join(map(str, seeds))}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
