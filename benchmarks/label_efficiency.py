"""What pretraining is worth on the synthetic world, with few and with many labels.

    python benchmarks/label_efficiency.py --out runs/label_efficiency --workers 2

Rows: look-up, random init, ALSO, PPKT, SLidR, OLIVINE, NCLR, ScaLR, or some of them (``--rows``,
which also knows OLIVINE without some of its terms); of a small MinkUNet or, into
``OUT/waffleiron``, of a small WaffleIron (``--backbone``). Columns: probe and fine-tuning with 1 %,
10 % and 100 % of the labels. Every row tries the same learning rates and takes the one that is best
on the ``tune`` scenes with seed 0; it is scored on the ``val`` scenes, which nothing else has seen.
A seed changes the initial weights, every draw, and which frames are labelled.

Finished jobs are kept in ``OUT/jobs``: a run that was stopped goes on where it was.
Writes ``table.md``, ``results.json`` and ``report.html``.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from jobs import Jobs
from torch import Tensor

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.config import SplitConfig, WorldConfig
from lidarssl.experiments.downstream import DESCRIPTIONS, Labelled, lookup_confusion
from lidarssl.experiments.pretrain import train_student
from lidarssl.experiments.record import Recorder, architecture, load_backbone
from lidarssl.experiments.teacher import score_teacher, train_teacher
from lidarssl.frame import Field, FrameId
from lidarssl.metrics.segmentation import confusion, iou_report
from lidarssl.prepare.labellers.small_unet import SmallUNetLabeller
from lidarssl.prepare.superpixels import prepare_superpixels
from lidarssl.prepare.weak_labels import prepare_weak_labels
from lidarssl.recipes.schema import load
from lidarssl.report.build import build_report
from lidarssl.report.schema import (
    LOOK_UP,
    RANDOM_INIT,
    EfficiencyRow,
    Protocol,
    ProtocolNote,
    Results,
)
from lidarssl.tasks.probe import FeatureTable, LinearProbe, extract_features, fit_probe
from lidarssl.tasks.semantic import adapt_batch_norm, evaluate, label_counts
from lidarssl.training.fit import fit

SKIPS = {0.01: 100, 0.1: 10, 1.0: 1}
PROBE_RATES = (5e-3, 2e-2, 8e-2)
FINETUNE_RATES = (3e-3, 6e-3, 1.2e-2)
FINETUNE_STEPS = {0.01: (150, 1), 0.1: (160, 2), 1.0: (240, 2)}  # steps, frames of a step

METHODS = {
    "ALSO": "also", "PPKT": "ppkt", "SLidR": "slidr", "OLIVINE": "olivine", "NCLR": "nclr",
    "ScaLR": "scalr",
}  # fmt: skip
ABLATIONS = {
    "OLIVINE-points": ["semantic=0", "distribution=0"],
    "OLIVINE-semantic": ["points=0", "distribution=0"],
    "OLIVINE-distribution": ["points=0", "semantic=0"],
    "OLIVINE-points-semantic": ["distribution=0"],
    "OLIVINE-points-distribution": ["semantic=0"],
    "OLIVINE-semantic-distribution": ["points=0"],
}
"""OLIVINE with some of its terms: the weights of the others."""
ROWS = (RANDOM_INIT, *METHODS)
BACKBONES = {"minkunet": ROWS, "waffleiron": (RANDOM_INIT, "ScaLR")}
PROTOCOLS = (Protocol.PROBE.value, Protocol.FINETUNE.value)
SPLITS = (
    SplitConfig("teacher", scenes=40, frames=2),
    SplitConfig("train", scenes=60, frames=2),
    SplitConfig("val", scenes=40, frames=1),
    SplitConfig("tune", scenes=20, frames=1),
)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    """Where everything lies."""

    out: Path
    pretrain_steps: int
    rows: tuple[str, ...] = ROWS
    protocols: tuple[Protocol, ...] = (Protocol.PROBE, Protocol.FINETUNE)
    backbone: str = "minkunet"
    points_per_frame: int = 4000

    @property
    def results(self) -> Path:
        return self.out if self.backbone == "minkunet" else self.out / self.backbone

    @property
    def world(self) -> Path:
        return self.out / "world"

    @property
    def teacher(self) -> Path:
        return self.out / "teacher.safetensors"

    @property
    def has_teacher(self) -> bool:
        return any(taught_by_images(row) for row in self.rows)

    def student(self, row: str, seed: int) -> Path:
        return self.results / f"{METHODS.get(row, row)}_{seed}"

    def frames(self, fraction: float, seed: int, split: str) -> Labelled:
        """The labelled frames of a fraction; a seed shifts which they are."""
        dataset = Synthetic(self.world)
        pool, skip = dataset.frames("train"), SKIPS[fraction]
        offset = seed * max(1, min(skip, len(pool)) // 3) % skip
        return Labelled(dataset, pool[offset::skip], fraction, dataset.frames(split), 0, 4)


def method_of(row: str) -> str:
    """First word of the recipes of a row."""
    return METHODS["OLIVINE" if row in ABLATIONS else row]


def taught_by_images(row: str) -> bool:
    return row != RANDOM_INIT and method_of(row) != "also"


def prepare(bench: Bench, workers: int) -> None:
    """World, and teacher, superpixels and weak labels of the rows; what is there is kept."""
    dataset = Synthetic.generate(bench.world, WorldConfig(splits=SPLITS), workers)
    if not bench.has_teacher:
        return
    if not bench.teacher.is_file():
        torch.set_num_threads(workers)
        train_teacher(dataset, bench.teacher, steps=400)
    methods = {method_of(row) for row in bench.rows if row != RANDOM_INIT}
    if "slidr" in methods:
        prepare_superpixels(
            dataset, "train", bench.out / "superpixels", segments=100, compactness=6.0, sigma=1.0,
            workers=workers,
        )  # fmt: skip
    if "olivine" in methods:
        prepare_weak_labels(
            dataset, "train", bench.out / "weak_labels", SmallUNetLabeller(bench.teacher),
            workers=workers,
        )  # fmt: skip


def pretrain(bench: Bench, row: str, seed: int) -> None:
    run = bench.student(row, seed)
    if (run / "student.safetensors").is_file():
        return
    overrides = [
        f"--dataset.root={bench.world}",
        f"--training.steps={bench.pretrain_steps}",
        f"--training.seed={seed}",
        "--training.workers=0",
    ]
    method = method_of(row)
    if taught_by_images(row):
        overrides.append(f"--method.image_encoder.weights={bench.teacher}")
    if method == "slidr":
        overrides.append(f"--method.superpixels.folder={bench.out / 'superpixels'}")
    if method == "olivine":
        overrides.append(f"--method.weak_labels.folder={bench.out / 'weak_labels'}")
    overrides += [f"--method.weights.{weight}" for weight in ABLATIONS.get(row, [])]
    recipe = load(f"{method}_{bench.backbone}_synthetic", overrides)
    train_student(recipe.recipe, recipe.resolved, run, progress=False)


def backbone_of(bench: Bench, row: str, seed: int, ids: list[FrameId]) -> Backbone:
    """The pretrained backbone, or a random one with the batch-norm statistics of the data."""
    options = [f"--dataset.root={bench.world}", f"--seed={seed}"]
    recipe = load(f"probe_{bench.backbone}_synthetic", options)
    backbone: Backbone = recipe.recipe.backbone
    if row == RANDOM_INIT:
        frames = bench.frames(1.0, seed, "val")
        adapt_batch_norm(backbone, frames.batches(ids[:32], backbone), CPU)
    else:
        built = architecture(backbone, recipe.resolved, "backbone")
        load_backbone(backbone, bench.student(row, seed), built)
    return backbone


def probe(bench: Bench, row: str, seed: int) -> list[dict[str, object]]:
    """Every fraction and rate of one row and seed; features are computed once."""
    everything = bench.frames(1.0, seed, "val")
    backbone = backbone_of(bench, row, seed, everything.train)
    generator = torch.Generator().manual_seed(seed)
    tables = {
        frame: extract_features(
            backbone, everything.batches([frame], backbone), CPU, bench.points_per_frame,
            generator, progress=False,
        )
        for frame in everything.train
    }  # fmt: skip
    held_out = {
        split: extract_features(
            backbone, bench.frames(1.0, seed, split).batches(
                bench.frames(1.0, seed, split).val, backbone
            ), CPU, progress=False,
        )
        for split in ("val", "tune")
    }  # fmt: skip
    classes, results = len(everything.dataset.classes), []
    for fraction in SKIPS:
        chosen = [tables[frame] for frame in bench.frames(fraction, seed, "val").train]
        table = FeatureTable(
            torch.cat([part.features for part in chosen]), torch.cat([p.labels for p in chosen])
        )
        for rate in PROBE_RATES:
            draws = torch.Generator().manual_seed(seed)
            linear = fit_probe(table, classes, LinearProbe(lr=rate), draws, progress=False)
            scores = {
                split: _miou(linear(rows.features)[:, 1:].argmax(1) + 1, rows.labels, classes)
                for split, rows in held_out.items()
            }
            results.append({"fraction": fraction, "rate": rate, **scores})
    return results


def finetune(
    bench: Bench, row: str, seed: int, fraction: float, rate: float
) -> list[dict[str, object]]:
    """All weights on a fraction of the labels."""
    frames = bench.frames(fraction, seed, "val")
    steps, batch = FINETUNE_STEPS[fraction]
    recipe = load(
        f"finetune_{bench.backbone}_synthetic",
        [
            f"--dataset.root={bench.world}", f"--training.steps={steps}",
            f"--training.batch_size={batch}", f"--training.seed={seed}",
            f"--training.optimizer.lr={rate}", "--training.workers=0",
            "--training.checkpoint_every=0",
        ],
    )  # fmt: skip
    task = recipe.recipe.task
    if row != RANDOM_INIT:
        built = architecture(task.backbone, recipe.resolved, "task", "backbone")
        load_backbone(task.backbone, bench.student(row, seed), built)
    task.set_class_weights(label_counts(frames.batches(frames.train), task.num_classes))
    run = bench.results / "finetune" / f"{row}_{seed}_{fraction}_{rate}".replace(" ", "_")
    fit(
        task, frames.dataset, frames.train, Field.SEMANTIC, task.transforms(True),
        recipe.recipe.training, run, "finetune", prepare=task.backbone.prepare, progress=False,
    )  # fmt: skip
    scores: dict[str, object] = {}
    for split in ("val", "tune"):
        held_out = bench.frames(fraction, seed, split)
        batches = held_out.batches(held_out.val, task.backbone)
        matrix = evaluate(task, batches, CPU, progress=False)
        scores[split] = float(iou_report(matrix).miou)
    return [{"fraction": fraction, "rate": rate, **scores}]


def look_up(bench: Bench, seed: int) -> list[dict[str, object]]:
    return [
        {
            "fraction": fraction,
            "rate": 0.0,
            "val": float(iou_report(lookup_confusion(bench.frames(fraction, seed, "val"))).miou),
        }
        for fraction in SKIPS
    ]


def _miou(predicted: Tensor, labels: Tensor, classes: int) -> float:
    return float(iou_report(confusion(predicted, labels, classes)).miou)


Scores = dict[tuple[str, Protocol, float], list[float]]


def best_rate(results: Iterable[dict[str, object]], fraction: float) -> float:
    """The rate with the best score on the tuning scenes."""
    candidates = [r for r in results if r["fraction"] == fraction]
    return float(max(candidates, key=lambda r: float(r["tune"]))["rate"])  # type: ignore[arg-type]


def run(bench: Bench, seeds: int, workers: int) -> tuple[Scores, dict[str, float]]:
    """Every job, in an order that keeps all processes busy."""
    jobs, scores, rates = Jobs(bench.results / "jobs", workers), {}, {}
    pretrained = [
        jobs.submit(f"pretrain {row} {seed}", pretrain, bench, row, seed)
        for seed in range(seeds)
        for row in bench.rows
        if row != RANDOM_INIT
    ]
    for future in pretrained:
        future.result()
    probes = {
        (row, seed): jobs.submit(f"probe {row} {seed}", probe, bench, row, seed)
        for row in bench.rows
        for seed in range(seeds)
    }
    lookups = [jobs.submit(f"look-up {seed}", look_up, bench, seed) for seed in range(seeds)]

    def submit_finetune(row: str, seed: int, fraction: float, rate: float) -> Future[object]:
        name = f"finetune {row} {seed} {fraction} {rate}"
        return jobs.submit(name, finetune, bench, row, seed, fraction, rate)

    tuning = {
        (row, fraction): [submit_finetune(row, 0, fraction, rate) for rate in FINETUNE_RATES]
        for row in bench.rows
        for fraction in SKIPS
        if Protocol.FINETUNE in bench.protocols
    }
    for row in bench.rows:
        for fraction in SKIPS:
            first: list = probes[row, 0].result()  # type: ignore[assignment]
            rate = best_rate(first, fraction)
            rates[f"{row} probe {fraction}"] = rate
            scores[row, Protocol.PROBE, fraction] = [
                _at(probes[row, seed].result(), fraction, rate) for seed in range(seeds)
            ]
            if Protocol.FINETUNE not in bench.protocols:
                continue
            tuned = [result for job in tuning[row, fraction] for result in job.result()]  # type: ignore[attr-defined]
            rate = best_rate(tuned, fraction)
            rates[f"{row} finetune {fraction}"] = rate
            others = [submit_finetune(row, seed, fraction, rate) for seed in range(1, seeds)]
            scores[row, Protocol.FINETUNE, fraction] = [
                _at(tuned, fraction, rate),
                *(_at(job.result(), fraction, rate) for job in others),
            ]
    for fraction in SKIPS:
        scores[LOOK_UP, Protocol.LOOKUP, fraction] = [
            _at(job.result(), fraction, 0.0) for job in lookups
        ]
    jobs.close()
    return scores, rates


def _at(results: object, fraction: float, rate: float) -> float:
    assert isinstance(results, list)
    (found,) = [r for r in results if r["fraction"] == fraction and r["rate"] == rate]
    return float(found["val"])


def table(scores: Scores, bench: Bench) -> str:
    """Mean +- standard deviation over the seeds, mIoU in %."""
    columns = [(p, f) for p in bench.protocols for f in SKIPS]
    head = ["", *(f"{protocol.value} {100 * fraction:g} %" for protocol, fraction in columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in (LOOK_UP, *bench.rows):
        cells = []
        for protocol, fraction in columns:
            key = (row, Protocol.LOOKUP if row == LOOK_UP else protocol, fraction)
            values = 100 * torch.tensor(scores[key], dtype=torch.float64)
            cells.append(f"{values.mean():.1f} ± {values.std():.1f}")
        lines.append("| " + " | ".join([row, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/label_efficiency"))
    parser.add_argument("--backbone", choices=BACKBONES, default="minkunet")
    parser.add_argument(
        "--rows", nargs="+", choices=(*ROWS, *ABLATIONS), metavar="ROW",
        help=f"of {', '.join((*ROWS, *ABLATIONS))}; default: the first {len(ROWS)}",
    )  # fmt: skip
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain-steps", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    arguments = parser.parse_args()
    bench = Bench(
        arguments.out,
        arguments.pretrain_steps,
        tuple(arguments.rows or BACKBONES[arguments.backbone]),
        tuple(map(Protocol, arguments.protocols)),
        arguments.backbone,
    )
    command = (
        f"python benchmarks/label_efficiency.py --out {arguments.out} --seeds {arguments.seeds} "
        f"--backbone {bench.backbone} --rows {shlex.join(bench.rows)} "
        f"--protocols {' '.join(bench.protocols)}"
    )
    recorder = Recorder(
        bench.results,
        f"Label efficiency of {bench.backbone} on the synthetic world",
        command,
        0,
        "",
    )
    with recorder.stage("prepare", "world, teacher, superpixels"):
        prepare(bench, arguments.workers)
    with recorder.stage("experiments", "pretraining, probes, fine-tuning"):
        scores, rates = run(bench, arguments.seeds, arguments.workers)
    if bench.has_teacher:
        teacher = score_teacher(Synthetic(bench.world), "val", bench.teacher)
        recorder.notes.append(
            f"Image mIoU of the teacher on the val scenes: {100 * teacher.miou:.1f} %."
        )
    recorder.notes.append(f"Learning rates chosen on the tune scenes: {rates}")
    recorder.save()
    Results(
        "40 held-out frames of 40 scenes, 13 classes",
        protocols=tuple(ProtocolNote(p, DESCRIPTIONS[p], command) for p in DESCRIPTIONS),
        efficiency=tuple(
            EfficiencyRow(row, protocol, fraction, tuple(values), max(1, round(120 * fraction)))
            for (row, protocol, fraction), values in scores.items()
        ),
    ).save(bench.results)
    (bench.results / "table.md").write_text(table(scores, bench) + "\n")
    print(table(scores, bench), f"\nreport: {build_report(bench.results)}", sep="\n")


if __name__ == "__main__":
    main()
