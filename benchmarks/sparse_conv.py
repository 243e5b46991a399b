"""Sparse convolution against its plain form: one autograd node per kernel offset.

    python benchmarks/sparse_conv.py [--skip-unet] [--json FILE] [--threads 2] [--repeats 7]

Both forms run in one process on the same kernel maps, taking turns with each other and, for the
whole network, with a matrix product of 2048^3 whose rate theirs are compared with. The cloud is a
real nuScenes sweep where there is one, else a made-up surface of the same size. The network is
MinkUNet34 with voxels and kernel maps included, at 1 sweep and, without the plain form, at 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from counts import useful_flops
from measuring import Figure, argument_parser, memory_as_in_training, report, taking_turns
from minkunet34 import (
    VOXEL_SIZE,
    batch_of,
    load_points,
    network,
    training_step,
)
from torch import Tensor

from lidarssl.frame import PointBatch
from lidarssl.sparse import layers
from lidarssl.sparse.pairs import KernelMap
from lidarssl.sparse.tensor import SparseTensor

SIDE = 2048


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


def both(work: Callable[[], object]) -> dict[str, Callable[[], object]]:
    def plainly() -> None:
        with plain():
            work()

    return {"plain": plainly, "ours": work}


def single_layers(sites: Tensor, repeats: int) -> Iterator[Figure]:
    """Submanifold 3x3x3 layers with their kernel map at hand."""
    for channels in (16, 32, 64, 96):
        x = SparseTensor.of(sites, torch.randn(len(sites), channels, requires_grad=True))
        layer = layers.SparseConv3d(channels, channels, 3)
        check(lambda layer=layer, x=x: layer(x).features)

        def forward(layer=layer, x=x) -> None:  # type: ignore[no-untyped-def]
            with torch.no_grad():
                layer(x)

        def training(layer=layer, x=x) -> None:  # type: ignore[no-untyped-def]
            layer.kernel.grad = x.features.grad = None
            layer(x).features.sum().backward()

        for name, work in (("forward", forward), ("forward + backward", training)):
            ms = taking_turns(both(work), repeats)
            label = f"{channels}->{channels} 3x3x3 {name}"
            yield Figure(label, ms["ours"], "ms", beside=ms["plain"])


def check(output: Callable[[], Tensor]) -> None:
    """Both forms must agree."""
    with torch.no_grad():
        ours = output()
        with plain():
            torch.testing.assert_close(ours, output(), rtol=1e-3, atol=1e-4)


def whole_network(batch: PointBatch, repeats: int, beside_plain: bool) -> Iterator[Figure]:
    """Forward, and forward with backward, of 32-bit floats."""
    model, sweeps = network(), f"{batch.batch_size} sweep{'s' * (batch.batch_size > 1)}"
    left, right = torch.randn(2, SIDE, SIDE)
    flops = 3 * useful_flops(model, batch)

    def forward() -> None:
        with torch.no_grad():
            model(batch)

    def step() -> None:
        training_step(model, batch)

    forms = both if beside_plain else lambda work: {"ours": work}
    ms = taking_turns(forms(forward), repeats)
    name = f"MinkUNet34 forward, {sweeps}"
    yield Figure(name, ms["ours"], "ms", beside=ms.get("plain"))
    others = {
        "maps": lambda: model.prepare(batch),
        "product": lambda: [left @ right for _ in range(10)],
    }
    ms = taking_turns({**forms(step), **others}, repeats)
    name = f"MinkUNet34 forward + backward, {sweeps}"
    yield Figure(name, ms["ours"], "ms", beside=ms.get("plain"))
    few = "matrix products of few rows"
    if beside_plain:
        ratio = ms["plain"] / ms["ours"]
        yield Figure(f"{name}: times faster than plain", ratio, "x", at_least=1.5, limit=few)
    useful, best = flops / ms["ours"] / 1e6, 10 * 2 * SIDE**3 / ms["product"] / 1e6
    rate = f"{name}: useful GFLOP/s beside those of a product of {SIDE}^3"
    yield Figure(rate, useful, "GFLOP/s", beside=best)
    share = 100 * useful / best
    yield Figure(f"{name}: share of that rate", share, "%", at_least=55, limit=few)
    maps = 100 * ms["maps"] / ms["ours"]
    name = f"{name}: voxels and kernel maps"
    yield Figure(name, maps, "% of a step", at_most=8, limit="binary searches")


def half_precision(batch: PointBatch, repeats: int) -> Figure:
    """A step in bfloat16, which pays on processors that multiply it."""
    model = network()

    def step(enabled: bool) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(batch).features
        out.float().square().mean().backward()

    ms = taking_turns({"float": lambda: step(False), "half": lambda: step(True)}, repeats)
    return Figure(
        "MinkUNet34 forward + backward, 1 sweep, bf16 autocast (beside: float32)",
        ms["half"], "ms", beside=ms["float"],
    )  # fmt: skip


@memory_as_in_training()
def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--skip-unet", action="store_true", help="single layers only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    points, source = load_points()
    batch = batch_of(points, 1)
    sites = network().prepare(batch).prepared.maps.levels[0].coordinates
    figures = list(single_layers(sites, 3 * options.repeats))
    if not options.skip_unet:
        check(lambda: network()(batch).features)
        figures += whole_network(batch, options.repeats, beside_plain=True)
        figures.append(half_precision(batch, options.repeats))
        # The plain form would need some 20 GiB for these.
        more = batch_of(points, 8)
        figures += whole_network(more, max(1, options.repeats // 3), beside_plain=False)
    about = {"cloud": source, "voxels": len(sites), "voxel_size_m": VOXEL_SIZE}
    report("Sparse convolution", figures, options.json, options.threads, **about)


if __name__ == "__main__":
    main()
