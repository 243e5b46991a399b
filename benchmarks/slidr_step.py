"""A training step of SLidR against its plain form, in time and in peak memory.

    python benchmarks/slidr_step.py [--frames 1] [--json FILE] [--threads 2] [--repeats 5]
                                    [--precision {32-true,bf16-mixed}] [--only {time,memory}]

The step of the recipe slidr_minkunet_nuscenes: six cameras of 224 x 416 through the frozen dilated
ResNet50, the points through MinkUNet34, superpixel InfoNCE, backward, SGD; random weights. The
plain form keeps the batch norms of the teacher apart, pools by sparse one-hot matrices and
convolves one kernel offset at a time (benchmarks/sparse_conv.py). Each form has processes of its
own, in turns; ours keeps its memory as training does, the plain one leaves it to the C library.
Memory is their peak, and that of our step with nothing changed but the pooling: a sparse one-hot
matrix over all images, or a dense one for each. Parts of a step are of one step. The frame is the
real nuScenes key frame below LIDARSSL_DATA, with superpixels made at a quarter of its size, and
without it a made-up one.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from counts import useful_flops
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
)
from sparse_conv import plain
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.batching import collate
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.frame import Batch, FrameId, Matches, PointBatch, StepOutput
from lidarssl.images.resnet import ResNet
from lidarssl.losses.contrastive import info_nce
from lidarssl.methods.slidr import Slidr
from lidarssl.training.loading import FrameSource
from lidarssl.transforms.superpixels import Superpixels
from lidarssl.wording import counted

Form = Literal["ours", "sparse one-hot pooling", "dense one-hot pooling", "plain"]
SIZE, CAMERAS, SEGMENTS = (224, 416), 6, 150
# The reference on another machine: s of a step, and what is aimed at there.
REFERENCE, TARGET = 14.0, 10.0


class PlainResNet(ResNet):
    """All layers as they are written."""

    def features(self, images: Tensor) -> Tensor:
        maps: Tensor = self.model(images).last_hidden_state
        return maps


class PlainSlidr(Slidr):
    """Superpixels by one-hot matrices over the pixels of the enlarged maps."""

    dense = False

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        assert batch.matches is not None
        assert batch.superpixels is not None
        matches, superpixels = batch.matches, batch.superpixels
        tokens = self.embed_points(batch)
        pixels = self.image_head(self.encode_images(batch)).permute(0, 2, 3, 1)
        first = SEGMENTS * torch.arange(len(superpixels))
        segment = (superpixels + first[:, None, None]).flatten()
        number = SEGMENTS * len(superpixels)
        of_match = segment.view_as(superpixels)[matches.image, matches.row, matches.col]
        points = sparse_means(
            tokens.features[tokens.token_of_point[matches.point]], of_match, number
        )
        if self.dense:
            images = dense_means(pixels.flatten(1, 2), superpixels.flatten(1))
        else:
            images = sparse_means(pixels.flatten(0, 2), segment, number)
        kept = torch.bincount(of_match, minlength=number) > 0
        return StepOutput(info_nce(points[kept], images[kept], self.temperature))


def sparse_means(rows: Tensor, segment: Tensor, number: int) -> Tensor:
    """By a sparse matrix of (segments, rows)."""
    at = torch.stack([segment, torch.arange(len(rows))])
    one_hot = torch.sparse_coo_tensor(
        at, torch.ones(len(rows)), (number, len(rows)), check_invariants=False
    )
    return one_hot @ rows / (torch.sparse.sum(one_hot, 1).to_dense()[:, None] + 1e-6)


def dense_means(pixels: Tensor, superpixels: Tensor) -> Tensor:
    """By a matrix of (segments, pixels) for every image."""
    one_hot = torch.zeros(len(pixels), SEGMENTS, pixels.shape[1])
    one_hot.scatter_(1, superpixels[:, None], 1.0)
    return (one_hot @ pixels / (one_hot.sum(2, keepdim=True) + 1e-6)).flatten(0, 1)


def method_of(form: Form) -> Slidr:
    torch.manual_seed(0)
    encoder = (PlainResNet if form == "plain" else ResNet)(50, dilated=True)
    backbone = MinkUNet(rule="slidr_cylindrical", voxel_size=0.1, bn_momentum=0.05)
    kind = Slidr if form == "ours" else PlainSlidr
    method = kind(backbone, encoder, superpixels=Superpixels(SEGMENTS, scale=0.25))
    if isinstance(method, PlainSlidr):
        method.dense = form == "dense one-hot pooling"
    return method.train()


def batch_of(frames: int) -> tuple[Batch, str]:
    """Frames as the recipe trains on them, and where they come from."""
    root = data_folder() / "nuscenes"
    if not (root / "v1.0-mini").is_dir():
        return made_up(frames), "made up"
    dataset, method = NuScenes(root), method_of("ours")
    ids = dataset.frames("train")
    source = FrameSource(dataset, ids, method.needs, method.transforms(True), seed=0)
    loaded = [source.load(epoch, epoch % len(ids)) for epoch in range(frames)]
    return collate(loaded), "real nuScenes key frame"


def made_up(frames: int) -> Batch:
    """As large as a real batch: noise, square superpixels, matches anywhere."""
    generator = torch.Generator().manual_seed(0)
    images, pairs = frames * CAMERAS, frames * 12_000
    height, width = SIZE
    scan = made_up_scan(32, 1084).repeat(frames, 1)
    owner = torch.arange(frames).repeat_interleave(len(scan) // frames)
    side = torch.arange(height)[:, None] // 23 * 15 + torch.arange(width) // 28

    def draw(high: int) -> Tensor:
        return torch.randint(high, (pairs,), generator=generator)

    return Batch(
        tuple(FrameId("made_up", "", str(index)) for index in range(frames)),
        PointBatch(scan[:, :3], scan[:, 3], owner, frames),
        images=torch.rand((images, 3, *SIZE), generator=generator),
        superpixels=side.expand(images, -1, -1).contiguous(),
        matches=Matches(draw(len(scan)), draw(images), draw(height), draw(width)),
    )


class Training:
    """A method and its optimizer."""

    def __init__(self, form: Form, batch: Batch, precision: str) -> None:
        self.form, self.batch, self.method = form, batch, method_of(form)
        self.precision = precision
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            parameters, lr=0.5, momentum=0.9, dampening=0.1, weight_decay=1e-4
        )

    def loss(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            return self.method.training_step(self.batch, torch.Generator()).loss

    def convolutions(self) -> AbstractContextManager[None]:
        return plain() if self.form == "plain" else nullcontext()

    def step(self) -> None:
        with self.convolutions():
            self.optimizer.zero_grad(set_to_none=True)
            self.loss().backward()
        self.optimizer.step()

    def parts(self) -> dict[str, float]:
        """Seconds of a step's parts."""
        seconds: dict[str, float] = defaultdict(float)
        method = self.method
        with (
            self.convolutions(),
            timed(method, "encode_images", seconds, "frozen ResNet50 forward"),
            timed(method, "embed_points", seconds, "MinkUNet34 forward"),
        ):
            self.optimizer.zero_grad(set_to_none=True)
            start = time.perf_counter()
            loss = self.loss()
            done = time.perf_counter()
            seconds["head, pooling and loss"] = done - start - sum(seconds.values())
            loss.backward()
            seconds["backward"] = time.perf_counter() - done
        start = time.perf_counter()
        self.optimizer.step()
        seconds["SGD"] = time.perf_counter() - start
        return seconds


