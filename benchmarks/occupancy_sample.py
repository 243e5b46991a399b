"""ALSO on a handful of real SemanticKITTI scans: what pretraining without any label is worth.

    python benchmarks/occupancy_sample.py --root DIR

Pretrains on the training scans, whose labels are not read. Then, for every seed: a linear probe and
fine-tuning on all training scans and on every seventh, scored on sequence 08; beside them the same
network with random weights (batch-norm statistics adapted) and the look-up on height, range and
intensity. Each job is a command that a user could type, one thread each, ``--workers`` at a time.
Finished jobs are kept: a run that was stopped goes on where it was. Writes ``table.json``.

A handful of scans is a smoke test, never a benchmark of methods.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

RANDOM, ALSO, LOOK_UP = "random init", "ALSO", "look-up"
COLUMNS = {
    ("probe", 1): "probe, all scans",
    ("probe", 7): "probe, every 7th scan",
    ("finetune", 1): "finetune, all scans",
    ("finetune", 7): "finetune, every 7th scan",
}
T = TypeVar("T")
Cell = tuple[str, str, int]  # row, verb, label_skip


@dataclass(frozen=True)
class Bench:
    """Where everything lies.

    Attributes:
        root: of SemanticKITTI.
        out: of the runs.
        options: what every pretraining, probe and fine-tuning gets, by verb.
    """

    root: Path
    out: Path
    options: dict[str, list[str]]

    def lidarssl(self, verb: str, recipe: str, run: Path, *words: str) -> None:
        command = [
            sys.executable, "-m", "lidarssl.cli", verb, recipe, "--quiet", "--run", str(run),
            "--dataset.root", str(self.root), *words, *self.options[verb],
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")

    def pretrain(self, seed: int) -> Path:
        run = self.out / f"also_{seed}"
        if not (run / "student.safetensors").is_file():
            words = ("--training.seed", str(seed))
            self.lidarssl("pretrain", "also_minkunet_kitti_sample", run, *words)
        return run

    def score(self, cell: Cell, seed: int) -> dict[str, float]:
        """mIoU in % by row of the report."""
        row, verb, skip = cell
        run = self.out / f"{verb}_{skip}_{row.replace(' ', '_')}_{seed}"
        words = ["--overwrite", "--label_skip", str(skip)]
        words += ["--seed" if verb == "probe" else "--training.seed", str(seed)]
        words += ["--no-baseline"] if verb == "probe" else []
        if row == ALSO:
            words += ["--checkpoint", str(self.out / f"also_{seed}")]
        if not (run / "metrics.json").is_file():
            self.lidarssl(verb, f"{verb}_also_minkunet_kitti_sample", run, *words)
        content = json.loads((run / "metrics.json").read_text())
        return {name: 100 * found["miou"] for name, found in content.items()}


def run(bench: Bench, seeds: int, workers: int) -> dict[Cell, list[float]]:
    """Every job; the students first, since others wait for them."""
    start, pool = time.monotonic(), ThreadPoolExecutor(workers)

    def said(future: Future[T], name: str) -> None:
        failed = " FAILED" if future.exception() else ""
        print(f"[{(time.monotonic() - start) / 60:5.1f} min] {name}{failed}", flush=True)

    def submit(name: str, job: Callable[..., T], *arguments: object) -> Future[T]:
        future = pool.submit(job, *arguments)
        future.add_done_callback(lambda done: said(done, name))
        return future

    students = [submit(f"pretrained, seed {s}", bench.pretrain, s) for s in range(seeds)]
    jobs: dict[tuple[str, str, int, int], Future[dict[str, float]]] = {}
    for row in (RANDOM, ALSO):
        if row == ALSO:
            for student in students:
                student.result()
        for verb, skip in COLUMNS:
            for seed in range(seeds):
                name = f"{row}, {COLUMNS[verb, skip]}, seed {seed}"
                jobs[row, verb, skip, seed] = submit(name, bench.score, (row, verb, skip), seed)
    scores: dict[Cell, list[float]] = {}
    for (row, verb, skip, _), job in jobs.items():
        found = dict(job.result())
        scores[LOOK_UP, verb, skip] = [found.pop(LOOK_UP)]
        scores.setdefault((row, verb, skip), []).extend(found.values())
    return scores


def table(scores: dict[Cell, list[float]]) -> str:
    """Mean +- standard deviation over the seeds, mIoU in %."""
    lines = ["| features | " + " | ".join(COLUMNS.values()) + " |", "|" + " --- |" * 5]
    for row in (LOOK_UP, RANDOM, ALSO):
        cells = []
        for verb, skip in COLUMNS:
            values = scores[row, verb, skip]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append("| " + " | ".join([row, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="of SemanticKITTI")
    parser.add_argument("--out", type=Path, default=Path("runs/occupancy_sample"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="jobs at a time, of one thread each")
    parser.add_argument("--steps", type=int, default=500, help="of pretraining")
    parser.add_argument("--voxel-size", type=float, default=0.2, help="m")
    parser.add_argument("--loaders", type=int, default=0, help="loader processes of each job")
    arguments = parser.parse_args()
    loaders, size = str(arguments.loaders), str(arguments.voxel_size)
    options = {
        "pretrain": [
            "--training.steps", str(arguments.steps), "--method.backbone.voxel_size", size,
            "--training.workers", loaders,
        ],
        "probe": ["--backbone.voxel_size", size, "--workers", loaders],
        "finetune": ["--task.backbone.voxel_size", size, "--training.workers", loaders],
    }  # fmt: skip
    bench = Bench(arguments.root, arguments.out, options)
    started = time.monotonic()
    scores = run(bench, arguments.seeds, arguments.workers)
    print(table(scores), f"\n{(time.monotonic() - started) / 60:.0f} minutes")
    content = [
        {"row": row, "protocol": verb, "label_skip": skip, "miou": values}
        for (row, verb, skip), values in scores.items()
    ]
    (arguments.out / "table.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
