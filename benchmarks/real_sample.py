"""PPKT, SLidR, OLIVINE and NCLR on a handful of real SemanticKITTI scans, by commands users type.

    python benchmarks/real_sample.py --root DIR --teacher runs/demo/teacher.safetensors

Pretrains on the training scans without labels, then probes on the same scans with labels and scores
sequence 08; beside them random init and the look-up. The teacher has seen synthetic images only,
and so has what labels the images for OLIVINE: it is the same network.
A handful of scans is a smoke test, never a benchmark of methods.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from commands import lidarssl

ROWS = {
    "random init": None, "PPKT": "ppkt", "SLidR": "slidr", "OLIVINE": "olivine", "NCLR": "nclr",
}  # fmt: skip


def pretrained(method: str, seed: int, arguments: argparse.Namespace) -> Path:
    run: Path = arguments.out / f"{method}_{seed}"
    if (run / "student.safetensors").is_file():
        return run
    options: list[str | Path] = []
    if method == "olivine":
        options = ["--method.weak_labels.folder", weak_labels(arguments)]
    lidarssl(
        "pretrain", f"{method}_minkunet_kitti_sample", "--quiet", "--run", run,
        "--dataset.root", arguments.root, "--training.seed", str(seed),
        "--method.image_encoder.weights", arguments.teacher, *options,
    )  # fmt: skip
    return run


def weak_labels(arguments: argparse.Namespace) -> Path:
    """Made by the teacher's classifier; what is there is kept."""
    folder: Path = arguments.out / "weak_labels"
    lidarssl(
        "prepare", "weak-labels", "semantic_kitti", "--root", arguments.root, "--output", folder,
        "--labeller", "SmallUNetLabeller", "--labeller.weights", arguments.teacher,
        "--quiet",
    )  # fmt: skip
    return folder


def score(row: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """mIoU in % of the row and of the look-up, one seed."""
    run: Path = arguments.out / f"probe_{row.replace(' ', '_')}_{seed}"
    method = ROWS[row]
    words: list[str | Path] = [
        "probe", "probe_minkunet_kitti_sample", "--run", run, "--dataset.root", arguments.root,
        "--seed", str(seed), "--no-baseline", "--overwrite", "--quiet",
    ]  # fmt: skip
    if method is not None:
        words += ["--checkpoint", pretrained(method, seed, arguments)]
    if not (run / "metrics.json").is_file():
        lidarssl(*words)
    content = json.loads((run / "metrics.json").read_text())
    return {
        "row": next(100 * v["miou"] for name, v in content.items() if name != "look-up"),
        "look-up": 100 * content["look-up"]["miou"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="of SemanticKITTI")
    parser.add_argument("--teacher", type=Path, required=True, help="of `lidarssl demo`")
    parser.add_argument("--out", type=Path, default=Path("runs/real_sample"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows = dict.fromkeys(["random init", *arguments.rows])
    found = {row: [score(row, s, arguments) for s in range(arguments.seeds)] for row in rows}
    table = {"look-up": [found["random init"][0]["look-up"]]}
    table |= {row: [one["row"] for one in scores] for row, scores in found.items()}
    for row, values in table.items():
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        print(f"| {row} | {statistics.mean(values):.1f}{spread} |")
    (arguments.out / "table.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
