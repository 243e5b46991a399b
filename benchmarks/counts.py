"""What the networks have to multiply and to move: exact counts, nothing is timed.

    python benchmarks/counts.py

MinkUNet34 by level of its forward: sites, pairs of the 3x3x3 kernel map, convolutions, products
and bytes. "Once" is every input, weight and output of a convolution moved once; "per pair" is a row
gathered, a product written, read again and added for every pair, as a convolution in plain tensor
operations does outside of the cache. Then the forwards of SLidR's frozen image encoder and of
WaffleIron. A backward multiplies twice as much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measuring import made_up_scan
from minkunet34 import batch_of, load_points, network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.batching import collate
from lidarssl.frame import Frame, FrameId, PointBatch
from lidarssl.images.resnet import ResNet
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.tensor import SparseTensor
from lidarssl.transforms.thinning import KeepNearest, Thin

FLOAT = 4


@dataclass
class Work:
    """Of the convolutions that write one level.

    Attributes:
        layers: how many.
        flop: two per product of a pair, an input and an output channel.
        once, per_pair: bytes, see the module.
        weights: bytes of the kernels.
    """

    layers: int = 0
    flop: int = 0
    once: int = 0
    per_pair: int = 0
    weights: int = 0

    def add(self, layer: SparseConv3d, pairs: int, rows_in: int, rows_out: int) -> None:
        c_in, c_out = layer.in_channels, layer.out_channels
        weights = FLOAT * layer.kernel.numel()
        self.layers += 1
        self.flop += 2 * pairs * c_in * c_out
        self.once += weights + FLOAT * (rows_in * c_in + rows_out * c_out)
        self.per_pair += weights + FLOAT * (2 * pairs * (c_in + c_out) + rows_out * c_out)
        self.weights += weights


def work(model: MinkUNet, batch: PointBatch) -> list[Work]:
    """Of every level, from fine to coarse."""
    found = [Work() for _ in model.prepare(batch).prepared.maps.levels]

    def count(layer: nn.Module, inputs: tuple[SparseTensor], output: Any) -> None:
        assert isinstance(layer, SparseConv3d)
        (x,) = inputs
        pairs = rows_in = rows_out = len(x.features)
        if not layer.pointwise:
            _, kernel_map = layer.connect(x.maps, x.level)
            pairs = sum(kernel_map.pairs_per_weight())
            rows_in, rows_out = kernel_map.rows_in, kernel_map.rows_out
        found[output.level].add(layer, pairs, rows_in, rows_out)

    hooks = [
        layer.register_forward_hook(count)
        for layer in model.modules()
        if isinstance(layer, SparseConv3d)
    ]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return found


def useful_flops(model: MinkUNet, batch: PointBatch) -> int:
    """Multiplications and additions of the pairs of a forward; a training step has three times."""
    return sum(one.flop for one in work(model, batch))


def dense_flop(forward: Callable[[], object]) -> float:
    """Of convolutions and matrix products, in units of 1e9."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops() / 1e9


def image_encoder() -> float:
    """SLidR's dilated ResNet50 on six images of 224 x 416."""
    with torch.device("meta"):
        encoder = ResNet(50, dilated=True).eval()
        images = torch.empty(6, 3, 224, 416)
        return dense_flop(lambda: encoder(images))


def waffleiron() -> float:
    """12 layers of 256 channels on 20,000 points of a scan thinned at 0.1 m."""
    scan, rng = made_up_scan(), np.random.default_rng(0)
    frame = Frame(FrameId("counts", "0", "0"), scan[:, :3].contiguous(), scan[:, 3].contiguous())
    points = collate([KeepNearest(20_000)(Thin(0.1)(frame, rng), rng)]).points
    model = WaffleIron(256, 12, inputs=PointInputs(("intensity", "x", "y", "z", "radius")))
    prepared = model.prepare(points)
    return dense_flop(lambda: model(prepared))


def main() -> None:
    minkunet()
    print(f"\nSLidR's frozen image encoder, six images of 224 x 416: {image_encoder():.0f} GFLOP")
    print(f"WaffleIron of 12 layers and 256 channels, 20,000 points: {waffleiron():.0f} GFLOP")


def minkunet() -> None:
    points, source = load_points()
    model, batch = network(), batch_of(points, 1)
    maps = model.prepare(batch).prepared.maps
    found = work(model, batch)
    pairs = {
        fine: sum(one.pairs_per_weight())
        for (fine, coarse, *_), one in maps.maps.items()
        if fine == coarse
    }
    print(f"{source}, {len(maps.maps)} kernel maps\n")
    print("| level | voxels | pairs of 3x3x3 | convolutions | GFLOP | MB once | MB per pair |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for level, one in enumerate(found):
        sites = len(maps.levels[level].coordinates)
        print(f"| {2**level} | {sites:,} | {pairs[level]:,} | {row(one)} |")
    total = Work(*(sum(getattr(one, name) for one in found) for name in vars(found[0])))
    print(f"| all | | | {row(total)} |")
    print(f"\nof which {total.weights / 1e6:.0f} MB are weights")


def row(one: Work) -> str:
    once, per_pair = one.once / 1e6, one.per_pair / 1e6
    return f"{one.layers} | {one.flop / 1e9:.1f} | {once:.0f} | {per_pair:.0f}"


if __name__ == "__main__":
    main()
