"""Sparse convolution on a GPU: our backends, and spconv beside them where it is installed.

    python benchmarks/gpu_sparse.py network|layers [--device cuda] [--sweeps 8 1] [--seconds 200]
        [--backends triton torch] [--precisions bfloat16 float32 tf32] [--repeats 10] [--json FILE]

Not yet run on a GPU. `network` is MinkUNet34 forward and backward from occupied voxels on the
device, kernel maps included, with peak memory; then the share of voxels and maps in a step from
points. `layers` is single submanifold layers with the maps at hand. Before timing, the engines must
agree on features and gradients. spconv 2.3 knows float16 only as half precision: it stands beside
bfloat16. What does not fit into --seconds is left out and named; the most important comes first.

`--device cpu` shows that the script runs: torch alone, and spconv's forward with one thread.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from measuring import Figure, argument_parser, report
from minkunet34 import batch_of, load_points, network
from spconv_unet import SpconvUNet, shifted, sparse_tensor, submanifold
from torch import Tensor, nn

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.frame import PointBatch
from lidarssl.sparse.backends.choice import backend
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.tensor import SparseTensor
from lidarssl.wording import counted

SPCONV = "spconv"
WIDTHS = (64, 96, 128, 32, 256)
Step = Callable[[], object]


@dataclass
class Session:
    """Where, for how long, and what came out.

    Attributes:
        until: when to stop starting measurements, by ``time.monotonic``.
        figures: found so far.
        problems: what of ours failed or was wrong.
    """

    device: torch.device
    repeats: int
    until: float
    figures: list[Figure] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def measure(self, name: str, engine: str, step: Step) -> Cost | None:
        """Time a step; None if there is no time left or it fails, which is printed."""
        label = f"{name}: {engine}"
        if time.monotonic() > self.until:
            print(f"{label}: left out, no time", flush=True)
            return None
        try:
            found = cost(step, self.device, self.repeats)
        except Exception as error:  # the next one may run: out of memory, a type without kernel
            print(f"{label}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            if engine != SPCONV:
                self.problems.append(label)
            return None
        first = f"first call {found.first:.1f} s"
        print(f"{label}: {found.ms:.2f} ms, {found.memory:.2f} GiB, {first}", flush=True)
        return found


@dataclass(frozen=True)
class Cost:
    """Of a step.

    Attributes:
        ms: median.
        first: s of the first call, which may compile and tune.
        memory: GiB of the device at the peak beyond weights and inputs; 0 on a CPU.
    """

    ms: float
    first: float
    memory: float


def cost(step: Step, device: torch.device, repeats: int) -> Cost:
    first = seconds(step, device)
    for _ in range(2):
        step()
    before = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    ms = 1000 * statistics.median(seconds(step, device) for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Cost(ms, first, (peak - before) / 2**30)


def seconds(step: Step, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def computing(engine: str, precision: str, device: torch.device) -> Iterator[None]:
    """Inside, convolutions run by that engine with that precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    half = precision if engine != SPCONV or precision != "bfloat16" else "float16"
    casting: Any = nullcontext()
    if half in ("bfloat16", "float16"):
        casting = torch.autocast(device.type, getattr(torch, half))
    if engine == SPCONV:
        constants: Any = importlib.import_module("spconv.constants")
        constants.SPCONV_ALLOW_TF32 = precision == "tf32"
    try:
        with casting, nullcontext() if engine == SPCONV else backend(engine):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def engines(backends: list[str], device: torch.device) -> list[str]:
    """The first of ours, spconv where it is installed and has a backward, then the others."""
    beside = [SPCONV] if importlib.util.find_spec("spconv") and device.type == "cuda" else []
    return [*backends[:1], *beside, *backends[1:]]


