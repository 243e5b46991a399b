"""How time and memory of a training step of MinkUNet34 grow with the number of sweeps.

    python benchmarks/scaling.py [--sweeps 1 2 4 8 16] [--json FILE] [--threads 2] [--repeats 3]

A step is voxels, kernel maps, forward and backward; a batch has one sweep per frame. Its frames
are the one real nuScenes sweep below LIDARSSL_DATA (a made-up surface where there is none),
turned by another angle each: different voxels, about as many. Every size has its own process, so
that its peak memory is its own. Time is fitted by a line in the number of sweeps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from measuring import (
    Figure,
    alone,
    argument_parser,
    memory_as_in_training,
    own_peak,
    report,
    taking_turns,
)
from minkunet34 import batch_of, load_points, network, training_step
from torch import Tensor

from lidarssl.wording import counted


@dataclass(frozen=True)
class Cost:
    """Of one size.

    Attributes:
        step: s, voxels and maps included.
        maps: s of these alone.
        memory: GiB, peak of the process.
        voxels: of the whole batch.
    """

    step: float
    maps: float
    memory: float
    voxels: int


@memory_as_in_training()
def cost(points: Tensor, sweeps: int, threads: int, repeats: int) -> Cost:
    torch.set_num_threads(threads)
    model, batch = network(), batch_of(points, sweeps)
    forms = {"step": lambda: training_step(model, batch), "maps": lambda: model.prepare(batch)}
    ms = taking_turns(forms, repeats)
    voxels = len(model.prepare(batch).prepared.features)
    return Cost(ms["step"] / 1000, ms["maps"] / 1000, own_peak(), voxels)


def deviation(costs: dict[int, Cost]) -> float:
    """Largest distance of a time from the line that fits them best, both relative to the time."""
    sweeps = np.array(list(costs), float)
    seconds = np.array([one.step for one in costs.values()])
    columns = np.stack([1 / seconds, sweeps / seconds], 1)
    line = np.linalg.lstsq(columns, np.ones_like(seconds), rcond=None)[0]
    return float(np.abs(columns @ line - 1).max())


def figures(costs: dict[int, Cost]) -> list[Figure]:
    found = []
    for sweeps, one in costs.items():
        name = f"MinkUNet34 step, {counted(sweeps, 'sweep')}"
        found += [
            Figure(f"{name}, for each", 1000 * one.step / sweeps, "ms"),
            Figure(f"{name}: peak memory", one.memory, "GiB"),
            Figure(
                f"{name}: share of voxels and maps",
                100 * one.maps / one.step,
                "%",
                at_most=8,
                limit="sorting keys, searching neighbours",
            ),
        ]
    if len(costs) > 2:
        span = f"{min(costs)} to {max(costs)} sweeps"
        name = f"MinkUNet34 step, {span}: largest deviation from a line"
        found.append(Figure(name, 100 * deviation(costs), "%", at_most=15))
    return found


def main() -> None:
    arguments = argument_parser(__doc__, repeats=3)
    arguments.add_argument("--sweeps", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options = arguments.parse_args()
    points, source = load_points()
    costs: dict[int, Cost] = {}
    for sweeps in options.sweeps:
        start = time.monotonic()
        costs[sweeps] = alone(cost, points, sweeps, options.threads, options.repeats)
        print(f"{counted(sweeps, 'sweep')}: {time.monotonic() - start:.0f} s", flush=True)
    report(
        "Cost of a training step by the number of sweeps",
        figures(costs),
        options.json,
        options.threads,
        cloud=f"{source}, turned",
        voxels_of_a_sweep=round(np.mean([one.voxels / n for n, one in costs.items()])),
    )


if __name__ == "__main__":
    main()
