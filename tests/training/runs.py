"""Small runs on disk that the tests of training share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lidarssl.datasets.base import Dataset
from lidarssl.datasets.mixed import Mixed
from lidarssl.frame import Field
from lidarssl.training.fit import FitResult, fit
from lidarssl.training.optimizer import Optimizer, Schedule
from lidarssl.training.settings import Training
from toys import MemoryDataset, ToyModule

SETTINGS = Training(
    batch_size=4,
    steps=24,
    optimizer=Optimizer("adamw", lr=1e-2),
    schedule=Schedule("warmup_cosine", warmup=0.1),
    workers=0,
    checkpoint_every=5,
    log_every=4,
    accelerator="cpu",
)


def weighted(few: float = 1.0) -> Mixed:
    """Two datasets, of which the small one is passed over more often."""
    members: dict[str, Dataset] = {"few": MemoryDataset(3), "many": MemoryDataset(14)}
    return Mixed(members, {"few": few, "many": 1.5})


def settings(**changes: Any) -> Training:
    return Training(**{**vars(SETTINGS), **changes})


def train(
    run: Path,
    training: Training = SETTINGS,
    resume: bool = False,
    module: nn.Module | None = None,
    dataset: Dataset | None = None,
    progress: bool = False,
    **options: Any,
) -> FitResult:
    """Train the toy module, and leave its weights in ``final.pt``."""
    torch.manual_seed(0)
    module, dataset = module or ToyModule(), dataset or MemoryDataset()
    result = fit(
        module, dataset, dataset.frames("train"), Field.NONE, [], training, run, "toy",
        resume=resume, progress=progress, val_ids=dataset.frames("val"), **options,
    )  # fmt: skip
    torch.save(module.state_dict(), run / "final.pt")
    return result


def final(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "final.pt", weights_only=True)
    return found


def same_weights(one: Path, other: Path) -> bool:
    left, right = final(one), final(other)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