@contextmanager
def timed(owner: Any, name: str, seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add up what a method of an object takes."""
    work = getattr(owner, name)

    def measured(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = work(*arguments)
        seconds[part] += time.perf_counter() - start
        return result

    setattr(owner, name, measured)
    try:
        yield
    finally:
        delattr(owner, name)


def cost(form: Form, frames: int, threads: int, precision: str, repeats: int) -> StepCost:
    """The plain form leaves its memory to the C library."""
    torch.set_num_threads(threads)
    training = Training(form, batch_of(frames)[0], precision)
    with memory_as_in_training(form != "plain"):
        seconds = milliseconds(training.step, repeats) / 1000
    return StepCost(seconds, own_peak())


def parts_of(form: Form, frames: int, threads: int, precision: str) -> dict[str, float]:
    """Seconds of the parts of the second step of a process."""
    torch.set_num_threads(threads)
    training = Training(form, batch_of(frames)[0], precision)
    with memory_as_in_training(form != "plain"):
        training.step()
        return dict(training.parts())


def teacher_flops(frames: int) -> int:
    with torch.device("meta"):
        encoder = PlainResNet(50, dilated=True)
        with FlopCounterMode(display=False) as counter:
            encoder(torch.zeros(frames * CAMERAS, 3, *SIZE))
    return counter.get_total_flops()


def check(batch: Batch, precision: str) -> None:
    """Both forms agree on loss and gradients."""
    found = []
    for one in (Training(form, batch, precision) for form in ("ours", "plain")):
        with one.convolutions():
            loss = one.loss()
            loss.backward()
        head = one.method.image_head.projections[0].weight.grad
        assert head is not None
        found.append((loss.detach(), head))
    for name, left, right in zip(("loss", "gradient"), *found, strict=True):
        apart = float((left - right).norm() / right.norm())
        if not apart < (1e-3 if precision == "32-true" else 0.1):
            sys.exit(f"the {name} of both forms differs by {apart:.1e} of it")


def figures_of_time(costs: dict[str, StepCost], batch: Batch, options: Any) -> list[Figure]:
    frames, threads, precision = options.frames, options.threads, options.precision
    step, beside = costs["ours"].seconds, costs["plain"].seconds
    gflops = roofline(threads).gflops
    teacher = teacher_flops(frames) / 1e9
    backbone = method_of("ours").backbone
    student = 3 * useful_flops(backbone, batch.points) / 1e9  # type: ignore[arg-type]
    floor = (teacher + student) / gflops
    found = [
        Figure(
            "SLidR step", step, "s", at_most=10.0 if frames == 1 else None, beside=beside,
            limit=f"{floor:.1f} s of products alone",
        ),
        Figure(
            "SLidR step: faster than its plain form", beside / step, "x",
            at_least=REFERENCE / TARGET, limit="products of the frozen ResNet50",
        ),
        Figure("SLidR step: share of the matmul rate", 100 * floor / step, "%"),
    ]  # fmt: skip
    parts, plain_parts = (
        alone(parts_of, form, frames, threads, precision) for form in ("ours", "plain")
    )
    for name, seconds in parts.items():
        found.append(Figure(f"- {name}", seconds, "s", beside=plain_parts[name]))
        if name == "frozen ResNet50 forward":
            share = 100 * teacher / gflops / seconds
            about = f"{teacher / 1000:.2f} TFLOP"
            found.append(Figure(f"- {name}: share of the matmul rate", share, "%", limit=about))
    if precision == "32-true":
        # It pays on processors that multiply bfloat16.
        half = alone(cost, "ours", frames, threads, "bf16-mixed", 2).seconds
        found.append(Figure("SLidR step in bf16-mixed", half, "s", beside=step))
    return found


def figures_of_memory(costs: dict[str, StepCost], options: Any) -> list[Figure]:
    gib = {form: one.memory for form, one in costs.items()}
    title = f"SLidR step, {counted(options.frames, 'frame')}: peak memory"
    found = [Figure(title, gib["ours"], "GiB", limit="maps of the teacher, activations")]
    rest = "weights, their gradients and activations, which no pooling changes"
    for form, name in (
        ("sparse one-hot pooling", "sparse one-hot pooling, the rest as ours"),
        ("dense one-hot pooling", "dense one-hot pooling, the rest as ours"),
        ("plain", "the plain form"),
    ):
        ratio = gib["ours"] / gib[form]
        found.append(Figure(f"{title} against {name}", ratio, "x", at_most=0.5, limit=rest))
    return found


def main() -> None:
    arguments = argument_parser(__doc__, repeats=5)
    arguments.add_argument("--frames", type=int, default=1, help="key frames of a batch")
    arguments.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    arguments.add_argument("--only", choices=["time", "memory"])
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    batch, source = batch_of(options.frames)
    check(batch, options.precision)
    what = (options.frames, options.threads, options.precision)
    repeats = 1 if options.only == "memory" else -(-options.repeats // 2)
    costs = processes_taking_turns(cost, ("ours", "plain"), *what, repeats)
    found: list[Figure] = []
    if options.only != "memory":
        found += figures_of_time(costs, batch, options)
    if options.only != "time":
        costs |= {form: alone(cost, form, *what, 1) for form in get_args(Form) if form not in costs}
        found += figures_of_memory(costs, options)
    assert batch.matches is not None
    report(
        "SLidR step", found, options.json, options.threads, input=source, frames=options.frames,
        points=len(batch.points.points), pairs=len(batch.matches), precision=options.precision,
    )  # fmt: skip


if __name__ == "__main__":
    main()
