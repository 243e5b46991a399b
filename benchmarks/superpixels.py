"""Superpixels per second on one core: segmenting the full image against a quarter-size one.

    python benchmarks/superpixels.py [IMAGE ...]

Without arguments: smooth noise of 1600 x 900. Prints both rates and their ratio, from one run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.datasets.image_files import read_image
from lidarssl.transforms.superpixels import SlicSettings, slic

REPEATS = 3


def smooth_noise(height: int = 900, width: int = 1600) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((1, 3, height // 50, width // 50), generator=generator)
    fine = F.interpolate(coarse, (height, width), mode="bicubic")[0]
    fine += 0.02 * torch.randn(fine.shape, generator=generator)
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


def agreement(first: Tensor, second: Tensor) -> float:
    """Share of pixels whose segment of ``second`` has them mostly in one segment of ``first``."""
    count = torch.zeros((int(second.max()) + 1, int(first.max()) + 1))
    count.index_put_((second.flatten(), first.flatten()), torch.ones(first.numel()), True)
    return float(count.amax(1).sum() / first.numel())


def seconds_per_image(images: list[Tensor], settings: SlicSettings) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        for image in images:
            slic(image, settings)
        best = min(best, time.perf_counter() - started)
    return best / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE")
    torch.set_num_threads(1)
    images = [read_image(path)[0] for path in parser.parse_args().images] or [smooth_noise()]
    full, quarter = SlicSettings(), SlicSettings(scale=0.25)
    slow, fast = (seconds_per_image(images, settings) for settings in (full, quarter))
    same = sum(agreement(slic(i, full), slic(i, quarter)) for i in images) / len(images)
    height, width = images[0].shape[-2:]
    print(f"{len(images)} image(s), {width} x {height}, one core, best of {REPEATS}")
    print(f"full size:    {1 / slow:6.2f} images/s")
    print(f"quarter size: {1 / fast:6.2f} images/s")
    print(f"ratio: {slow / fast:.1f}x; {100 * same:.1f} % of pixels in the same main segment")


if __name__ == "__main__":
    main()
