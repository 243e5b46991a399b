"""Sparse convolution against its plain form: one autograd node per kernel offset.

Usage: python benchmarks/sparse_conv.py [--threads 2] [--repeats 7] [--json FILE] [--skip-unet]

Both forms run in the same process on the same kernel maps, taking turns; the table gives
medians in milliseconds and their ratio. The cloud is the real nuScenes sweep below
LIDARSSL_DATA (default ../shared/data) where there is one, else a made-up surface of the same
size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lidarssl.backbones.minkunet import res16unet34c
from lidarssl.frame import PointBatch
from lidarssl.sparse import layers
from lidarssl.sparse.pairs import KernelMap
from lidarssl.sparse.tensor import SparseTensor

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
POINTS, VOXEL_SIZE = 34_688, 0.1


def plain_convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Gather, multiply and add for each kernel offset; the backward is autograd's."""
    output = features.new_zeros(kernel_map.rows_out, kernel.shape[2])
    start = 0
    for weight, count in enumerate(kernel_map.counts):
        rows = slice(start, start + count)
        start += count
        if weight == kernel_map.identity:
            output = output + features @ kernel[weight]
        elif count:
            product = features[kernel_map.in_row[rows]] @ kernel[weight]
            output = output.index_add(0, kernel_map.out_row[rows], product)
    return output


@contextmanager
def plain() -> Iterator[None]:
    """Inside, every layer uses the plain form."""
    ours = layers.convolve
    layers.convolve = plain_convolve
    try:
        yield
    finally:
        layers.convolve = ours


def load_points() -> tuple[Tensor, str]:
    root = Path(os.environ.get("LIDARSSL_DATA", DATA)) / "nuscenes" / "samples" / "LIDAR_TOP"
    for path in sorted(root.glob("*.pcd.bin")):
        values = np.fromfile(path, np.float32).reshape(-1, 5)
        return torch.from_numpy(values[:, :4].copy()), "real nuScenes sweep"
    generator = torch.Generator().manual_seed(0)
    radius = 3 * 15 ** torch.rand(POINTS, generator=generator)
    angle = 2 * torch.pi * torch.rand(POINTS, generator=generator)
    x, y = radius * angle.cos(), radius * angle.sin()
    z = (0.3 * x).sin() + (0.2 * y).cos() + 0.02 * torch.randn(POINTS, generator=generator)
    return torch.stack([x, y, z, 255 * torch.rand(POINTS, generator=generator)], 1), "made-up"


def compare(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median ms of both forms, run in turn, after one warm-up each."""
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(repeats + 1):
        for form, values in times.items():
            start = time.perf_counter()
            if form == "plain":
                with plain():
                    function()
            else:
                function()
            values.append(1e3 * (time.perf_counter() - start))
    medians = {form: statistics.median(values[1:]) for form, values in times.items()}
    return {**medians, "ratio": medians["plain"] / medians["ours"]}


def single_layer(sites: Tensor, channels: int, repeats: int, training: bool) -> dict[str, float]:
    """Submanifold 3x3x3 layer with its kernel map at hand."""
    features = torch.randn(sites.shape[0], channels, requires_grad=training)
    x = SparseTensor.of(sites, features)
    layer = layers.SparseConv3d(channels, channels, 3)

    def run() -> None:
        with torch.set_grad_enabled(training):
            out = layer(x).features
        if training:
            layer.kernel.grad = features.grad = None
            out.sum().backward()

    return compare(run, repeats)


def whole_network(batch: PointBatch, repeats: int, training: bool) -> dict[str, float]:
    """MinkUNet34, voxels and kernel maps included."""
    model = res16unet34c(64).train(training)

    def run() -> None:
        with torch.set_grad_enabled(training):
            out = model(batch).features
        if training:
            model.zero_grad(set_to_none=True)
            out.square().mean().backward()

    return compare(run, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--skip-unet", action="store_true", help="single layers only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    points, source = load_points()
    batch = PointBatch(
        points[:, :3], points[:, 3], torch.zeros(points.shape[0], dtype=torch.int64), 1
    )
    model = res16unet34c(64)
    model.grid = type(model.grid)("slidr_cartesian", VOXEL_SIZE, model.grid.inputs)
    start = time.perf_counter()
    sites = model.prepare(batch).prepared.maps.levels[0].coordinates
    prepare_ms = 1e3 * (time.perf_counter() - start)

    results: dict[str, dict[str, float]] = {}
    for channels in (16, 32, 64, 96):
        for training in (False, True):
            name = f"{channels}->{channels} 3x3x3 {'forward + backward' if training else 'forward'}"
            results[name] = single_layer(sites, channels, 3 * options.repeats, training)
    if not options.skip_unet:
        for training in (False, True):
            name = f"MinkUNet34 {'forward + backward' if training else 'forward'}"
            results[name] = whole_network(batch, options.repeats, training)

    print(f"{source}, {sites.shape[0]} voxels of {VOXEL_SIZE} m, {options.threads} threads")
    print(f"{'median ms':<36}{'plain':>9}{'ours':>9}{'ratio':>7}")
    for name, row in results.items():
        print(f"{name:<36}{row['plain']:>9.2f}{row['ours']:>9.2f}{row['ratio']:>7.2f}")
    print(f"voxels and all kernel maps, first call: {prepare_ms:.1f} ms")
    summary = {
        "cloud": source,
        "voxels": sites.shape[0],
        "threads": options.threads,
        "prepare_ms": prepare_ms,
        "results": results,
    }
    print(json.dumps(summary))
    if options.json is not None:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
