from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lidarssl.checkpoints.reference import read_reference, strip_prefixes
from lidarssl.errors import ConfigError, DataError

POINTS = {"conv0p1s1.kernel": torch.ones(2), "final.kernel": torch.ones(3)}
IMAGES = {"encoder.conv1.weight": torch.zeros(2), "decoder.0.weight": torch.zeros(3)}
CONFIG = {"voxel_size": 0.1, "cylindrical_coordinates": True, "crop_size": (224, 416)}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


LAYOUTS = {
    "flat (ALSO)": POINTS,
    "slidr release": {"model_points": POINTS, "config": CONFIG},
    "slidr raw": {"model_points": POINTS, "model_images": IMAGES, "epoch": 50, "config": CONFIG},
    "slidr lightning": {
        "state_dict": prefixed(IMAGES, "model_images.") | prefixed(POINTS, "model_points."),
        "epoch": 49,
    },
    "slidr downstream": {"state_dict": prefixed(POINTS, "model.")},
    "scalr": {"model_point": prefixed(POINTS, "module."), "scaler": None},
    "waffleiron": {"net": prefixed(POINTS, "module."), "best_miou": 77.6},
    "depthcontrast": {
        "epoch": 1,
        "model": prefixed(POINTS, "module.trunk.2.")
        | {"module.trunk.0.weight": torch.ones(1), "module.head.weight": torch.ones(1)},
        "optimizer": {},
        "train_criterion": {},
    },
    "lightning in ddp": {"state_dict": prefixed(POINTS, "module.model_points.")},
    "nested": {"state_dict": prefixed(POINTS, "model.module.encoder.")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_names_of_the_network(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "reference.pt"
    torch.save(LAYOUTS[layout], path)
    checkpoint = read_reference(path)
    assert checkpoint.state.keys() == POINTS.keys()
    assert torch.equal(checkpoint.state["final.kernel"], POINTS["final.kernel"])


@pytest.mark.parametrize("layout", ["slidr raw", "slidr lightning"])
def test_image_branch(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "reference.pt"
    torch.save(LAYOUTS[layout], path)
    assert read_reference(path, "images").state.keys() == IMAGES.keys()


def test_a_branch_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "reference.pt"
    torch.save({"model_images": IMAGES}, path)
    with pytest.raises(DataError):
        read_reference(path, "points")
    torch.save({"state_dict": prefixed(IMAGES, "model_images.")}, path)
    with pytest.raises(DataError, match="points branch"):
        read_reference(path, "points")
    torch.save(LAYOUTS["slidr release"], path)
    with pytest.raises(DataError, match="images branch"):
        read_reference(path, "images")


def test_a_prefix_that_only_some_keys_have_is_part_of_the_name() -> None:
    """The reference decides on the first key and would lose the others."""
    state = {"encoder.0.weight": torch.ones(1), "decoder.0.weight": torch.ones(1)}
    assert strip_prefixes(state).keys() == state.keys()


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    path = tmp_path / "reference.pt"
    torch.save(LAYOUTS["slidr release"], path)
    checkpoint = read_reference(path)
    checkpoint.check_config(voxel_size=0.1, cylindrical_coordinates=True, crop_size=[224, 416])
    checkpoint.check_config(not_in_the_file=3)
    with pytest.raises(ConfigError) as caught:
        checkpoint.check_config(voxel_size=0.05, cylindrical_coordinates=False)
    assert "voxel_size is 0.1 in the checkpoint, 0.05 here" in str(caught.value)
    assert "cylindrical_coordinates is True in the checkpoint, False here" in str(caught.value)


def test_no_config_is_nothing_to_compare(tmp_path: Path) -> None:
    path = tmp_path / "reference.pt"
    torch.save(POINTS, path)
    checkpoint = read_reference(path)
    assert checkpoint.config == {}
    checkpoint.check_config(voxel_size=0.1)
