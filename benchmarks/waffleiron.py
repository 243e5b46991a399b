"""WaffleIron: preparing a scan, a training step, and what the distillation loss holds in memory.

    python benchmarks/waffleiron.py [--scan FILE.bin] [--json FILE] [--threads 2] [--repeats 5]

- Preparation: 20,000 points around a random one of a thinned scan -> voxels, 16 nearest neighbours
  and cells of three grids, one core.
- Training step: 12 layers of 256 channels, 1024 outputs, beside the layers of the published code
  written plainly: channels first, 1x1 convolutions, dense grids. Each form has processes of its
  own, in turns; ours keep their memory as training does, the plain one leaves it to the C library.
- Distillation loss: growth of a process when the teacher's map is read at the matched pixels, and
  when it is enlarged whole.

The scan is a real one below LIDARSSL_DATA, or made up. On a GPU: ``--device cuda --channels 768
--depth 48``, the size of ScaLR.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import (
    Figure,
    StepCost,
    alone,
    argument_parser,
    data_folder,
    made_up_scan,
    memory_as_in_training,
    milliseconds,
    own_peak,
    processes_taking_turns,
    report,
    roofline,
    threads_of_torch,
)
from torch import Tensor, nn

from lidarssl.backbones.plane_tokens import PlaneTokens
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.batching import collate
from lidarssl.frame import Frame, FrameId
from lidarssl.images.decoders import sample_upsampled
from lidarssl.losses.distillation import unit_distance
from lidarssl.transforms.thinning import KeepNearest, Thin

INPUTS = PointInputs(("intensity", "x", "y", "z", "radius"))
OUTPUTS = 1024
SCAN = "semantic_kitti/dataset/sequences/00/velodyne/000000.bin"
PLAIN, OURS, SAVING = "plain layers", "WaffleIron", "WaffleIron, checkpointing"
FORMS = (PLAIN, OURS, SAVING)
# The published code's step on its machine takes 6.5 s, and 3.5 s is the aim there.
FASTER = 6.5 / 3.5
# Names of our parameters, and of the same ones written plainly.
NAMES = (
    (r"embed\.norm\.", "norm."),
    (r"embed\.conv1\.", "point."),
    (r"embed\.conv2\.", "around."),
    (r"embed\.final\.", "final."),
    (r"waffleiron\.spatial_mix\.(\d+)\.(norm|scale)\.", r"mixes.\1.\2s.0."),
    (r"waffleiron\.channel_mix\.(\d+)\.(norm|scale)\.", r"mixes.\1.\2s.1."),
    (r"waffleiron\.spatial_mix\.(\d+)\.ffn\.", r"mixes.\1.depthwise."),
    (r"waffleiron\.channel_mix\.(\d+)\.mlp\.", r"mixes.\1.mlp."),
)


@dataclass(frozen=True)
class Setting:
    """What is trained, and where."""

    points: Tensor
    channels: int
    depth: int
    device: str

    def network(self, checkpointing: bool = False) -> WaffleIron:
        torch.manual_seed(0)
        return WaffleIron(
            self.channels, self.depth, norm="layer", inputs=INPUTS, checkpointing=checkpointing
        ).to(self.device)

    def tokens(self) -> PlaneTokens:
        batch = collate([sample(self.points)]).points
        tokens: PlaneTokens = self.network().cpu().prepare(batch).to(self.device).prepared
        return tokens


def sample(scan: Tensor) -> Frame:
    """What WaffleIron trains on: a thinned scan, 20,000 points of it."""
    frame = Frame(FrameId("benchmark", "0", "0"), scan[:, :3].contiguous(), scan[:, 3].contiguous())
    rng = np.random.default_rng(0)
    return KeepNearest(20_000)(Thin(0.1)(frame, rng), rng)


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


def plain_unit_distance(points: Tensor, pixels: Tensor) -> Tensor:
    return torch.linalg.vector_norm(F.normalize(points, dim=1) - F.normalize(pixels, dim=1), dim=1)


def plain_twin(network: WaffleIron, grids: tuple[tuple[int, int], ...]) -> Plain:
    """The plain layers with the parameters of a network."""
    plain = Plain(network.out_channels, len(network.waffleiron.channel_mix), grids)
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    state = {plain_name(name): value for name, value in network.state_dict().items()}
    plain.load_state_dict({name: value.reshape(shapes[name]) for name, value in state.items()})
    return plain.to(network.embed.final.weight.device)


def plain_name(name: str) -> str:
    for pattern, plain in NAMES:
        name = re.sub(f"^{pattern}", plain, name)
    return name


def check(setting: Setting) -> None:
    """Both forms compute the same, gradients of all parameters included.

    Raises:
        AssertionError: they do not.
    """
    network, tokens = replace(setting, depth=3).network(), setting.tokens()
    plain = plain_twin(network, network.rule.grids.grids)
    ours, theirs = network.forward_tokens(tokens), plain(tokens)
    torch.testing.assert_close(
        ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.detach().abs().max())
    )
    for rows in (ours, theirs):
        rows.square().mean().backward()
    expected = dict(plain.named_parameters())
    largest = max(gradient_of(value).norm() for value in expected.values())
    for name, value in network.named_parameters():
        wanted = gradient_of(expected[plain_name(name)]).view_as(value)
        error = (gradient_of(value) - wanted).norm()
        assert error < 1e-3 * wanted.norm() + 1e-5 * largest, (name, error)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def training_step(form: str, setting: Setting) -> Callable[[], None]:
    """Forward, loss, backward and AdamW."""
    network = setting.network(checkpointing=form == SAVING)
    tokens, distance = setting.tokens(), unit_distance
    run: Callable[[PlaneTokens], Tensor] = network.forward_tokens
    trained: nn.Module = network
    if form == PLAIN:
        trained = plain_twin(network, network.rule.grids.grids)
        run, distance = trained.forward, plain_unit_distance
    head = nn.Linear(setting.channels, OUTPUTS).to(setting.device)
    targets = torch.randn(tokens.real, OUTPUTS).to(setting.device)
    optimizer = torch.optim.AdamW([*trained.parameters(), *head.parameters()], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        distance(head(run(tokens)), targets).mean().backward()
        optimizer.step()
        if setting.device == "cuda":
            torch.cuda.synchronize()

    return step


def cost_of_step(form: str, setting: Setting, threads: int, repeats: int) -> StepCost:
    """Memory is that of the process, or of the GPU; the plain form leaves it to the C library."""
    with threads_of_torch(threads), memory_as_in_training(form != PLAIN):
        seconds = milliseconds(training_step(form, setting), repeats) / 1000
    on_gpu = setting.device == "cuda"
    return StepCost(seconds, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else own_peak())


def step_gflop(tokens: PlaneTokens, channels: int, depth: int) -> float:
    """Products of a step: those on tokens three times, those on all pairs once.

    Of the pairs the backward pass needs one in K for each of its two products.
    """
    per_token = depth * 2 * channels**2 + 2 * channels**2 + channels * OUTPUTS
    pairs = tokens.neighbours.shape[1] * channels**2
    return 2 * len(tokens.features) * (3 * per_token + pairs + 2 * channels**2) / 1e9


def step_figures(setting: Setting, threads: int, repeats: int) -> list[Figure]:
    costs = processes_taking_turns(cost_of_step, FORMS, setting, threads, -(-repeats // 2))
    seconds = {form: cost.seconds for form, cost in costs.items()}
    peaks = {form: cost.memory for form, cost in costs.items()}
    best = step_gflop(setting.tokens(), setting.channels, setting.depth) / roofline(threads).gflops
    plain, ours, saving = (seconds[form] for form in FORMS)
    work = "products of the channel mixes"
    figures = [
        Figure("WaffleIron step", ours, "s", at_most=3.5, beside=plain, limit=work),
        Figure(
            "WaffleIron step: times as fast as plain layers",
            plain / ours,
            "x",
            at_least=FASTER,
            limit=work,
        ),
        Figure("WaffleIron step: peak memory", peaks[OURS], "GiB", at_most=4, beside=peaks[PLAIN]),
        Figure("WaffleIron step with checkpointing", saving, "s", beside=plain),
        Figure(
            "WaffleIron step with checkpointing: peak memory",
            peaks[SAVING],
            "GiB",
            beside=peaks[PLAIN],
        ),
    ]
    if setting.device == "cpu":
        share = 100 * best / ours
        figures.append(
            Figure(
                "WaffleIron step: share of the matmul rate",
                share,
                "%",
                limit="norms, sums and copies of rows",
            )
        )
    return figures


def preparation_figures(scan: Tensor, repeats: int) -> list[Figure]:
    """Voxels, neighbours and cells, of raw points and of thinned ones."""
    rule, frame = WaffleIron(8, 1, inputs=INPUTS).rule, sample(scan)
    found = []
    for name, points in (("raw", replace(frame, thinned_to=None)), ("thinned", frame)):
        batch = collate([points]).points
        ms = milliseconds(lambda batch=batch: rule(batch), repeats)  # type: ignore[misc]
        found.append(
            Figure(
                f"WaffleIron, {name} points -> tokens, one core",
                ms,
                "ms",
                at_most=60,
                limit="k-d tree",
            )
        )
    return found


def loss_memory(height: int, width: int, pairs: int, enlarged: bool) -> float:
    """MiB by which the peak of a process grows for the pixel features of one image."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 1024, height // 14, width // 14, generator=generator)
    row = torch.randint(height, (pairs,), generator=generator)
    col = torch.randint(width, (pairs,), generator=generator)
    image = torch.zeros_like(row)
    before = own_peak()
    if enlarged:
        whole = F.interpolate(maps, (height, width), mode="bilinear", align_corners=True)
        whole[image, :, row, col]
    else:
        sample_upsampled(maps, image, row, col, (height, width))
    return 1024 * (own_peak() - before)


