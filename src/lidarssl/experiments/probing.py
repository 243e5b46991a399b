"""`lidarssl probe` of a ``probe`` recipe: pretrained features beside random ones, seed by seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lidarssl.backbones.base import Backbone
from lidarssl.experiments.labelled import Labelled
from lidarssl.experiments.record import Recorder, architecture, load_backbone
from lidarssl.recipes.kinds import ProbeRecipe
from lidarssl.recipes.schema import LoadedRecipe, build_backbone
from lidarssl.report.schema import RANDOM_INIT
from lidarssl.tasks.probe import probe_task
from lidarssl.tasks.semantic import SemanticSegmentation, adapt_batch_norm, evaluate
from lidarssl.wording import counted


@dataclass(frozen=True)
class Judged:
    """A method and how it did.

    Attributes:
        method: its name in the report.
        task: backbone and head of the first seed.
        matrices: confusion matrix of every seed, (C, C) int64.
    """

    method: str
    task: SemanticSegmentation
    matrices: list[Tensor]


@dataclass(frozen=True)
class ProbeRun:
    """What all probes of a run share.

    Attributes:
        seeds: how often each method is probed; seed i is the recipe's plus i.
    """

    loaded: LoadedRecipe
    frames: Labelled
    device: torch.device
    recorder: Recorder
    seeds: int = 1
    progress: bool = True

    def judge(self, checkpoint: Path | None, baseline: bool) -> list[Judged]:
        """Probe the checkpoint and, for comparison or without one, the same network untrained.

        Raises:
            ConfigError: the checkpoint is of another architecture.
            DataError: it is no checkpoint, or a frame is bad.
        """
        judged = []
        if checkpoint is not None:
            backbone = self.recipe.backbone
            built = architecture(backbone, self.loaded.resolved, "backbone")
            name = load_backbone(backbone, checkpoint, built)
            judged.append(self._judge_seeds(name, lambda seed: backbone))
        if checkpoint is None or baseline:
            judged.append(self._judge_seeds(RANDOM_INIT, self.random_backbone))
        return judged

    @property
    def recipe(self) -> ProbeRecipe:
        recipe: ProbeRecipe = self.loaded.recipe
        return recipe

    def random_backbone(self, seed: int) -> Backbone:
        """The recipe's network with the weights of a seed and statistics of the data."""
        node: dict[str, Any] = yaml.safe_load(self.loaded.resolved)["backbone"]
        backbone = build_backbone(node, seed)
        few = self.frames.train[: self.recipe.adapt_frames]
        adapt_batch_norm(backbone, self.frames.batches(few, backbone), self.device)
        return backbone

    def _judge_seeds(self, method: str, backbone_of: Callable[[int], Backbone]) -> Judged:
        tasks, matrices = [], []
        times = f", {self.seeds} seeds" if self.seeds > 1 else ""
        what = f"{method}, {counted(len(self.frames.train), 'labelled frame')}{times}"
        with self.recorder.stage(f"probe/{method}", what):
            for seed in range(self.recipe.seed, self.recipe.seed + self.seeds):
                task = self._fit(backbone_of(seed), seed)
                val = self.frames.batches(self.frames.val, task.backbone)
                total = self.frames.val_batches
                matrices.append(evaluate(task, val, self.device, total, self.progress))
                tasks.append(task)
        return Judged(method, tasks[0], matrices)

    def _fit(self, backbone: Backbone, seed: int) -> SemanticSegmentation:
        return probe_task(
            backbone, self.frames.batches(self.frames.train, backbone),
            len(self.frames.dataset.classes), self.recipe.probe, self.device,
            torch.Generator().manual_seed(seed), self.progress,
        )  # fmt: skip
