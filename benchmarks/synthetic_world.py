"""Speed and balance of the synthetic world.

    python benchmarks/synthetic_world.py [--scenes 20] [--workers 2] [--balance]

Prints frames per second in this process and with workers, and their ratio; with ``--balance``
also the points per class and frame, and how far a table of (height, range, intensity) gets.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.config import SplitConfig, WorldConfig
from lidarssl.frame import Field
from lidarssl.metrics.lookup import fit_lookup, predict
from lidarssl.wording import counted


def frames_per_second(config: WorldConfig, root: Path, workers: int) -> float:
    started = time.perf_counter()
    dataset = Synthetic.generate(root, config, workers, progress=False)
    seconds = time.perf_counter() - started
    return sum(len(dataset.frames(split)) for split in dataset.splits) / seconds


def labelled_points(dataset: Synthetic, split: str) -> list[tuple[torch.Tensor, ...]]:
    frames = [dataset.load(frame, Field.SEMANTIC) for frame in dataset.frames(split)]
    return [(f.points, f.intensity, f.semantic) for f in frames if f.semantic is not None]


def print_balance(dataset: Synthetic) -> None:
    train, val = labelled_points(dataset, "train"), labelled_points(dataset, "val")
    count = torch.stack([labels.bincount(minlength=len(dataset.classes)) for *_, labels in train])
    print(f"points per frame {count.sum(1).float().mean():.0f}")
    for name, column in zip(dataset.classes.names[1:], count.T[1:], strict=True):
        share = (column > 0).float().mean()
        print(f"  {name:12s} {column.float().mean():7.0f}  present in {100 * share:3.0f} %")
    confusion = torch.zeros(len(dataset.classes), len(dataset.classes))
    points, intensity, labels = (torch.cat(column) for column in zip(*train, strict=True))
    table = fit_lookup(points, intensity, labels, len(dataset.classes))
    for points, intensity, labels in val:
        flat = labels * len(confusion) + predict(table, points, intensity)
        confusion += flat.bincount(minlength=confusion.numel()).view_as(confusion)
    hit = confusion.diag()
    iou = hit / (confusion.sum(0) + confusion.sum(1) - hit).clamp(min=1)
    print(f"table of height, range and intensity: mIoU {100 * iou[1:].mean():.1f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--balance", action="store_true")
    options = parser.parse_args()
    splits = (SplitConfig("train", options.scenes, 2), SplitConfig("val", options.scenes, 1))
    config = WorldConfig(splits=splits)
    with tempfile.TemporaryDirectory() as folder:
        alone = frames_per_second(config, Path(folder) / "one", 1)
        several = frames_per_second(config, Path(folder) / "several", options.workers)
        workers = counted(options.workers, "worker")
        print(f"1 process {alone:.1f} frames/s, {workers} {several:.1f} frames/s")
        print(f"ratio {several / alone:.2f}")
        if options.balance:
            print_balance(Synthetic(Path(folder) / "one"))


if __name__ == "__main__":
    main()
