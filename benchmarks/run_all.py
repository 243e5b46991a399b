"""Every figure of docs/performance.md by one command, in one run on one machine.

    python benchmarks/run_all.py [--out runs/benchmarks] [--quick] [--only NAME ...]
                                 [--page docs/performance.md]

Runs the scripts one after the other, so leave the machine to it. Writes OUT/NAME.json and
OUT/NAME.txt of each, and of all together OUT/table.md and OUT/table.json. ``--quick`` repeats
little: it shows that everything runs, its figures are rough. ``--only`` runs some and takes the
others from OUT, where they are there. ``--page`` puts the table between the two marks of a page. A
script that fails is a row of the table, the others still run, and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import number

FOLDER = Path(__file__).resolve().parent
MARKS = ("<!-- table of run_all.py -->", "<!-- end of the table -->")
LIMIT = 900
"""Seconds that a script may take."""


@dataclass(frozen=True)
class Script:
    """A file of this folder, its arguments, and those of a quick run."""

    name: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--repeats", "1")


SCRIPTS = (
    Script("sparse_conv"),
    Script("scaling", quick=("--repeats", "1", "--sweeps", "1", "2", "4")),
    Script("loaders"),
    Script("superpixels"),
    Script("occupancy_queries"),
    Script("waffleiron"),
    Script("slidr_step"),
    Script("methods", quick=("--repeats", "2")),
    Script("workers"),
)
ON_A_GPU = {
    "MinkUNet34 forward + backward, bf16, 8 sweeps, against spconv": ">= 1.5 x",
    "the same: peak memory against spconv's": "<= 1 x",
    "the same: share of voxels and maps": "<= 10 %",
}
"""Targets of `benchmarks/gpu.sh`, which no CPU can answer."""


@dataclass(frozen=True)
class Run:
    """What came of a script.

    Attributes:
        command: that repeats it.
        seconds: it took.
        found: its JSON; None if it failed.
        problem: the last lines of one that failed.
    """

    name: str
    command: str
    seconds: float
    found: dict[str, Any] | None
    problem: str = ""


def run(script: Script, out: Path, quick: bool) -> Run:
    """Run one; what it prints goes to a file."""
    place, log = out / f"{script.name}.json", out / f"{script.name}.txt"
    place.unlink(missing_ok=True)
    words = [*script.arguments, *(script.quick if quick else ())]
    command = shlex.join(["python", f"benchmarks/{script.name}.py", *words])
    start = time.monotonic()
    with log.open("w") as file:
        try:
            code = subprocess.run(
                [sys.executable, FOLDER / f"{script.name}.py", *words, "--json", place],
                stdout=file, stderr=subprocess.STDOUT, timeout=LIMIT, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            file.write(f"stopped after {LIMIT} s\n")
            code = 124
    seconds = time.monotonic() - start
    if code == 0 and place.is_file():
        return Run(script.name, command, seconds, json.loads(place.read_text()))
    last = [line for line in log.read_text().splitlines() if line.strip()][-3:]
    return Run(script.name, command, seconds, None, "\n".join([*last, f"exit code {code}"]))


def earlier(script: Script, out: Path) -> list[Run]:
    """What an earlier run left of a script that is not run now."""
    place = out / f"{script.name}.json"
    if not place.is_file():
        return []
    found = json.loads(place.read_text())
    return [Run(script.name, found["command"], 0.0, found)]


def markdown(runs: Iterable[Run]) -> str:
    """The machine, every target, every other figure."""
    done = [one for one in runs if one.found is not None]
    failed = [one for one in runs if one.found is None]
    # Indented ones are stages of the figure above them: for the page of their script.
    rows = [
        row(one, figure)
        for one in done
        for figure in one.found["figures"]  # type: ignore[index]
        if not figure["name"].startswith(" ")
    ]
    head = ("figure", "measured", "beside", "target", "reached", "what limits it", "command")
    gpu = [
        (name, "not yet run on a GPU", "", target, "", "", "`bash benchmarks/gpu.sh`")
        for name, target in ON_A_GPU.items()
    ]
    broken = [
        (one.name, "failed", "", "", "", one.problem.splitlines()[-2:][0], f"`{one.command}`")
        for one in failed
    ]
    targets = [cells for cells in rows if cells[3]]
    others = [(*cells[:3], *cells[5:]) for cells in rows if not cells[3]]
    lines = [machine(done), "", *lined([head, *targets, *gpu, *broken])]
    if others:
        lines += ["", "Figures without a target:", ""]
        lines += lined([(*head[:3], *head[5:]), *others])
    return "\n".join(lines) + "\n"


def row(one: Run, figure: dict[str, Any]) -> tuple[str, ...]:
    unit, beside = figure["unit"], figure["beside"]
    target = ""
    for sign, bound in (("<=", figure["at_most"]), (">=", figure["at_least"])):
        if bound is not None:
            target = f"{sign} {bound:g} {unit}"
    return (
        figure["name"],
        f"{number(figure['value'])} {unit}",
        "" if beside is None else f"{number(beside)} {unit}",
        target,
        {None: "", True: "yes", False: "**no**"}[figure["reached"]],
        figure["limit"],
        f"`{one.command}`",
    )


def machine(done: list[Run]) -> str:
    """Its worth after every script, from the least to the greatest."""
    if not done:
        return "No script ended well."
    found = [one.found for one in done if one.found is not None]
    matmul = spread(one["calibration"]["matmul_ms"] for one in found)
    sort = spread(one["calibration"]["sort_ms"] for one in found)
    roofs = []
    for threads in sorted({one["threads"] for one in found}):
        same = [one["roofline"] for one in found if one["threads"] == threads]
        gflops = spread(roof["gflops"] for roof in same)
        copied = spread(roof["copy_gb_per_s"] for roof in same)
        plural = "thread" if threads == 1 else "threads"
        roofs.append(f"{gflops} GFLOP/s and {copied} GB/s copied with {threads} {plural}")
    return (
        f"The machine in that run: a matmul of 1000^3 took {matmul} ms and a sort of a million "
        f"int64 {sort} ms on one thread; {'; '.join(roofs)}."
    )


def spread(values: Iterable[float]) -> str:
    ordered = [number(value) for value in sorted(values)]
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def lined(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    head, *others = ["| " + " | ".join(c.replace("|", "/") for c in row) + " |" for row in rows]
    return [head, "| --- " * head.count(" | ") + "| --- |", *others]


def paste(text: str, page: Path) -> None:
    """Put the text between the marks of a page.

    Raises:
        ValueError: the page does not have both marks, in order.
    """
    before, first, rest = page.read_text("utf-8").partition(MARKS[0])
    _, second, after = rest.partition(MARKS[1])
    if not (first and second):
        raise ValueError(f"{page} does not have the lines {MARKS[0]} and {MARKS[1]}")
    page.write_text(f"{before}{first}\n{text}{second}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="few repeats")
    names = [script.name for script in SCRIPTS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME",
        help=f"of {', '.join(names)}; the others as they are in OUT",
    )  # fmt: skip
    parser.add_argument("--page", type=Path, help="put the table into this page")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    for script in SCRIPTS:
        if script.name not in options.only:
            runs += earlier(script, options.out)
            continue
        print(f"{script.name:<18}", end="", flush=True)
        runs.append(run(script, options.out, options.quick))
        print(f"{runs[-1].seconds:6.0f} s  {'FAILED' if runs[-1].problem else ''}", flush=True)
        print(runs[-1].problem, end="\n" * bool(runs[-1].problem), flush=True)
    text = markdown(runs)
    (options.out / "table.md").write_text(text)
    (options.out / "table.json").write_text(json.dumps([asdict(one) for one in runs], indent=1))
    if options.page is not None:
        paste(text, options.page)
    print(f"\n{text}\n{sum(one.seconds for one in runs) / 60:.0f} min, {options.out / 'table.md'}")
    sys.exit(any(one.found is None for one in runs))


if __name__ == "__main__":
    main()
