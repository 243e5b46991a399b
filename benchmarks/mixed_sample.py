"""ScaLR on a handful of real scans of four lidars together, judged on each lidar by itself.

    python benchmarks/mixed_sample.py --teacher runs/demo/teacher.safetensors \\
        --nuscenes DIR --semantic-kitti DIR --pandaset DIR

Pretrains a small WaffleIron on the training scans of all, without labels, then probes it on the
scans of each with labels; beside it random init and the look-up. The teacher has seen synthetic
images only. A handful of scans is a smoke test, never a benchmark of methods; the validation frame
of the nuScenes sample is that of its training, so its score tells nothing of other roads.
Writes ``table.json`` and ``report.html``, the pages of all probes beside each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from commands import lidarssl

PROBES = {
    "nuScenes": ("probe_waffleiron_nuscenes_sample", "nuscenes"),
    "SemanticKITTI": ("probe_waffleiron_kitti_sample", "semantic_kitti"),
    "Pandar64": ("probe_waffleiron_pandaset_sample", "pandaset"),
    "PandarGT": ("probe_waffleiron_pandaset_gt_sample", "pandaset"),
}
MEMBERS = {
    "nuscenes": "nuscenes",
    "semantic_kitti": "semantic_kitti",
    "pandar64": "pandaset",
    "pandar_gt": "pandaset",
}


def pretrain(seed: int, arguments: argparse.Namespace) -> Path:
    run: Path = arguments.out / f"mixed_{seed}"
    if not (run / "student.safetensors").is_file():
        roots = [
            f"--dataset.datasets.{name}.root={getattr(arguments, folder)}"
            for name, folder in MEMBERS.items()
        ]
        lidarssl(
            "pretrain", "scalr_waffleiron_mixed_sample", "--run", run, "--quiet", *roots,
            "--training.seed", str(seed), "--training.steps", str(arguments.steps),
            "--method.image_encoder.weights", arguments.teacher,
        )  # fmt: skip
    return run


def probe(lidar: str, seed: int, student: Path, arguments: argparse.Namespace) -> Path:
    recipe, folder = PROBES[lidar]
    run: Path = arguments.out / f"{lidar}_{seed}"
    if not (run / "metrics.json").is_file():
        lidarssl(
            "probe", recipe, "--run", run, "--quiet", "--dataset.root", getattr(arguments, folder),
            "--checkpoint", student, "--seed", str(seed), "--overwrite",
        )  # fmt: skip
    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="of `lidarssl demo`")
    parser.add_argument("--nuscenes", type=Path, required=True, help="root")
    parser.add_argument("--semantic-kitti", type=Path, required=True, help="root")
    parser.add_argument("--pandaset", type=Path, required=True, help="root")
    parser.add_argument("--out", type=Path, default=Path("runs/mixed_sample"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    students = {seed: pretrain(seed, arguments) for seed in range(arguments.seeds)}
    table: dict[str, dict[str, list[float]]] = {}
    for lidar in PROBES:
        for seed, student in students.items():
            run = probe(lidar, seed, student, arguments)
            for row, found in json.loads((run / "metrics.json").read_text()).items():
                table.setdefault(lidar, {}).setdefault(row, []).append(100 * found["miou"])
    for lidar, rows in table.items():
        for row, values in rows.items():
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            print(f"| {lidar} | {row} | {statistics.mean(values):.1f}{spread} |")
    (arguments.out / "table.json").write_text(json.dumps(table, indent=1))
    runs = [arguments.out / f"{lidar}_0" for lidar in PROBES]
    page = arguments.out / "report.html"
    lidarssl("report", runs[0], "--compare", *runs[1:], "--output", page)


if __name__ == "__main__":
    main()