def training_step(model: nn.Module, forward: Callable[[], Tensor]) -> Step:
    def step() -> None:
        forward().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def same_results(session: Session, model: MinkUNet, sites: Tensor, names: list[str]) -> None:
    """Features, and gradients where there are any, against those of the torch backend."""
    values = torch.rand(len(sites), 1, device=sites.device)
    weights = torch.linspace(-1, 1, model.out_channels, device=sites.device)
    expected: list[Tensor] = []
    for name in ["torch", *(name for name in names if name != "torch")]:
        with computing(name, "float32", sites.device):
            net, features = ours_or_theirs(name, model, sites, values, 1)
            found = [features().detach()]
            if name != SPCONV or sites.is_cuda:
                (features() @ weights).square().mean().backward()
                first = next(p for p in net.parameters() if p.dim() > 2)
                found.append(kernel_gradient(first))
                net.zero_grad(set_to_none=True)
        expected = expected or found
        for one, other in zip(found, expected, strict=False):
            error = float((one - other).abs().max() / other.abs().max())
            if not error < 1e-3:
                session.problems.append(f"{name} differs from torch by {error:.1e}")
                print(session.problems[-1], flush=True)


def kernel_gradient(kernel: nn.Parameter) -> Tensor:
    """In ascending order: engines order the cells of a kernel differently."""
    assert kernel.grad is not None
    return kernel.grad.flatten().sort().values


def ours_or_theirs(
    name: str, model: MinkUNet, sites: Tensor, values: Tensor, frames: int
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The network of an engine, and its forward from voxels with new maps."""
    if name == SPCONV:
        theirs = SpconvUNet(model).to(sites.device).train(model.training)
        return theirs, lambda: theirs(sparse_tensor(sites, values, frames)).features
    return model, lambda: model.forward_sparse(SparseTensor.of(sites, values)).features


def networks(
    session: Session, model: MinkUNet, batch: PointBatch, names: list[str], precisions: list[str]
) -> None:
    """Forward and backward by every precision and engine; the first of ours against spconv."""
    voxels = model.prepare(batch).prepared
    sites, values = shifted(voxels.maps.levels[0].coordinates), voxels.features
    sweeps = counted(batch.batch_size, "sweep")
    for precision in precisions:
        title = f"MinkUNet34 forward + backward, {precision}, {sweeps}"
        found: dict[str, Cost] = {}
        for name in names:
            net, forward = ours_or_theirs(name, model, sites, values, batch.batch_size)
            with computing(name, precision, session.device):
                one = session.measure(title, name, training_step(net, forward))
            if one is not None:
                found[name] = one
        session.figures += compared(title, found, names[0])
    if time.monotonic() < session.until:
        session.figures.append(share_of_maps(session, model, batch, names[0], precisions[0]))


def compared(title: str, found: dict[str, Cost], ours: str) -> list[Figure]:
    figures = times(title, found)
    figures += [
        Figure(f"{title}: memory of {name}", one.memory, "GiB")
        for name, one in found.items()
        if one.memory
    ]
    beside = found.get(SPCONV)
    if beside is not None and ours in found:
        faster, larger = beside.ms / found[ours].ms, found[ours].memory / beside.memory
        figures += [
            Figure(f"{title}: {ours} against spconv", faster, "x", at_least=1.5),
            Figure(f"{title}: memory, {ours} against spconv", larger, "x", at_most=1.0),
        ]
    return figures


def times(title: str, found: dict[str, Cost]) -> list[Figure]:
    beside = found[SPCONV].ms if SPCONV in found else None
    return [Figure(f"{title}: {name}", one.ms, "ms", beside=beside) for name, one in found.items()]


def share_of_maps(
    session: Session, model: MinkUNet, batch: PointBatch, name: str, precision: str
) -> Figure:
    """A step from points against one with voxels, maps and what was derived from them at hand."""
    voxels = model.prepare(batch).prepared
    ready = SparseTensor(voxels.features, voxels.maps)
    with computing(name, precision, session.device):
        whole = cost(
            training_step(model, lambda: model(batch).features), session.device, session.repeats
        )
        bare = cost(
            training_step(model, lambda: model.forward_sparse(ready).features),
            session.device, session.repeats,
        )  # fmt: skip
    share = 100 * (1 - bare.ms / whole.ms)
    frames = counted(batch.batch_size, "frame")
    title = f"voxels and maps of {frames} in a step, {name}, {precision}"
    return Figure(title, share, "%", at_most=10)


def layers(session: Session, sites: Tensor, names: list[str], precisions: list[str]) -> None:
    """Submanifold 3x3x3 layers, forward and backward."""
    for width, precision in product(WIDTHS, precisions):
        layer = SparseConv3d(width, width, 3).to(session.device)
        features = torch.randn(len(sites), width, device=session.device, requires_grad=True)
        title = f"{width}->{width} 3x3x3 forward + backward, {precision}"
        found: dict[str, Cost] = {}
        for name in names:
            net: nn.Module = layer
            x: Any = SparseTensor.of(sites, features)
            if name == SPCONV:
                net = submanifold(layer, 0).to(session.device)
                x = sparse_tensor(sites, features, int(sites[:, 0].max()) + 1)
            with computing(name, precision, session.device):
                one = session.measure(title, name, layer_step(net, x))
            if one is not None:
                found[name] = one
            features.grad = None
        session.figures += times(title, found)


def layer_step(layer: nn.Module, x: Any) -> Step:
    return training_step(layer, lambda: layer(x).features)


def rates(device: torch.device, precisions: list[str]) -> list[Figure]:
    """What the device does at best."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = torch.randn(2, size, size, device=device)
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    found = []
    for precision in precisions:
        with computing("torch", precision, device):
            best = min(seconds(lambda: left @ right, device) for _ in range(7))
        name = f"matmul of {size}^3, {precision}"
        found.append(Figure(name, 2 * size**3 / best / 1e12, "TFLOP/s"))
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(7))
    return [*found, Figure("copy, read and written", 2 * source.nbytes / best / 1e9, "GB/s")]


