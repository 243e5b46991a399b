"""Two processes, each with its half of the batch, have the gradient of one with the whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lidarssl.batching import collate
from lidarssl.frame import Batch, Frame, map_tensors
from lidarssl.methods.base import Method
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.nclr_settings import PoseTerm
from lidarssl.methods.olivine import Distributions, Olivine
from lidarssl.tasks.augmentation import WaffleIronAugmentation
from lidarssl.tasks.semantic import SemanticSegmentation
from lidarssl.transforms.base import Compose, sample_generator
from methods.small import backbone, build, frames, methods
from toys import MemoryDataset

FRAMES = 4
Case = Callable[[], tuple[Method | SemanticSegmentation, list[Frame]]]


def method_case(made: Callable[[], Method], change: Callable[[list[Frame]], list[Frame]]) -> Case:
    def make() -> tuple[Method, list[Frame]]:
        method = made()
        return method, change(frames(method, FRAMES))

    return make


def olivine_past_its_warm_up() -> Method:
    """The first step alone would not reach the likelihood under its distributions."""
    method = build(Olivine)
    assert isinstance(method, Olivine)
    method.distributions = Distributions(decay=0.2, warmup=0, frozen=False)
    return method


def nclr_with_its_pose() -> Method:
    """The pose of every image teaches from the first step."""
    method = build(Nclr)
    assert isinstance(method, Nclr)
    method.pose = PoseTerm(start=0.0, keypoints=16, thresholds=(0.0,), enough=6)
    return method


def task_case(change: Callable[[list[Frame]], list[Frame]], **options: Any) -> Case:
    def make() -> tuple[SemanticSegmentation, list[Frame]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            task = SemanticSegmentation(backbone(), 3, **options)
        task.set_class_weights(torch.tensor([0, 300, 20]))
        dataset, transform = MemoryDataset(FRAMES), Compose(task.transforms(True))
        some = [
            transform(dataset.load(frame, task.needs), sample_generator(0, 0, number))
            for number, frame in enumerate(dataset.frames("train"))
        ]
        return task, change(some)

    return make


def equal(some: list[Frame]) -> list[Frame]:
    return some


def unequal(some: list[Frame]) -> list[Frame]:
    """From all points of frame 0 down to few of the last: ranks differ in points and matches."""
    return [
        frame.select(torch.arange(len(frame)) % 8 >= 2 * number)
        for number, frame in enumerate(some)
    ]


def none_on_the_second(some: list[Frame]) -> list[Frame]:
    """The second process has points, but no match and no label."""
    for frame in some[FRAMES // 2 :]:
        if frame.matches is not None:
            frame.matches = frame.matches[torch.empty(0, dtype=torch.int64)]
        if frame.semantic is not None:
            frame.semantic = torch.zeros_like(frame.semantic)
    return some


def no_points_on_the_first(some: list[Frame]) -> list[Frame]:
    return [frame.select(torch.arange(len(frame)) < 0) for frame in some[:2]] + some[2:]


CHANGES = (equal, unequal, none_on_the_second, no_points_on_the_first)
TASKS: dict[str, dict[str, Any]] = {
    "lovasz": {"loss": "lovasz"},
    "lovasz, weights": {"loss": "lovasz", "class_weights": "inverse_sqrt"},
    "cross-entropy, weights": {"loss": "cross_entropy", "class_weights": "inverse_sqrt"},
    "cross-entropy, points": {"loss": "cross_entropy", "supervise": "points"},
    "frozen": {"freeze": True},
    "frozen below a norm": {"freeze": True, "head": "norm_linear", "ignored_logit": False},
    "norm in the head": {"head": "norm_linear", "augmentation": WaffleIronAugmentation(scale=None)},
}
METHODS: dict[str, Callable[[], Method]] = {
    cls.__name__: partial(build, cls) for cls in methods()
} | {
    "Nclr with its pose": nclr_with_its_pose,
    "Olivine past its warm-up": olivine_past_its_warm_up,
}
CASES: dict[str, Case] = {
    f"{name}, {change.__name__}": method_case(made, change)
    for name, made in METHODS.items()
    for change in CHANGES
} | {
    f"{name}, {change.__name__}": task_case(change, **options)
    for name, options in TASKS.items()
    for change in CHANGES
}


def step(case: Case, part: slice) -> dict[str, torch.Tensor]:
    """Loss, gradients and state after one step on some frames of the global batch."""
    module, some = case()
    module.double().train()
    batch: Batch = map_tensors(
        collate(some[part]), lambda value: value.double() if value.is_floating_point() else value
    )
    loss = module.training_step(batch, torch.Generator().manual_seed(0)).loss
    loss.backward()
    result = {f"state {key}": value for key, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} would stall the reduction of gradients"
            result[f"grad {name}"] = parameter.grad
    return {"loss": loss.detach(), **result}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/init", rank=rank, world_size=2)
    mine = slice(rank * FRAMES // 2, (rank + 1) * FRAMES // 2)
    results = {name: step(case, mine) for name, case in CASES.items()}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each process got for every case."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(
    ranks: list[dict[str, dict[str, torch.Tensor]]], name: str
) -> None:
    """Every process has the loss and the statistics; gradients are averaged, as DDP does."""
    expected, found = step(CASES[name], slice(FRAMES)), [rank[name] for rank in ranks]
    assert expected["loss"] > 0
    largest = max(value.abs().max() for key, value in expected.items() if key.startswith("grad"))
    for key, value in expected.items():
        if key.startswith("grad"):
            average = (found[0][key] + found[1][key]) / 2
            error = (average - value).abs().max()
            assert error <= 1e-6 * value.abs().max() + 1e-12 * largest, key
        else:
            for one in found:
                assert torch.allclose(one[key], value, rtol=1e-9, atol=1e-12), key


@pytest.mark.parametrize("name", ["Ppkt, equal", "Slidr, equal", "lovasz, unequal"])
def test_halves_by_themselves_are_not_the_whole(name: str) -> None:
    """Without the processes' exchange the comparison above fails."""
    half, key = FRAMES // 2, "grad backbone.conv0p1s1.kernel"
    whole = step(CASES[name], slice(FRAMES))[key]
    first, second = (step(CASES[name], part)[key] for part in (slice(half), slice(half, FRAMES)))
    assert ((first + second) / 2 - whole).abs().max() > 1e-3 * whole.abs().max()
