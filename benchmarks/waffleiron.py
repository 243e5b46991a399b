"""WaffleIron: preparing a scan, a training step, and what the distillation loss holds in memory.

    python benchmarks/waffleiron.py --scan FILE.bin

- Preparation: 20,000 points around a random one of a thinned scan -> voxels, 17 nearest neighbours
  and cells of three grids, one core (target 60 ms).
- Training step: 12 layers of 256 channels, 1024 outputs, two threads, beside the layers of the
  published code written plainly: channels first, padded, 1x1 convolutions (``plain``).
- Distillation loss: largest tensor made when the teacher's map is read at the matched pixels,
  and when it is enlarged whole.

On a GPU: ``--device cuda --channels 768 --depth 48``, the size of ScaLR.

Every figure of a network comes from a process of its own, which tells its peak memory. A fixed
matmul and a fixed sort are timed beside them, so that machines can be compared.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import made_up_scan, milliseconds
from torch import Tensor, nn

from lidarssl.backbones.plane_tokens import PlaneTokens
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.batching import collate
from lidarssl.frame import Frame, FrameId, PointBatch
from lidarssl.geometry.knn import neighbour_table
from lidarssl.images.decoders import sample_upsampled
from lidarssl.losses.distillation import unit_distance
from lidarssl.transforms.thinning import KeepNearest, Thin

INPUTS = PointInputs(("intensity", "x", "y", "z", "radius"))
OUTPUTS = 1024
VARIANTS = ("plain", "lidarssl", "lidarssl, checkpointing")


def sample(scan: Tensor) -> Frame:
    """What WaffleIron trains on: a thinned scan, 20,000 points of it."""
    frame = Frame(FrameId("benchmark", "0", "0"), scan[:, :3].contiguous(), scan[:, 3].contiguous())
    rng = np.random.default_rng(0)
    return KeepNearest(20_000)(Thin(0.1)(frame, rng), rng)


def calibration(repeats: int) -> dict[str, float]:
    """A matmul of 2 GFLOP and a sort of a million numbers, on one core."""
    generator = torch.Generator().manual_seed(0)
    matrix, numbers = (
        torch.rand(1000, 1000, generator=generator),
        torch.rand(10**6, generator=generator),
    )
    return {
        "matmul 1000^3": milliseconds(lambda: matrix @ matrix, repeats),
        "sort 10^6": milliseconds(lambda: numbers.sort(), repeats),
    }


def preparation(frame: Frame, repeats: int) -> dict[str, float]:
    """Voxels, neighbours and cells of the sample: raw points first, then its three parts."""
    rule = WaffleIron(8, 1, inputs=INPUTS).rule
    raw, thinned = collate([replace(frame, thinned_to=None)]), collate([frame])
    return {
        "raw points -> tokens": milliseconds(lambda: rule(raw.points), repeats),
        "thinned points -> tokens": milliseconds(lambda: rule(thinned.points), repeats),
        "of which neighbours": milliseconds(lambda: neighbour_table(frame.points, 16), repeats),
    }


class PlainMix(nn.Module):
    """One layer of the published network: (B, C, N), padded rows without weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.depthwise = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        )
        self.mlp = nn.Sequential(
            nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, channels, 1)
        )
        self.scales = nn.ModuleList(
            nn.Conv1d(channels, channels, 1, groups=channels, bias=False) for _ in range(2)
        )

    def forward(self, tokens: Tensor, cells: Tensor, weights: Tensor, grid: list[int]) -> Tensor:
        rows = self.norms[0](tokens.transpose(1, 2)).transpose(1, 2)
        index = cells[None, None].expand(rows.shape)
        flat = rows.new_zeros(*rows.shape[:2], grid[0] * grid[1]).scatter_add(
            2, index, rows * weights
        )
        flat = self.depthwise(flat.view(*rows.shape[:2], *grid)).flatten(2)
        tokens = tokens + self.scales[0](flat).gather(2, index)
        rows = self.norms[1](tokens.transpose(1, 2)).transpose(1, 2)
        return tokens + self.scales[1](self.mlp(rows))


