"""Does aligning an image encoder with lidar help it under fog, night, rain and snow?

    python benchmarks/image_shift.py --out runs/image_shift

By commands a user would type, on a synthetic world that shows the same held-out scenes in five
weathers: CLCP pretrains a small vision transformer on unlabelled frames of clear weather, which is
then trained for segmentation on labelled frames of clear weather, a tenth of them or all, and
judged under each weather, beside the same network without pretraining. With it a table of
retrieval: how often a held-out image finds its scan, after CLCP and after CLCP with the published
temperature, which starts at 1.07 instead of 0.07.
A seed changes the initial weights and every draw of both trainings.

Finished runs are kept in ``OUT``: processes with other ``--seeds`` may share it, if each is told
``--only train``; the last one, with all seeds, writes ``retrieval.md`` and ``shift_10.txt``,
``shift_100.txt``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from commands import lidarssl
from lidarssl.wording import counted

WORLD = (
    "--splits",
    "[{name: train, scenes: 300, frames: 2}, {name: val, scenes: 60, frames: 1}]",
    "--weathers", "fog", "night", "rain", "snow",
)  # fmt: skip
PRETRAININGS = {
    "CLCP": (),
    "CLCP, published temperature": ("--method.temperature_form", "published"),
}
LABELS = {"10": 10, "100": 1}
"""Per cent of the labels, and every how many frames that is."""


def pretrained(name: str, seed: int, arguments: argparse.Namespace) -> Path:
    """The run of a pretraining."""
    slug = name.lower().replace(", ", "_").replace(" ", "_")
    run: Path = arguments.out / f"pretrain_{slug}_{seed}"
    if not (run / "retrieval.json").is_file():
        lidarssl(
            "pretrain", "clcp_vit_synthetic", "--quiet", "--overwrite", "--run", run,
            "--dataset.root", arguments.out / "world", "--training.seed", str(seed),
            "--training.steps", str(arguments.pretrain_steps), *PRETRAININGS[name],
        )  # fmt: skip
    return run


def finetuned(start: Path | None, labels: str, seed: int, arguments: argparse.Namespace) -> Path:
    """The run of a training on labels, from a pretraining or from random weights."""
    run: Path = arguments.out / f"finetune_{'random' if start is None else 'clcp'}_{labels}_{seed}"
    if not (run / "task.safetensors").is_file():
        lidarssl(
            "finetune", "finetune_vit_synthetic", "--quiet", "--overwrite", "--run", run,
            "--dataset.root", arguments.out / "world", "--training.seed", str(seed),
            "--label_skip", str(LABELS[labels]), "--training.steps", str(arguments.steps),
            *(() if start is None else ("--checkpoint", start)),
        )  # fmt: skip
    return run


def retrieval_table(runs: dict[str, list[Path]]) -> str:
    """Mean ± standard deviation over seeds, of both directions."""
    lines = []
    for name, paths in runs.items():
        found = [json.loads((path / "retrieval.json").read_text()) for path in paths]
        ks = found[0]["ks"]
        if not lines:
            chances = ", ".join(f"{100 * one:.1f}" for one in found[0]["exact"]["chance"])
            lines = [
                f"{counted(found[0]['frames'], 'held-out frame')}; "
                f"chance of recall@{ks} in %: {chances}",
                "",
                "| | direction | " + " | ".join(f"recall@{k}, %" for k in ks) + " | median rank |",
                "|" + " --- |" * (len(ks) + 3),
            ]
        for direction in ("image_to_lidar", "lidar_to_image"):
            ways = [one["exact"][direction] for one in found]
            recalls = [spread([100 * way["recall"][i] for way in ways]) for i in range(len(ks))]
            ranks = spread([way["median_rank"] for way in ways])
            lines.append(f"| {name} | {direction} | {' | '.join(recalls)} | {ranks} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def train(arguments: argparse.Namespace) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Every run: pretrainings by name, and fine-tunings by share of the labels."""
    pretrainings: dict[str, list[Path]] = {name: [] for name in PRETRAININGS}
    finetunings: dict[str, list[Path]] = {labels: [] for labels in LABELS}
    for seed in arguments.seeds:
        start = pretrained("CLCP", seed, arguments)
        pretrainings["CLCP"].append(start)
        for labels, runs in finetunings.items():
            runs += [finetuned(one, labels, seed, arguments) for one in (None, start)]
    for seed in arguments.seeds:
        name = "CLCP, published temperature"
        pretrainings[name].append(pretrained(name, seed, arguments))
    return pretrainings, finetunings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/image_shift"))
    parser.add_argument("--pretrain-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=800, help="of the training on labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=("train",), help="train the runs of these seeds alone")
    arguments = parser.parse_args()
    lidarssl("data", "synthesize", arguments.out / "world", "--quiet", *WORLD)
    pretrainings, finetunings = train(arguments)
    if arguments.only == "train":
        return
    table = retrieval_table(pretrainings)
    (arguments.out / "retrieval.md").write_text(table + "\n")
    print(table)
    for labels, runs in finetunings.items():
        said = lidarssl(
            "evaluate", *runs, "--quiet", "--shift", "synthetic",
            "--root", arguments.out / "world",
        )  # fmt: skip
        (arguments.out / f"shift_{labels}.txt").write_text(said)
        print(f"\n{labels} % of the labels\n{said}")


if __name__ == "__main__":
    main()
