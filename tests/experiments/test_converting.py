"""Published checkpoints fit the shipped recipes that are about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lidarssl.checkpoints.architectures import check_whole
from lidarssl.checkpoints.convert import state_for
from lidarssl.checkpoints.matching import misfits
from lidarssl.checkpoints.networks import find_network
from lidarssl.recipes import schema
from plain_waffleiron import GRIDS, PlainWaffleIron

# The network of a reference, its inputs where it was published, the prefix of its file, a recipe.
PUBLISHED = [
    ("also_minkunet34_eval", 1, "", "also_minkunet_nuscenes"),
    ("also_minkunet34_eval", 1, "", "finetune_minkunet_nuscenes_also"),
    ("also_minkunet18sc_eval", 4, "", "also_minkunet_semantic_kitti"),
    ("also_minkunet18sc_eval", 4, "", "finetune_minkunet_semantic_kitti_also"),
    ("also_spvcnn_eval", 1, "", "also_spvcnn_nuscenes"),
    ("also_spvcnn_eval", 1, "", "finetune_spvcnn_nuscenes_also"),
    ("also_spvcnn_eval", 4, "", "also_spvcnn_semantic_kitti"),
    ("pcdet_second_kitti", 4, "model.", "also_second_kitti_object"),
    ("pcdet_second_kitti", 4, "model.", "also_second_once"),
    ("slidr_res16unet34c_eval", 1, "", "slidr_minkunet_nuscenes"),
    ("slidr_res16unet34c_eval", 1, "", "probe_minkunet_nuscenes"),
]


def backbone_node(recipe: str) -> dict[str, Any]:
    node = yaml.safe_load(schema.parse(recipe).resolved)
    while "backbone" not in node:
        node = node.get("method") or node.get("task") or node["init_args"]
    found: dict[str, Any] = node["backbone"]
    return found


@pytest.mark.parametrize(("case", "inputs", "prefix", "recipe"), PUBLISHED)
def test_a_published_network_fits_its_recipe(
    goldens_root: Path, case: str, inputs: int, prefix: str, recipe: str
) -> None:
    path = goldens_root / case / "manifest.json"
    if not path.is_file():
        pytest.skip(f"no {case}")
    rows = json.loads(path.read_text())["state_dict"]
    state = {prefix + name: torch.zeros(shape) for name, shape, _ in rows}
    if "stem.0.kernel" in state:
        state["stem.0.kernel"] = torch.zeros(27, inputs, 32)
    network = find_network(state, Path(f"{case}.ckpt"))
    check_whole(network)
    with torch.device("meta"):
        backbone = schema.build_backbone(backbone_node(recipe), seed=0)
    assert misfits(backbone, state_for(network, backbone)) == []


# Channels, norm, activation and first input of published WaffleIrons, and recipes about them.
WAFFLEIRONS = [
    (256, "batch", "relu", "intensity", "finetune_waffleiron_semantic_kitti_supervised"),
    (384, "batch", "relu", "intensity", "finetune_waffleiron_nuscenes_supervised"),
    (768, "layer", "relu", "standard_intensity", "scalr_waffleiron_mixed"),
    (768, "layer", "relu", "standard_intensity", "probe_waffleiron_nuscenes_scalr"),
    (768, "layer", "relu", "standard_intensity", "finetune_waffleiron_semantic_kitti_scalr"),
    (768, "layer", "gelu", "standard_intensity", "scalr_waffleiron_mixed_plus"),
]


@pytest.mark.parametrize(("channels", "norm", "activation", "first", "recipe"), WAFFLEIRONS)
def test_a_published_waffleiron_fits_its_recipe(
    channels: int, norm: str, activation: str, first: str, recipe: str
) -> None:
    with torch.device("meta"):
        published = PlainWaffleIron(5, channels, 48, norm, "relu", GRIDS).state_dict()
        backbone: Any = schema.build_backbone(backbone_node(recipe), seed=0)
    network = find_network(published, Path("ckpt_last.pth"))
    check_whole(network)
    assert misfits(backbone, state_for(network, backbone)) == []
    rule = backbone.rule
    assert rule.inputs.columns == (first, "x", "y", "z", "radius")
    assert (rule.neighbours, rule.voxel_size, rule.grids.planes) == (16, 0.1, (2, 1, 0))
    smooth = any(isinstance(module, torch.nn.GELU) for module in backbone.modules())
    assert smooth == (activation == "gelu")