class Plain(nn.Module):
    """The published network of one frame, layer norm, written plainly."""

    def __init__(self, channels: int, depth: int, grids: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.point = nn.Conv1d(5, channels, 1)
        self.around = nn.Sequential(
            nn.BatchNorm2d(5),
            nn.Conv2d(5, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
        self.final = nn.Conv1d(2 * channels, channels, 1)
        self.mixes = nn.ModuleList(PlainMix(channels) for _ in range(depth))
        self.grids = grids

    def forward(self, tokens: PlaneTokens) -> Tensor:
        values = self.norm(tokens.features.T[None])
        difference = values[:, :, tokens.neighbours] - values[..., None]
        around = self.around(difference).amax(3)
        rows = self.final(torch.cat([self.point(values), around], 1))
        for layer, mix in enumerate(self.mixes):
            plane = layer % len(self.grids)
            rows = mix(rows, tokens.cells[plane], tokens.weights[plane], [*self.grids[plane]])
        return rows[0].T


def training_step(
    variant: str,
    points: PointBatch,
    channels: int,
    depth: int,
    threads: int,
    repeats: int,
    device: str,
) -> dict[str, float]:
    """Seconds of forward, backward and AdamW; GiB of the process, or of the GPU, at its peak."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    checkpointing = variant.endswith("checkpointing")
    ours = WaffleIron(channels, depth, norm="layer", inputs=INPUTS, checkpointing=checkpointing)
    tokens: PlaneTokens = ours.prepare(points).to(device).prepared
    network: nn.Module = ours
    run = ours.forward_tokens
    if variant == "plain":
        network = Plain(channels, depth, ours.rule.grids.grids)
        run = network.forward
    network.to(device)
    head = nn.Linear(channels, OUTPUTS).to(device)
    targets = torch.randn(tokens.real, OUTPUTS).to(device)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        unit_distance(head(run(tokens)), targets).mean().backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = milliseconds(step, repeats) / 1000
    on_gpu = torch.cuda.max_memory_allocated() / 1024**3 if device == "cuda" else 0.0
    return {"s": seconds, "GiB": on_gpu or _peak()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def loss_memory(height: int, width: int, pairs: int, enlarged: bool) -> float:
    """MiB by which the peak of a process grows for the pixel features of one image."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 1024, height // 14, width // 14, generator=generator)
    row = torch.randint(height, (pairs,), generator=generator)
    col = torch.randint(width, (pairs,), generator=generator)
    image = torch.zeros_like(row)
    before = _peak()
    if enlarged:
        whole = F.interpolate(maps, (height, width), mode="bilinear", align_corners=True)
        whole[image, :, row, col]
    else:
        sample_upsampled(maps, image, row, col, (height, width))
    return 1024 * (_peak() - before)


def alone(work: Callable[..., object], *arguments: object) -> object:
    """The result of a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scan", type=Path, help="float32 x, y, z, intensity")
    parser.add_argument("--out", type=Path, default=Path("runs/waffleiron.json"))
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scan = made_up_scan()
    if arguments.scan is not None:
        scan = torch.from_numpy(np.fromfile(arguments.scan, "<f4").reshape(-1, 4))
    frame = sample(scan)
    figures: dict[str, object] = {
        "points": len(frame),
        "calibration, ms": calibration(arguments.repeats),
        "preparation, ms": preparation(frame, 4 * arguments.repeats),
    }
    print(json.dumps(figures, indent=1))
    steps = {
        variant: alone(
            training_step, variant, collate([frame]).points, arguments.channels, arguments.depth,
            arguments.threads, arguments.repeats, arguments.device,
        )
        for variant in VARIANTS
    }  # fmt: skip
    for variant, found in steps.items():
        ratio = steps["plain"]["s"] / found["s"]  # type: ignore[index]
        print(f"{variant:<24} {found['s']:6.2f} s  {found['GiB']:5.2f} GiB  {ratio:.2f} x plain")  # type: ignore[index]
    figures["step"] = steps
    figures["loss, MiB"] = memory = {
        f"{height} x {width}, {'whole map' if whole else 'pixels'}": alone(
            loss_memory, height, width, 20_000, whole
        )
        for height, width in ((224, 448), (448, 896))
        for whole in (False, True)
    }
    for name, value in memory.items():
        print(f"pixel features of {name:<24} {value:8.0f} MiB")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
