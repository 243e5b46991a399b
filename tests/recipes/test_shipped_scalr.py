"""The recipes of ScaLR, ScaLR+ and WaffleIron are the rows of the published tables."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from conftest import REPOSITORY
from lidarssl.checkpoints import Architecture
from lidarssl.datasets import pandaset
from lidarssl.errors import ConfigError
from lidarssl.experiments.record import FREE_ARGUMENTS
from lidarssl.images.base import ImageEncoder
from lidarssl.images.vit_architectures import ARCHITECTURES
from lidarssl.methods.scalr import Scalr
from lidarssl.recipes import catalogue
from lidarssl.recipes.schema import build_backbone, parse
from lidarssl.tasks.semantic import SemanticSegmentation
from lidarssl.training.optimizer import Optimizer, Schedule, parameter_groups

DATASETS = ("nuscenes", "semantic_kitti", "pandaset", "pandaset_gt")
# Scans of each training set, and the steps of an epoch of the mixture with batches of 8.
SCANS = {"nuscenes": 28_130, "semantic_kitti": 19_130, "pandar64": 3_920, "pandar_gt": 3_920}
EPOCH = 6887


@dataclass(frozen=True)
class Row:
    """A row of the published table: rate, its decay per layer, epochs and those of the warm-up."""

    lr: float
    decay: float | None
    epochs: int
    warmup: int
    last: float = 0.0


# Recipe: what ScaLR and what ScaLR+ train with.
FINETUNED = {
    "finetune_waffleiron_nuscenes_scalr": (Row(2e-3, 0.99, 25, 2), Row(1e-4, 0.99, 25, 2)),
    "finetune_waffleiron_nuscenes_scalr_10": (Row(2e-3, 0.95, 45, 4), Row(1e-4, 0.99, 45, 4)),
    "finetune_waffleiron_semantic_kitti_scalr": (Row(2e-3, 0.99, 10, 1), Row(1e-4, 0.99, 25, 2)),
    "finetune_waffleiron_semantic_kitti_scalr_1": (Row(2e-3, 0.95, 45, 4), Row(1e-4, 0.99, 45, 4)),
    "finetune_waffleiron_pandaset_scalr": (Row(2e-3, 0.99, 25, 2), Row(1e-4, 0.99, 25, 2)),
    "finetune_waffleiron_pandaset_gt_scalr": (Row(2e-3, 0.99, 25, 2), Row(1e-4, 0.99, 25, 2)),
}
PROBED = {
    f"probe_waffleiron_{dataset}_scalr": (
        Row(1e-3, None, epochs, 2, last=1e-5),
        Row(1e-3, None, epochs, 2),
    )
    for dataset, epochs in zip(DATASETS, (20, 20, 50, 50), strict=True)
}
SUPERVISED = (
    "finetune_waffleiron_semantic_kitti_supervised",
    "finetune_waffleiron_nuscenes_supervised",
)
ROWS = [
    pytest.param(name, plus, rows[plus], id=f"{name}{'-plus' * plus}")
    for name, rows in (FINETUNED | PROBED).items()
    for plus in (False, True)
]
# Half the side of the view in m, and the cells that the grids divide it into.
VIEWS = {
    "probe_waffleiron_pandaset_scalr": (128, 512),
    "probe_waffleiron_pandaset_gt_scalr": (128, 512),
    "finetune_waffleiron_pandaset_scalr": (128, 512),
    "finetune_waffleiron_pandaset_gt_scalr": (96, 384),
}


def plus_options(name: str, plus: bool) -> list[str]:
    """What the recipe says has to be added for ScaLR+."""
    (line,) = re.findall(r"^# ScaLR\+: (.*)$", catalogue.text(name), re.MULTILINE)
    return shlex.split(line) if plus else []


def resolved(name: str, options: list[str] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(parse(name, options or []).resolved)
    return content


def task_of(content: dict[str, Any]) -> dict[str, Any]:
    task: dict[str, Any] = content["task"]["init_args"]
    return task


def method_of(content: dict[str, Any]) -> dict[str, Any]:
    method: dict[str, Any] = content["method"]["init_args"]
    return method


@pytest.mark.parametrize(("name", "plus", "row"), ROWS)
def test_rates_and_epochs_are_those_of_the_table(name: str, plus: bool, row: Row) -> None:
    content = resolved(name, plus_options(name, plus))
    training, freeze = content["training"], name.startswith("probe")
    optimizer, schedule = training["optimizer"], training["schedule"]
    assert (optimizer["name"], optimizer["lr"], optimizer["layer_decay"]) == (
        "adamw", row.lr, row.decay,
    )  # fmt: skip
    assert optimizer["weight_decay"] == (3e-3 if freeze else 0)
    assert (training["epochs"], training["batch_size"], training["drop_last"]) == (
        row.epochs, 8, True,
    )  # fmt: skip
    assert training["precision"] == ("bf16-mixed" if plus else "16-mixed")
    steps = 100 * row.epochs
    factor = Schedule(**schedule | {"first_rate_zero": True}).factor(steps, 100)
    assert factor(0) == 0
    assert factor(row.warmup * 100) == 1
    assert factor(row.warmup * 50) == 0.5
    assert factor(steps) * row.lr == pytest.approx(row.last)


@pytest.mark.parametrize(("name", "plus", "row"), ROWS)
def test_networks_and_views_are_those_of_the_table(name: str, plus: bool, row: Row) -> None:
    task, freeze = task_of(resolved(name, plus_options(name, plus))), name.startswith("probe")
    network, half = task["backbone"]["init_args"], VIEWS.get(name, (64, 256))
    assert (task["freeze"], task["head"], task["ignored_logit"]) == (freeze, "norm_linear", False)
    assert network["activation"] == ("gelu" if plus else "relu")
    assert network["drop_path"] == (0 if freeze else 0.2)
    edge, cells = half
    assert network["fov"] == [[-edge, -edge, -8], [edge, edge, 8]]
    assert network["grids"] == [[cells, cells], [cells, 32], [cells, 32]]
    crop = task["augmentation"]["init_args"]
    assert crop["crop"] == network["fov"]
    assert (crop["voxel_size"], crop["max_points"]) == (network["voxel_size"], 20_000)
    assert not crop["independent_inputs"]


def test_shares_of_the_labels() -> None:
    few = ("finetune_waffleiron_nuscenes_scalr_10", "finetune_waffleiron_semantic_kitti_scalr_1")
    assert [resolved(name)["label_skip"] for name in few] == [10, 100]
    assert {resolved(name)["label_skip"] for name in FINETUNED if name not in few} == {1}
    assert resolved(few[0])["dataset"]["init_args"]["fractions"] == "scalr"
    assert resolved(few[0], ["--label_skip", "100"])["training"] == resolved(few[0])["training"]


@pytest.mark.parametrize("name", FINETUNED)
def test_each_layer_has_its_rate(name: str) -> None:
    content = resolved(name)
    arguments, row = dict(task_of(content)), FINETUNED[name][0]
    assert row.decay is not None
    arguments |= {"backbone": on_meta(arguments["backbone"]), "augmentation": None, "mixing": None}
    with torch.device("meta"):
        task = SemanticSegmentation(**arguments)
    groups = parameter_groups(task, Optimizer(**content["training"]["optimizer"]))
    rates = sorted(group["lr"] for group in groups)
    assert rates == pytest.approx([row.lr * row.decay**height for height in range(49, -1, -1)])
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(
        parameter.numel() for parameter in task.parameters()
    )


def on_meta(node: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return build_backbone(node, 0)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("name", [*FINETUNED, *PROBED])
def test_what_scalr_pretrains_can_be_probed_and_finetuned(name: str, plus: bool) -> None:
    pretrained = "scalr_waffleiron_mixed_plus" if plus else "scalr_waffleiron_mixed"
    weights = Architecture(**method_of(resolved(pretrained))["backbone"])
    wanted = Architecture(**task_of(resolved(name, plus_options(name, plus)))["backbone"])
    wanted.check_same(weights, ignore=FREE_ARGUMENTS)
    other = Architecture(**task_of(resolved(name, plus_options(name, not plus)))["backbone"])
    with pytest.raises(ConfigError, match="activation"):
        other.check_same(weights, ignore=FREE_ARGUMENTS)


class Teacher(ImageEncoder):
    """Of the width that a recipe's teacher has."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels, self.stride, self.frozen = out_channels, 14, True

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "size"),
    [("scalr_waffleiron_mixed", 60_222_996), ("scalr_waffleiron_mixed_plus", 63_108_628)],
)
def test_distilled_networks_have_their_published_size(name: str, size: int) -> None:
    arguments = method_of(resolved(name))
    teacher = arguments["image_encoder"]["init_args"]
    width = ARCHITECTURES[teacher["architecture"]].width
    backbone = on_meta(arguments["backbone"])
    with torch.device("meta"):
        method = Scalr(backbone, Teacher(width), arguments["hidden"])
    assert sum(parameter.numel() for parameter in method.parameters()) == size
    assert not teacher["final_norm"]
    assert teacher["positions"] == ("antialiased" if name.endswith("plus") else None)


