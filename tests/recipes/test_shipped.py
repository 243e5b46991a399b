"""Every recipe that ships parses; the synthetic ones build, and reload to the same objects."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from commands import Tiny
from lidarssl.cli import build_parser
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.config import SplitConfig, WorldConfig, camera_rig
from lidarssl.images.unet import SmallUNet
from lidarssl.recipes import catalogue, files
from lidarssl.recipes.kinds import PretrainRecipe, ProbeRecipe, Recipe
from lidarssl.recipes.schema import (
    build_backbone,
    build_dataset,
    build_world,
    load,
    parse,
)
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
    "cityscapes",
}  # fmt: skip
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
    made = {
        "image_encoder": f"--method.image_encoder.weights={tiny.teacher}",
        "weak_labels": f"--method.weak_labels.folder={tiny.folder / 'weak_labels'}",
    }
    return [f"--dataset.root={tiny.world}", *(made[key] for key in made if key in arguments)]


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
    for settings in ("training", "probe"):
        assert getattr(first.recipe, settings, 0) == getattr(second.recipe, settings, 0)
    if isinstance(first.recipe, PretrainRecipe):
        one, other = (vars(loaded.recipe.method) for loaded in (first, second))
        for settings in (
            "augmentation", "sampling", "search", "distributions", "weights", "view", "pose"
        ):  # fmt: skip
            assert one.get(settings) == other.get(settings)


def modules(recipe: Recipe) -> list[torch.nn.Module]:
    if isinstance(recipe, PretrainRecipe):
        return [recipe.method]
    return [recipe.backbone if isinstance(recipe, ProbeRecipe) else recipe.task]


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_their_published_size(name: str) -> None:
    task = yaml.safe_load(parse(name).resolved)["task"]["init_args"]
    with torch.device("meta"):
        backbone = build_backbone(task["backbone"], 0)
    size = sum(parameter.numel() for parameter in backbone.parameters())
    assert size + (backbone.out_channels + 1) * task["num_classes"] == PARAMETERS[name]


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
