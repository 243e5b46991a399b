"""Whether a checkpoint can continue a run exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl.datasets.base import Stream
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import FrameId
from lidarssl.training.learner import Learner
from lidarssl.training.optimizer import build_optimizer
from lidarssl.weights import read_content
from lidarssl.wording import counted

ORDER = "lidarssl_batch_order"
_PARTS: dict[str, type] = {
    "state_dict": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": Mapping,
    "global_step": int,
    "pytorch-lightning_version": str,
    ORDER: Mapping,
}
# Of runs of before the option.
_BEFORE: dict[str, object] = {"drop_last": True, "weights": {}}
_REMEDY = "resume with the recipe that started the run"


@dataclass(frozen=True)
class BatchOrder:
    """What decides which frames a step sees, and what it draws.

    Attributes:
        seed: of the run.
        batch_size: frames of a global batch.
        frames: fingerprint of the ids, in order.
        drop_last: whether an epoch leaves out an incomplete batch.
        weights: of the streams, by name; empty = all frames alike.
    """

    seed: int
    batch_size: int
    frames: str
    drop_last: bool = True
    weights: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        seed: int,
        batch_size: int,
        ids: Sequence[FrameId],
        drop_last: bool = True,
        streams: Sequence[Stream] = (),
    ) -> BatchOrder:
        digest = hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()
        weights = {stream.name: stream.weight for stream in streams}
        return cls(seed, batch_size, f"{len(ids)} ({digest[:12]})", drop_last, weights)


def resumable_step(path: Path, learner: Learner, order: BatchOrder) -> int:
    """The step that a checkpoint continues from, once it is sure to fit.

    Args:
        path: ``last.ckpt``.
        learner: whose state and optimiser's state it must hold.
        order: of the run that wants to continue.

    Raises:
        ConfigError: there is none, or it is of another architecture, optimiser, seed, batch size,
            list of frames or weights.
        DataError: it is damaged, or no checkpoint of a run.
    """
    if not path.is_file():
        raise ConfigError(
            "there is no checkpoint to resume from",
            path=path,
            remedy="start the run without --resume",
        )
    try:
        saved = read_content(path)
    except DataError as error:
        raise DataError(
            error.problem,
            path=path,
            field="--resume",
            remedy="start the run without --resume, or in another folder",
        ) from error
    for name, kind in _PARTS.items():
        if not isinstance(saved.get(name), kind):
            raise DataError(
                "is not a checkpoint of a run",
                path=path,
                field=name,
                remedy="start the run without --resume",
            )
    _check_weights(saved["state_dict"], learner.state_dict(), path)
    optimizer = build_optimizer(learner.module, learner.optimizer)
    _check_optimizer(saved["optimizer_states"], optimizer, path)
    for name, value in asdict(order).items():
        before = saved[ORDER].get(name, _BEFORE.get(name))
        if before != value:
            raise ConfigError(
                f"the run was started with {name} {before}, not {value}",
                path=path,
                field=name,
                remedy=_REMEDY,
            )
    return int(saved["global_step"])


def _check_weights(found: Mapping[str, Any], expected: Mapping[str, Tensor], path: Path) -> None:
    differ = sorted(
        {name for name in found.keys() & expected.keys() if not _fits(found[name], expected[name])}
        | (found.keys() ^ expected.keys())
    )
    if differ:
        raise ConfigError(
            f"the checkpoint is of another architecture, {counted(len(differ), 'weight')} of it",
            path=path,
            field=str(differ[0])[:200],
            remedy=_REMEDY,
        )


def _fits(found: object, expected: Tensor) -> bool:
    return isinstance(found, Tensor) and found.shape == expected.shape


def _check_optimizer(states: list[Any], optimizer: torch.optim.Optimizer, path: Path) -> None:
    try:
        found = [_outline(state["param_groups"]) for state in states]
    except (KeyError, TypeError) as error:
        raise DataError(
            "holds no state of an optimiser",
            path=path,
            field="optimizer_states",
            remedy="start the run without --resume",
        ) from error
    if found != [_outline(optimizer.state_dict()["param_groups"])]:
        raise ConfigError(
            "the checkpoint is of another optimiser, or of other trainable parameters",
            path=path,
            field="training.optimizer",
            remedy=_REMEDY,
        )


def _outline(groups: list[dict[str, Any]]) -> list[tuple[set[str], int]]:
    # Schedulers add the first.
    return [(set(group) - {"initial_lr"}, len(group["params"])) for group in groups]