def test_one_dataset_is_pretrained_on_like_all_of_them() -> None:
    mixed = resolved("scalr_waffleiron_mixed")
    parts = mixed["dataset"]["init_args"]["datasets"]
    assert list(parts) == list(SCANS)
    assert mixed["dataset"]["init_args"]["weights"] is None
    assert sum(SCANS.values()) // 8 == EPOCH
    for name, part in zip(DATASETS, parts.values(), strict=True):
        alone = resolved(f"scalr_waffleiron_{name}")
        assert alone["dataset"] == part
        assert alone["training"] == mixed["training"]
        depth = method_of(alone)["augmentation"].pop("min_depth")
        assert depth == (0 if "pandaset" in name else 1)
        assert method_of(alone) | {"augmentation": None} == method_of(mixed) | {
            "augmentation": None
        }
        assert method_of(alone)["augmentation"].items() <= method_of(mixed)["augmentation"].items()
    assert [part["init_args"].get("sensor") for part in parts.values()] == [
        None, None, *pandaset.SENSORS,
    ]  # fmt: skip


@pytest.mark.parametrize("step", [0, 1, 3499, 3500, 3501, 80_000, 25 * EPOCH - 1])
def test_scalr_moves_its_rate_as_published(step: int) -> None:
    training = resolved("scalr_waffleiron_mixed")["training"]
    assert (training["epochs"], training["batch_size"]) == (25, 8)
    assert training["optimizer"]["weight_decay"] == 0.03
    total, lowest = 25 * EPOCH, 1e-5 / 2e-3
    factor = Schedule(**training["schedule"] | {"first_rate_zero": True}).factor(total, EPOCH)
    progress = (step - 3500) / (total - 3500)
    expected = lowest + 0.5 * (1 - lowest) * (1 + math.cos(math.pi * progress))
    assert factor(step) == pytest.approx(step / 3500 if step < 3500 else expected)
    assert training["optimizer"]["lr"] == 2e-3


