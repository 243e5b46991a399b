"""Every recipe that ships parses; the synthetic ones build, and reload to the same objects."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from commands import Tiny
from lidarssl.cli import build_parser
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.config import SplitConfig, WorldConfig, camera_rig
from lidarssl.images.mask_transformer import MaskTransformer, MaskTransformerShape
from lidarssl.images.unet import SmallUNet
from lidarssl.images.vit import ViT
from lidarssl.recipes import catalogue, files
from lidarssl.recipes.kinds import PretrainRecipe, ProbeRecipe, Recipe
from lidarssl.recipes.schema import (
    build_backbone,
    build_dataset,
    build_world,
    load,
    parse,
)
from lidarssl.training.optimizer import Schedule
from lidarssl.transforms.weak_labels import SETTINGS_FILE, WeakLabelSettings

NAMES = list(files.shipped())
SYNTHETIC = [name for name in NAMES if "synthetic" in name]
METHODS = ("slidr", "ppkt", "also", "scalr", "olivine", "nclr", "clcp")
NAME = re.compile(
    rf"({'|'.join(METHODS)}|probe|finetune)_(also_)?(minkunet|spvcnn|second|voxelnet|waffleiron|vit)_"
    r"(synthetic|nuscenes|semantic_kitti|semantic_poss|semantic_stf|daps3d|kitti_object|kitti_360|kitti|once|"
    r"pandaset_gt|pandaset|mixed|scribble_kitti|rellis|a2d2|cityscapes)(_|$)"
)
SMALL = ("synthetic", "sample")
# Words of the names of recipes whose publications' code has accidents.
ACCIDENTS = {
    "also", "scalr", "supervised", "olivine", "nclr", "stf", "daps3d", "scribble", "rellis",
    "clcp", "cityscapes",
}  # fmt: skip
# Attributes of methods and tasks that no weight tells.
SETTINGS = (
    "augmentation", "sampling", "search", "distributions", "weights", "view", "pose", "lidar",
    "temperature_form", "image_pooling", "negatives", "same_sequence", "inference", "average",
)  # fmt: skip
# Parameters of the published networks, with their classifier.
PARAMETERS = {
    "finetune_minkunet_nuscenes_also": 37_844_625,
    "finetune_minkunet_semantic_kitti_also": 21_723_412,
    "finetune_minkunet_semantic_poss_also": 21_723_412 - 6 * 97,
    "finetune_spvcnn_nuscenes_also": 21_775_217,
    "finetune_spvcnn_semantic_kitti_also": 21_778_100,
    "finetune_spvcnn_semantic_poss_also": 21_778_100 - 6 * 97,
    "finetune_minkunet_nuscenes_nclr": 37_844_625,
    "finetune_minkunet_semantic_kitti_nclr": 21_720_820,
    "finetune_minkunet_semantic_poss_nclr": 21_720_820 - 6 * 97,
    "finetune_spvcnn_nuscenes_nclr": 21_775_217,
    "finetune_spvcnn_semantic_kitti_nclr": 21_775_217 + 3 * 97,
    # Here with an output more, that of the ignored class.
    "finetune_waffleiron_semantic_kitti_supervised": 6_840_615 + 257,
    "finetune_waffleiron_nuscenes_supervised": 15_125_796 + 385,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("recipes")
    splits = tuple(SplitConfig(name, 1, 1) for name in ("teacher", "train", "val"))
    Synthetic.generate(
        folder / "world", WorldConfig(0, splits, cameras=camera_rig(2, 32, 64)), 1, progress=False
    )
    SmallUNet(num_classes=14).save(folder / "teacher.safetensors")
    (folder / "weak_labels").mkdir()
    (folder / "weak_labels" / SETTINGS_FILE).write_text(WeakLabelSettings(("road", "car")).text)
    return Tiny(folder, folder / "world", folder / "teacher.safetensors")


def overrides(tiny: Tiny, name: str) -> list[str]:
    arguments = files.read(files.find(name)).get("method", {}).get("init_args", {})
    words = [f"--dataset.root={tiny.world}"]
    if arguments.get("image_encoder", {}).get("class_path") == "SmallUNet":
        words.append(f"--method.image_encoder.weights={tiny.teacher}")
    if "weak_labels" in arguments:
        words.append(f"--method.weak_labels.folder={tiny.folder / 'weak_labels'}")
    return words


@pytest.mark.parametrize("name", NAMES)
def test_it_parses_against_the_signatures(name: str) -> None:
    assert parse(name).kind in files.KINDS


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_how_to_run_it(name: str) -> None:
    assert NAME.match(name)
    text = catalogue.text(name)
    content = yaml.safe_load(text)
    assert text.startswith(f"# lidarssl {files.verb(content)} {name}")
    about = content["about"]
    assert about["title"]
    assert about["verified"]
    if not name.endswith(SMALL):
        assert about["paper"], "a recipe of a full dataset reproduces a publication"
        assert about["target"]


@pytest.mark.parametrize("name", [name for name in NAMES if ACCIDENTS & {*name.split("_")}])
def test_options_that_repeat_published_code_exist(name: str) -> None:
    published = re.findall(r"^# The published .*", catalogue.text(name), re.MULTILINE)
    for line in published:
        _, _, command = line.partition(": lidarssl ")
        if command:
            parser = build_parser()
            _, known, _ = parser.split(shlex.split(command))
            assert callable(parser.parse_args(known).run_verb)
            continue
        _, dashes, options = line.partition("--")
        words = shlex.split(dashes + options)
        assert words
        assert parse(name, words).resolved != parse(name).resolved
    assert published or name.endswith(SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_method_backbone_and_dataset_are_those_of_its_name(name: str) -> None:
    resolved = parse(name).resolved.lower().replace("_", "")
    for part in (name.split("_")[1], "synthetic" if "synthetic" in name else "root"):
        assert part in resolved
    method = name.split("_")[0]
    if method in METHODS:
        assert f"classpath: lidarssl.methods.{method}.{method}" in resolved


@pytest.mark.parametrize("name", SYNTHETIC)
def test_it_builds_and_reloads_to_the_same_objects(tiny: Tiny, name: str, tmp_path: Path) -> None:
    first = load(name, overrides(tiny, name))
    path = tmp_path / "recipe.yaml"
    path.write_text(first.resolved)
    second = load(str(path))
    assert second.resolved == first.resolved
    assert vars(second.recipe.about) == vars(first.recipe.about)
    for one, other in zip(modules(first.recipe), modules(second.recipe), strict=True):
        assert str(one) == str(other)
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key]), key
        for settings in SETTINGS:
            assert values(one, settings) == values(other, settings), settings
    for settings in ("training", "probe"):
        assert getattr(first.recipe, settings, 0) == getattr(second.recipe, settings, 0)


def values(module: torch.nn.Module, settings: str) -> Any:
    found = getattr(module, settings, None)
    return vars(found) if hasattr(found, "__dict__") else found


def modules(recipe: Recipe) -> list[torch.nn.Module]:
    if isinstance(recipe, PretrainRecipe):
        return [recipe.method]
    return [recipe.backbone if isinstance(recipe, ProbeRecipe) else recipe.task]


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_their_published_size(name: str) -> None:
    task = yaml.safe_load(parse(name).resolved)["task"]["init_args"]
    with torch.device("meta"):
        backbone = build_backbone(task["backbone"], 0)
    assert count(backbone) + (backbone.out_channels + 1) * task["num_classes"] == PARAMETERS[name]


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def without_weights(name: str) -> dict[str, Any]:
    """The arguments of the method or task of a recipe whose networks start from files."""
    content = yaml.safe_load(parse(name).resolved)
    arguments: dict[str, Any] = content["method" if "method" in content else "task"]["init_args"]
    for encoder in ("image_encoder", "encoder"):
        if encoder in arguments:
            arguments[encoder]["init_args"]["weights"] = None
    return arguments


@pytest.mark.parametrize(
    "name", [n for n in NAMES if re.match(r"clcp_.*(a2d2|nuscenes|c_kitti)", n)]
)
def test_networks_of_clcp_have_their_published_size(name: str) -> None:
    arguments = without_weights(name)
    with torch.device("meta"):
        lidar = build_backbone(arguments["backbone"], 0)
        image = ViT(**arguments["image_encoder"]["init_args"])
    assert (count(lidar), lidar.out_channels) == (37_873_280, 96)
    assert (count(image), image.out_channels) == (21_665_664, 384)
    segmented = without_weights("finetune_vit_cityscapes")["encoder"]["init_args"]
    assert segmented["architecture"] == arguments["image_encoder"]["init_args"]["architecture"]


def test_segmenters_head_has_its_published_size() -> None:
    arguments = without_weights("finetune_vit_cityscapes")
    shape = MaskTransformerShape(**arguments["mask_transformer"])
    head = MaskTransformer(384, arguments["num_classes"] - 1, shape)
    assert count(head) == 3_999_782


def rates(name: str, frames: int) -> tuple[Callable[[int], float], int]:
    """The learning rate of a recipe at a step, and the steps of an epoch of ``frames``."""
    training = yaml.safe_load(parse(name).resolved)["training"]
    epoch = frames // training["batch_size"]
    steps = training["steps"] or training["epochs"] * epoch
    factor = Schedule(**training["schedule"]).factor(steps, epoch)
    return lambda step: training["optimizer"]["lr"] * factor(step), epoch


def test_rates_of_clcp_are_those_of_the_thesis() -> None:
    """Warm-up from 1e-6; restarts after 5, 6, 8, 12, 20 and 36 epochs; minima just before."""
    rate, epoch = rates("clcp_vit_a2d2_thesis", 24_000)
    warmup = {number: 1e-6 + number / 5 * (1e-3 - 1e-6) for number in range(5)}
    measured = {
        5: 1e-3, 6: 1e-3, 7: 5.05e-4, 8: 1e-3, 9: 8.55e-4, 10: 5.05e-4, 11: 1.55e-4, 12: 1e-3,
        19: 4.77e-5, 20: 1e-3, 35: 1.95e-5, 36: 1e-3, 67: 1.24e-5,
    }  # fmt: skip
    for number, expected in {**warmup, **measured}.items():
        for step in (number * epoch, (number + 1) * epoch - 1):
            assert rate(step) == pytest.approx(expected, rel=3e-3), number


def test_rates_of_clcps_first_runs_restart_every_ten_epochs() -> None:
    rate, epoch = rates("clcp_vit_a2d2_thesis_first", 24_000)
    for number in range(100):
        eased = 1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * (number % 10) / 10)) / 2
        assert rate(number * epoch) == rate((number + 1) * epoch - 1) == pytest.approx(eased)


def test_rates_of_segmenter_fall_by_a_power() -> None:
    rate, _ = rates("finetune_vit_cityscapes", 2975)
    for step in (0, 1, 999, 40_000, 79_999):
        expected = 1e-4 + (1e-2 - 1e-4) * (1 - step / 80_000) ** 0.9
        assert rate(step) == pytest.approx(expected)


@pytest.mark.parametrize("backbone", ["minkunet", "spvcnn"])
@pytest.mark.parametrize("dataset", ["nuscenes", "semantic_kitti"])
def test_what_also_pretrains_can_be_finetuned(backbone: str, dataset: str) -> None:
    names = (f"also_{backbone}_{dataset}", f"finetune_{backbone}_{dataset}_also")
    pretraining, finetuning = (
        yaml.safe_load(parse(name).resolved)[part]["init_args"]["backbone"]
        for name, part in zip(names, ("method", "task"), strict=True)
    )
    assert pretraining == finetuning


def test_null_survives_the_run_folder(tiny: Tiny, tmp_path: Path) -> None:
    """The default of crop_scale is not null: a null that is not written comes back as a crop."""
    name = "slidr_minkunet_synthetic"
    loaded = load(name, overrides(tiny, name))
    assert loaded.recipe.method.augmentation.crop_scale is None
    path = tmp_path / "recipe.yaml"
    path.write_text(loaded.resolved)
    assert load(str(path)).recipe.method.augmentation.crop_scale is None


def test_random_weights_come_from_the_seed(tiny: Tiny) -> None:
    name = "probe_minkunet_synthetic"
    backbones = [
        load(name, [*overrides(tiny, name), f"--seed={seed}"]).recipe.backbone for seed in (3, 3, 4)
    ]
    a, b, c = (torch.cat([p.flatten() for p in one.parameters()]) for one in backbones)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    node = yaml.safe_load(parse(name).resolved)["backbone"]
    again = build_backbone(node, 4)
    assert torch.equal(torch.cat([p.flatten() for p in again.parameters()]), c)


def test_building_leaves_the_global_generator_alone(tiny: Tiny) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load("probe_minkunet_synthetic", overrides(tiny, "probe_minkunet_synthetic"))
    assert torch.equal(torch.rand(3), expected)


def test_datasets_and_worlds_from_words(tiny: Tiny) -> None:
    dataset = build_dataset("synthetic", ["--root", str(tiny.world), "--cameras", "[CAM_BACK]"])
    assert isinstance(dataset, Synthetic)
    assert dataset.cameras == ("CAM_BACK",)
    world = build_world(["--seed=3", "--splits=[{name: a, scenes: 2, frames: 1}]"])
    assert (world.seed, world.splits) == (3, (SplitConfig("a", 2, 1),))
    assert build_world([]) == WorldConfig()
    assert build_world([], WorldConfig.kitti()) == WorldConfig.kitti()


def test_table_names_the_verb_of_each() -> None:
    rows = {line.split()[0]: line.split()[1] for line in catalogue.table().splitlines()[:-3]}
    assert rows["probe_minkunet_nuscenes"] == "probe"
    assert rows["finetune_minkunet_nuscenes_1"] == "finetune"
    assert set(rows) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_keys_show_everything_the_recipe_sets(name: str) -> None:
    shown = catalogue.keys(name)
    for line in shown.splitlines():
        assert len(line) < 200
    assert re.search(r"--dataset\.(datasets\.\w+\.)?root = ", shown)
    assert " = <" not in shown, "a value without a readable form"
