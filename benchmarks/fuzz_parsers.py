"""Damage valid files at random and feed them to every parser of the datasets.

    python benchmarks/fuzz_parsers.py --examples 20000

Prints, per parser, how many files were accepted and how many refused with a ``DataError``; any
other exception ends the run with the seed that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzz_targets import Target, damage, survives, targets


def damaged(target: Target, seed: int, example: int) -> bytes:
    rng = np.random.default_rng([seed, example])
    edits = [
        (int(rng.integers(7)), float(rng.random()), int(rng.integers(1 << 16)))
        for _ in range(rng.integers(1, 5))
    ]
    return damage(target.seeds[int(rng.integers(len(target.seeds)))], edits)


def fuzz(target: Target, examples: int, seed: int) -> int:
    """Number of accepted files."""
    accepted = 0
    for example in range(examples):
        data = damaged(target, seed, example)
        try:
            accepted += survives(target, data)
        except Exception:
            print(f"{target.name}: example {example} of seed {seed}: {data[:200]!r}")
            raise
    return accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="part of the name of a parser")
    arguments = parser.parse_args()
    for target in targets():
        if arguments.only is None or arguments.only in target.name:
            start = time.perf_counter()
            accepted = fuzz(target, arguments.examples, arguments.seed)
            refused = arguments.examples - accepted
            took = time.perf_counter() - start
            print(f"{target.name:32} accepted {accepted:6} refused {refused:6} in {took:5.1f} s")


if __name__ == "__main__":
    main()