def loss_figures() -> list[Figure]:
    found = []
    for height, width in ((224, 448), (448, 896)):
        pixels, whole = (
            alone(loss_memory, height, width, 20_000, enlarged) for enlarged in (False, True)
        )
        name = f"ScaLR, features of 20,000 pixels of {height} x {width}: memory"
        found.append(Figure(name, pixels, "MiB", beside=whole))
    return found


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--scan", type=Path, help="float32 x, y, z, intensity")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the step")
    arguments = parser.parse_args()
    path = arguments.scan or data_folder() / SCAN
    real = arguments.scan is not None or path.is_file()
    scan = torch.from_numpy(np.fromfile(path, "<f4").reshape(-1, 4)) if real else made_up_scan()
    setting = Setting(scan, arguments.channels, arguments.depth, arguments.device)
    check(setting)
    with threads_of_torch(1):
        figures = preparation_figures(scan, 4 * arguments.repeats)
    figures += step_figures(setting, arguments.threads, arguments.repeats)
    figures += loss_figures()
    report(
        f"WaffleIron {arguments.depth} x {arguments.channels}",
        figures,
        arguments.json,
        arguments.threads,
        scan="SemanticKITTI" if real else "made up",
        tokens=setting.tokens().real,
        device=arguments.device,
    )


if __name__ == "__main__":
    main()
