"""What training steps say of held-out frames, comparable from step to step and from run to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytorch_lightning as lightning
import torch
import torch.distributed as dist

from lidarssl.distributed import all_reduce_sum, gather_rows, world_size
from lidarssl.frame import Batch, Pairs, StepOutput
from lidarssl.metrics.retrieval import RetrievalReport, retrieval
from lidarssl.training.draws import step_generator


class Validation:
    """Steps on some batches in eval mode; leaves weights, statistics and draws untouched.

    Args:
        batches: (rank, world) -> that process's part of every held-out batch, always the same.
        seed: of the draws inside a step: batch i always sees the same ones.
        every: optimiser steps between two validations.
    """

    def __init__(
        self, batches: Callable[[int, int], Iterator[Batch]], seed: int, every: int
    ) -> None:
        self.batches, self.seed, self.every = batches, seed, every

    @torch.no_grad()
    def values(self, trainer: lightning.Trainer, module: Any) -> dict[str, float]:
        """What there is to log.

        ``val_loss`` and ``val_<term>`` are means over batches and processes, a term's over the
        batches that have it. Where steps embed pairs, retrieval and alignment of all of them
        together: a pair finds its partner among those of every batch and process.

        Args:
            trainer: knows device, precision and processes.
            module: a method or task.
        """
        outputs = self._outputs(trainer, module)
        losses = torch.stack([output.loss.float() for output in outputs])
        mean = trainer.strategy.reduce(losses.mean(), reduce_op="mean")
        found = mean_terms(outputs, losses.device)
        pairs = [output.pairs for output in outputs if output.pairs is not None]
        if pairs:
            found |= retrieval_values(_gathered(pairs))
        return {f"val_{name}": value for name, value in found.items()} | {"val_loss": float(mean)}

    def _outputs(self, trainer: lightning.Trainer, module: Any) -> list[StepOutput]:
        device, outputs = trainer.strategy.root_device, []
        batches = self.batches(trainer.global_rank, trainer.world_size)
        was_training = module.training
        module.eval()
        for number, batch in enumerate(batches):
            with trainer.precision_plugin.val_step_context():
                output = module.training_step(batch.to(device), step_generator(self.seed, number))
            outputs.append(output)
        module.train(was_training)
        return outputs


def mean_terms(outputs: Sequence[StepOutput], device: torch.device) -> dict[str, float]:
    """Mean of every term over the batches of all processes that have it.

    Args:
        device: of the exchange between processes.
    """
    names = _everywhere(dict.fromkeys(name for output in outputs for name in output.terms))
    if not names:
        return {}
    sums = torch.zeros(len(names), 2, device=device)
    for output in outputs:
        for number, name in enumerate(names):
            if name in output.terms:
                value = torch.as_tensor(output.terms[name], dtype=sums.dtype, device=device)
                sums[number] += torch.stack([value, torch.ones_like(value)])
    totals = all_reduce_sum(sums)
    return dict(zip(names, (totals[:, 0] / totals[:, 1]).tolist(), strict=True))


def retrieval_values(pairs: Pairs) -> dict[str, float]:
    """Recall both ways beside that of chance, and how the embeddings lie; NaN of a diverged model.

    Args:
        pairs: all of them.
    """
    image, lidar = pairs.image.cpu(), pairs.lidar.cpu()
    known = bool(image.isfinite().all() and lidar.isfinite().all())
    return _values(retrieval(image, lidar) if known else retrieval(image[:0], lidar[:0]))


def _values(report: RetrievalReport) -> dict[str, float]:
    there, back = report.exact.image_to_lidar, report.exact.lidar_to_image
    values: dict[str, float] = {}
    for k, chance in report.exact.chance.items():
        values[f"recall@{k}_image_to_lidar"] = there.recall[k]
        values[f"recall@{k}_lidar_to_image"] = back.recall[k]
        values[f"recall@{k}_chance"] = chance
    return values | {
        "median_rank_image_to_lidar": there.median_rank,
        "median_rank_lidar_to_image": back.median_rank,
        "alignment": report.alignment,
        "uniformity_image": report.uniformity_image,
        "uniformity_lidar": report.uniformity_lidar,
        "modality_gap": report.modality_gap,
    }


def _gathered(pairs: Sequence[Pairs]) -> Pairs:
    """The rows of all batches of all processes."""
    image, lidar = (
        gather_rows(torch.cat(rows).float())
        for rows in ([one.image for one in pairs], [one.lidar for one in pairs])
    )
    return Pairs(image, lidar)


def _everywhere(names: Iterable[str]) -> list[str]:
    """Names of every process in one order: a batch of a mixture need not have every term."""
    own = list(names)
    if world_size() == 1:
        return own
    found: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(found, own)
    return list(dict.fromkeys(name for part in found for name in part))