def spconv_forward(session: Session, model: MinkUNet, sites: Tensor, values: Tensor) -> None:
    """Both forwards on a CPU with one thread, where spconv's cannot do more."""
    model.eval()
    with torch.no_grad():
        for name in ("torch", SPCONV):
            _, forward = ours_or_theirs(name, model, sites, values, 1)
            one = session.measure("MinkUNet34 forward, float32, 1 sweep", name, forward)
            if one is not None:
                session.figures.append(Figure(f"MinkUNet34 forward: {name}", one.ms, "ms"))


def main() -> None:
    arguments = argument_parser(__doc__, repeats=10, threads=1)
    arguments.add_argument("part", choices=("network", "layers"))
    arguments.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments.add_argument("--sweeps", type=int, nargs="+", default=[8, 1])
    arguments.add_argument("--seconds", type=float, default=200, help="to start nothing after")
    arguments.add_argument("--backends", nargs="+", default=["triton", "torch"])
    arguments.add_argument(
        "--precisions", nargs="+", default=["bfloat16", "float32", "tf32"],
        choices=("bfloat16", "float16", "float32", "tf32"),
    )  # fmt: skip
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    session = Session(device, options.repeats, time.monotonic() + options.seconds)
    session.figures = rates(device, options.precisions)
    points, source = load_points()
    model, names = network().to(device), engines(options.backends, device)
    single = model.prepare(batch_of(points, 1).to(device)).prepared
    sites = shifted(single.maps.levels[0].coordinates)
    same_results(session, model, sites, names)
    for sweeps in options.sweeps:
        batch = batch_of(points, sweeps).to(device)
        if options.part == "network":
            networks(session, model, batch, names, options.precisions)
        else:
            voxels = model.prepare(batch).prepared
            finest = shifted(voxels.maps.levels[0].coordinates)
            layers(session, finest, names, options.precisions)
    if device.type == "cpu" and options.part == "network" and importlib.util.find_spec(SPCONV):
        spconv_forward(session, model, sites, single.features)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    title = f"Sparse convolution on a GPU, {options.part}"
    report(title, session.figures, options.json, options.threads, device=where, cloud=source)
    sys.exit("\n".join(session.problems) or 0)


if __name__ == "__main__":
    main()