@pytest.mark.parametrize("step", [0, 1, EPOCH, 100_000, 63 * EPOCH, 63 * EPOCH + 1, 65 * EPOCH - 1])
def test_scalr_plus_moves_its_rate_as_published(step: int) -> None:
    training = resolved("scalr_waffleiron_mixed_plus")["training"]
    assert (training["epochs"], training["batch_size"]) == (65, 8)
    published = {"first_rate_zero": True, "published_jump": True}
    factor = Schedule(**training["schedule"] | published).factor(65 * EPOCH, EPOCH)
    scale, fall = 0.45 * EPOCH, 63 * EPOCH
    expected = step / EPOCH
    if step > EPOCH:
        expected = 1 / math.sqrt(1 + (step - EPOCH) / scale)
    if step > fall:
        length = 2 * EPOCH
        expected = (length - (step - fall) - 1) / (length - 1) / math.sqrt(1 + fall / scale)
    assert factor(step) == pytest.approx(expected)


def test_what_scalr_plus_changes() -> None:
    before, after = (method_of(resolved(f"scalr_waffleiron_mixed{end}")) for end in ("", "_plus"))
    assert (before["hidden"], after["hidden"]) == (None, 2048)
    one, other = (method["backbone"]["init_args"] for method in (before, after))
    changed = {name: other[name] for name in one if one[name] != other[name]}
    assert changed == {"activation": "gelu", "drop_path": 0.2, "checkpointing": True}
    sizes = [method["augmentation"]["image_size"] for method in (before, after)]
    assert sizes == [[224, 448], [448, 896]]
    assert [[side // 14 for side in size] for size in sizes] == [[16, 32], [32, 64]]


@pytest.mark.parametrize(
    ("name", "channels", "high", "cell"),
    [
        (SUPERVISED[0], 256, [50, 50, 2], (0.4, 5 / 12)),
        (SUPERVISED[1], 384, [50, 50, 5], (100 / 166, 10 / 16)),
    ],
)
def test_waffleiron_from_scratch(
    name: str, channels: int, high: list[float], cell: tuple[float, float]
) -> None:
    content = resolved(name)
    task, training = task_of(content), content["training"]
    network = task["backbone"]["init_args"]
    assert (network["channels"], network["depth"], network["norm"]) == (channels, 48, "batch")
    assert network["inputs"]["columns"] == ["intensity", "x", "y", "z", "radius"]
    assert network["fov"][1] == high
    flat, height = cell
    for (rows, columns), axes in zip(network["grids"], ((0, 1), (0, 2), (1, 2)), strict=True):
        sides = [network["fov"][1][axis] - network["fov"][0][axis] for axis in axes]
        expected = [height if axis == 2 else flat for axis in axes]
        assert [sides[0] / rows, sides[1] / columns] == pytest.approx(expected)
    assert task["augmentation"]["init_args"]["crop"] == network["fov"]
    assert (task["mixing"] is not None) == ("kitti" in name)
    assert (training["batch_size"], training["epochs"]) == (4, 45)
    assert (training["optimizer"]["lr"], training["optimizer"]["weight_decay"]) == (1e-3, 3e-3)
    schedule = training["schedule"]
    assert (schedule["warmup"], schedule["unit"], schedule["final"]) == (4, "epoch", 0.01)


@pytest.mark.parametrize(("name", "plus", "row"), ROWS)
def test_the_docs_name_the_command_of_every_row(name: str, plus: bool, row: Row) -> None:
    verb = name.split("_")[0]
    words = [verb, name, "--dataset.root", "DIR", "--checkpoint", "RUN", *plus_options(name, plus)]
    text = (REPOSITORY / "docs/recipes.md").read_text("utf-8")
    # A share of the labels has a folder of its own.
    page = re.sub(r" --run \S+\n", "\n", text)
    shares = ("", " --label_skip 100") if name.endswith("scalr_10") else ("",)
    for share in shares:
        assert f"lidarssl {' '.join(words)}{share}\n" in page
