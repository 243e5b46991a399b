"""Queries of ALSO and their supports for one scan of 120 000 points, on one core.

    python benchmarks/occupancy_queries.py [--scan FILE.bin] [--json FILE] [--repeats 15]

The published sizes for SemanticKITTI: thinned at 0.05 m, 4096 queries, 80 000 supports of which
each query gets at most 32 within 1 m. Beside it the plain form: all distances, then the first 32.
Without ``--scan`` (float32 x, y, z, intensity) the first real one below LIDARSSL_DATA, or else a
made-up scan as dense as that of a 64-beam lidar.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from measuring import (
    Figure,
    argument_parser,
    data_folder,
    made_up_scan,
    milliseconds,
    report,
)
from torch import Tensor

from lidarssl.frame import Frame, FrameId, Queries
from lidarssl.transforms.base import Transform
from lidarssl.transforms.occupancy import FindSupports, MakeQueries, SupportSearch
from lidarssl.transforms.points import Decimate, LimitPoints

SEARCH = SupportSearch(radius=1.0, limit=32)


def plain_pairs(queries: Queries, points: Tensor) -> tuple[Tensor, Tensor]:
    """The first 32 supports of every query by all distances, 64 queries at a time."""
    parts = []
    for first in range(0, len(queries), 64):
        some = queries.positions[first : first + 64, None].double()
        near = (some - points.double()).square().sum(-1) < SEARCH.radius**2
        pairs = (near & (near.cumsum(1) <= SEARCH.limit)).nonzero()
        parts.append(pairs + torch.tensor([first, 0]))
    query, point = torch.cat(parts).unbind(1)
    return query, point


def scan_of(path: Path | None) -> tuple[Tensor, str]:
    """(N, 4) points, and what they are."""
    if path is None:
        real = sorted(data_folder().glob("**/sequences/*/velodyne/*.bin"))
        if not real:
            return made_up_scan(), "made-up"
        path = real[0]
    return torch.from_numpy(np.fromfile(path, "<f4").reshape(-1, 4)), path.name


def main() -> None:
    arguments = argument_parser(__doc__, repeats=15, threads=1)
    arguments.add_argument("--scan", type=Path, help="float32 x, y, z, intensity")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    scan, source = scan_of(options.scan)
    frame = Frame(FrameId("benchmark", "0", "0"), scan[:, :3].contiguous(), scan[:, 3].contiguous())

    def rng() -> np.random.Generator:
        return np.random.default_rng(0)

    steps: dict[str, Transform] = {
        "thin the scan": Decimate(0.05),
        "make queries": MakeQueries(4096),
        "limit the supports": LimitPoints(80_000),
        "find supports": FindSupports(SEARCH),
    }
    times: dict[str, float] = {}
    for name, step in steps.items():
        times[name] = milliseconds(lambda f=frame, s=step: s(f, rng()), options.repeats)
        frame = step(frame, rng())
    queries = frame.queries
    assert queries is not None
    assert queries.query is not None
    expected = SupportSearch(choice="first").pairs(queries, frame.points, None)
    start = time.perf_counter()
    found = plain_pairs(queries, frame.points)
    beside = {"find supports": 1000 * (time.perf_counter() - start)}
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    figures = [
        Figure(f"ALSO: {name}", value, "ms", beside=beside.get(name))
        for name, value in times.items()
    ]
    total, limit = sum(times.values()), "finding the supports in a k-d tree"
    figures.append(
        Figure("ALSO: queries and supports, all steps", total, "ms", at_most=150, limit=limit)
    )
    report(
        "Queries and supports of ALSO, beside all distances", figures, options.json,
        options.threads, scan=source, points=len(scan), queries=len(queries),
        pairs=len(queries.query),
    )  # fmt: skip


if __name__ == "__main__":
    main()
