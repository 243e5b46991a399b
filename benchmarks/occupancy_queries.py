"""Queries of ALSO and their supports for one scan of 120 000 points, on one core.

    python benchmarks/occupancy_queries.py [--scan FILE.bin] [--out runs/occupancy_queries.json]

The published sizes for SemanticKITTI: thinned at 0.05 m, 4096 queries, 80 000 supports of which
each query gets at most 32 within 1 m. Beside it the plain form: all distances, then the first 32.
Without ``--scan`` (float32 x, y, z, intensity) a made-up scan as dense as that of a 64-beam lidar.
Target: 150 ms from points to pairs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from measuring import made_up_scan, milliseconds
from torch import Tensor

from lidarssl.frame import Frame, FrameId, Queries
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scan", type=Path, help="float32 x, y, z, intensity")
    parser.add_argument("--out", type=Path, default=Path("runs/occupancy_queries.json"))
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scan = made_up_scan()
    if arguments.scan is not None:
        scan = torch.from_numpy(np.fromfile(arguments.scan, "<f4").reshape(-1, 4))
    frame = Frame(FrameId("benchmark", "0", "0"), scan[:, :3].contiguous(), scan[:, 3].contiguous())

    def rng() -> np.random.Generator:
        return np.random.default_rng(0)

    steps = {
        "thin the scan": Decimate(0.05),
        "make queries": MakeQueries(4096),
        "limit the supports": LimitPoints(80_000),
        "find supports": FindSupports(SEARCH),
    }
    figures: dict[str, float] = {}
    for name, step in steps.items():
        figures[name] = milliseconds(lambda f=frame, s=step: s(f, rng()), arguments.repeats)
        frame = step(frame, rng())
    queries = frame.queries
    assert queries is not None
    assert queries.query is not None
    expected = SupportSearch(choice="first").pairs(queries, frame.points, None)
    found = plain_pairs(queries, frame.points)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    total = sum(figures.values())
    plain = milliseconds(lambda: plain_pairs(queries, frame.points), 1)
    print(f"{len(scan)} points, {len(queries)} queries, {len(queries.query)} pairs, one core")
    for name, value in figures.items():
        print(f"{name:<20} {value:8.1f} ms")
    print(f"{'together':<20} {total:8.1f} ms (target 150)")
    ratio = plain / figures["find supports"]
    print(f"{'all distances':<20} {plain:8.1f} ms, {ratio:.0f} x the search")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps(figures | {"together": total, "all distances": plain, "points": len(scan)})
    )


if __name__ == "__main__":
    main()
