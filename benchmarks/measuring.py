"""What the scripts share: timing, peak memory, the machine's own rates, one form of report."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lidarssl.training import memory
from lidarssl.wording import counted

Result = TypeVar("Result")

# A process starts with the peak of the one that started it, so a small one stands between.
WATCHER = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True)
class Figure:
    """One measured number, its target, and what it was compared with in the same run."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    beside: float | None = None  # in the same unit
    limit: str = ""  # what limits it, in a few words

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    @property
    def reached(self) -> bool | None:
        """None without a target."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


@dataclass(frozen=True)
class Roofline:
    """What the machine does at best: float32 products, and bytes read plus bytes written."""

    gflops: float
    copy_gb_per_s: float


def argument_parser(
    description: str | None, repeats: int = 7, threads: int = 2
) -> argparse.ArgumentParser:
    """The options that every script has; `description` is its docstring."""
    arguments = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    arguments.add_argument("--json", type=Path, help="also write the figures here")
    arguments.add_argument("--threads", type=int, default=threads)
    arguments.add_argument("--repeats", type=int, default=repeats)
    return arguments


def data_folder() -> Path:
    """Where a few real frames lie, if anywhere."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("LIDARSSL_DATA", beside))


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median after a warm-up."""
    return taking_turns({"": work}, repeats)[""]


def taking_turns(forms: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median ms of each form, run one after the other `repeats` times after a warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats + 1):
        for name, work in forms.items():
            start = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


@contextmanager
def threads_of_torch(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def calibration() -> dict[str, float]:
    """Ms of a matmul of 1000^3 and a sort of a million int64 on one thread, to compare machines."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(1000, 1000, generator=generator)
    keys = torch.randint(2**40, (1_000_000,), generator=generator)
    with threads_of_torch(1):
        return {
            "matmul_ms": milliseconds(lambda: square @ square, 9),
            "sort_ms": milliseconds(lambda: keys.sort(), 5),
        }


def roofline(threads: int) -> Roofline:
    """The best of a few products of 2048^3 and of a few copies of 256 MiB."""
    left, right = torch.randn(2, 2048, 2048)
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    with threads_of_torch(threads):
        product = fastest(lambda: torch.mm(left, right), 7)
        copy = fastest(lambda: target.copy_(source), 7)
    return Roofline(2 * 2048**3 / product / 1e9, 2 * source.nbytes / copy / 1e9)


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest call after a warm-up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_memory(command: Sequence[str | Path]) -> float:
    """Peak resident memory, in GiB, of a command in its own process."""
    return watched(command)[1]


def watched(command: Sequence[str | Path]) -> tuple[str, float]:
    """What a command prints, and its peak resident memory in GiB.

    Raises:
        subprocess.CalledProcessError: with the output, if the command fails.
    """
    words = [sys.executable, "-c", WATCHER, *map(str, command)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    printed, _, peak = done.stdout.rstrip().rpartition("\n")
    unit = 1 if sys.platform == "darwin" else 1024
    return printed.removesuffix("\n"), int(peak) * unit / 2**30


def alone(work: Callable[..., Result], *arguments: object) -> Result:
    """The result of a fresh process: ``work`` is a function of the script's own module."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


@contextmanager
def memory_as_in_training(keep: bool = True) -> Iterator[None]:
    """Freed memory of tensors is kept, as ``training.keep_memory`` does on a CPU, or not."""
    with memory.step_memory_kept(torch.device("cpu"), keep):
        yield


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step, and the peak memory of its process in GiB."""

    seconds: float
    memory: float


def processes_taking_turns(
    cost: Callable[..., StepCost], forms: Sequence[str], *arguments: object
) -> dict[str, StepCost]:
    """What each form costs in processes of its own: the mean of two turns, the larger peak.

    For forms that differ in what the process does with its memory.
    """
    found: dict[str, list[StepCost]] = {form: [] for form in forms}
    for _ in range(2):
        for form in forms:
            found[form].append(alone(cost, form, *arguments))
    return {
        form: StepCost(
            statistics.mean(one.seconds for one in costs), max(one.memory for one in costs)
        )
        for form, costs in found.items()
    }


def own_peak() -> float:
    """Peak resident memory of this process so far, GiB."""
    return memory.peak_memory() / 2**30


def report(
    title: str,
    figures: Sequence[Figure],
    json_path: Path | None,
    threads: int,
    **about: str | int | float,
) -> None:
    """Print the figures with what the machine is worth, and write them where asked to."""
    machine, roof = calibration(), roofline(threads)
    print(f"{title}, {counted(threads, 'thread')}")
    for name, value in about.items():
        print(f"  {name.replace('_', ' ')}: {value}")
    print(
        f"  machine: on one thread matmul {machine['matmul_ms']:.1f} ms, sort "
        f"{machine['sort_ms']:.1f} ms; on {threads} {roof.gflops:.0f} GFLOP/s, "
        f"{roof.copy_gb_per_s:.1f} GB/s copied"
    )
    print("\n".join(table(figures)), flush=True)
    if json_path is not None:
        found = {
            "title": title,
            "command": command_line(),
            "threads": threads,
            "calibration": machine,
            "roofline": asdict(roof),
            "about": about,
            "figures": [{**asdict(figure), "reached": figure.reached} for figure in figures],
        }
        json_path.write_text(json.dumps(found, indent=1) + "\n")


def table(figures: Sequence[Figure]) -> list[str]:
    """Columns under each other, one figure a line."""
    answers = {None: "", True: "yes", False: "no"}
    rows = [("figure", "value", "unit", "beside", "target", "reached", "what limits it")]
    for one in figures:
        beside = "" if one.beside is None else number(one.beside)
        reached = answers[one.reached]
        rows.append((one.name, number(one.value), one.unit, beside, one.target, reached, one.limit))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def number(value: float) -> str:
    """Three digits, or all that stand before the point."""
    digits = 2 if not value or not math.isfinite(value) else 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, digits)}f}".replace(",", " ")


def command_line() -> str:
    """How this script was called, without the place of its JSON."""
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    if "--json" in words:
        place = words.index("--json")
        del words[place : place + 2]
    return shlex.join(word for word in words if not word.startswith("--json="))


def made_up_scan(beams: int = 64, steps: int = 1900) -> Tensor:
    """A street seen by a spinning lidar 1.7 m above the ground, (N, 4)."""
    generator = torch.Generator().manual_seed(0)
    elevation = torch.linspace(math.radians(-24.8), math.radians(2.0), beams)[:, None]
    azimuth = torch.linspace(-math.pi, math.pi, steps + 1)[:-1]
    ground = 1.7 / (-elevation).tan().clamp(min=1e-3)
    wall = 7 / azimuth.sin().abs().clamp(min=0.05) + 2 * torch.rand(steps, generator=generator)
    reach = torch.minimum(ground, wall.expand(beams, -1)).clamp(max=80)
    reach = reach * (1 + 0.002 * torch.randn(reach.shape, generator=generator))
    z = (reach * elevation.tan()).expand_as(reach)
    points = torch.stack([reach * azimuth.cos(), reach * azimuth.sin(), z], -1).view(-1, 3)
    return torch.cat([points, torch.rand(len(points), 1, generator=generator)], 1)
