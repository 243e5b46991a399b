"""How well a pretrained NCLR finds its cameras again, by commands a user would type.

    python benchmarks/calibration.py --out runs/calibration

On the synthetic world of `lidarssl demo` (``--root``) or of the label-efficiency benchmark: NCLR is
pretrained for so many steps, with three seeds, and `lidarssl calibrate` then seeks the cameras of
held-out scenes whose scans are displaced as in training: any heading, metres away. Columns: median
errors and success rate (rotation below 5 degrees and translation below 2 m) of single cameras, of
whole rigs (``--rig``), and by the published solver (``--solver epnp``). One step stands for an
untrained network.

Finished runs are kept in ``OUT``. Writes ``table.md`` and ``results.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from commands import lidarssl

WAYS: dict[str, list[str]] = {
    "camera": [],
    "rig": ["--rig"],
    "epnp": ["--solver", "epnp"],
}


def pretrained(steps: int, seed: int, arguments: argparse.Namespace) -> Path:
    run: Path = arguments.out / f"nclr_{steps}_{seed}"
    if not (run / "student.safetensors").is_file():
        lidarssl(
            "pretrain", arguments.recipe, "--quiet", "--run", run, "--training.steps", str(steps),
            "--training.seed", str(seed), "--dataset.root", arguments.root,
            "--method.image_encoder.weights", arguments.teacher,
        )  # fmt: skip
    return run


def calibrated(run: Path, way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Errors before and after, and success rate, of one network."""
    output = run / f"calibration_{way}"
    if not (output / "calibration.json").is_file():
        lidarssl(
            "calibrate",
            run,
            "--quiet",
            "--frames",
            str(arguments.frames),
            "--output",
            output,
            *WAYS[way],
        )
    found = json.loads((output / "calibration.json").read_text())
    return {
        f"{name} {when}": _value(found[when], name)
        for when in ("before", "after")
        for name in ("rotation", "translation", "success")
    } | {"images": len(found["images"]), "failed": _failed(found["images"])}


def _value(summary: dict[str, object], name: str) -> float:
    value = summary[name]
    found = value["median"] if isinstance(value, dict) else value
    return float("nan") if found is None else float(found)  # type: ignore[arg-type]


def _failed(images: Sequence[dict[str, object]]) -> int:
    return sum(image["found"] is None for image in images)


def spread(values: Sequence[float], factor: float = 1.0) -> str:
    scaled = [factor * value for value in values]
    deviation = statistics.stdev(scaled) if len(scaled) > 1 else 0.0
    return f"{statistics.mean(scaled):.2f} ± {deviation:.2f}"


def row(steps: int, way: str, found: Sequence[dict[str, float]], when: str = "after") -> str:
    cells = [
        str(steps) if when == "after" else "-", way if when == "after" else "initial pose",
        spread([one[f"rotation {when}"] for one in found]),
        spread([one[f"translation {when}"] for one in found]),
        spread([one[f"success {when}"] for one in found], 100),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--recipe", default="nclr_minkunet_synthetic")
    parser.add_argument("--root", type=Path, default=Path("runs/demo/world"))
    parser.add_argument("--teacher", type=Path, default=Path("runs/demo/teacher.safetensors"))
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 100, 400])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    head = "| steps | solved | rotation, ° (median) | translation, m (median) | success, % |"
    lines, results = [head, "| --- | --- | --- | --- | --- |"], {}
    for steps in arguments.steps:
        runs = [pretrained(steps, seed, arguments) for seed in arguments.seeds]
        for way in arguments.ways:
            found = [calibrated(run, way, arguments) for run in runs]
            results[f"{steps} {way}"] = found
            if len(lines) == 2:
                lines.append(row(steps, way, found, "before"))
            lines.append(row(steps, way, found))
            print(lines[-1], flush=True)
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
