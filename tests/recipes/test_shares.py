"""The epochs that belong to a share of the labels, and what overrides them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lidarssl.errors import ConfigError
from lidarssl.recipes import files
from lidarssl.recipes.schema import parse

NAME = "finetune_minkunet_nuscenes_also"
WITH_SHARES = [
    name for name, path in files.shipped().items() if files.read(path).get("share_epochs")
]


def resolved(name: str, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(parse(name, words).resolved)
    return found


@pytest.mark.parametrize("name", WITH_SHARES)
@pytest.mark.parametrize(
    ("skip", "epochs"), [(1, 30), (2, 50), (10, 100), (100, 500), (1000, 1000)]
)
def test_epochs_of_the_published_protocol(name: str, skip: int, epochs: int) -> None:
    found = resolved(name, f"--label_skip={skip}")
    assert found["training"]["epochs"] == epochs
    assert found["training"]["steps"] is None


def test_all_finetuning_of_the_protocol_has_shares() -> None:
    assert set(WITH_SHARES) >= {
        f"finetune_{backbone}_{dataset}_also"
        for backbone in ("minkunet", "spvcnn")
        for dataset in ("nuscenes", "semantic_kitti", "semantic_poss")
    }


def test_a_length_of_one_s_own_wins() -> None:
    assert resolved(NAME, "--training.epochs=7")["training"]["epochs"] == 7
    assert resolved(NAME, "--training.steps=7", "--label_skip=5")["training"]["steps"] == 7
    assert resolved(NAME, "--label_skip=5", "--training.epochs=7")["training"]["epochs"] == 7


def test_a_share_without_epochs_names_those_that_have_some() -> None:
    with pytest.raises(ConfigError, match=r"use one of 1, 2, 10, 100, 1000, or add") as caught:
        parse(NAME, ["--label_skip=5"])
    assert caught.value.field == "label_skip"


def test_the_table_can_be_given_and_left_out() -> None:
    other = resolved(NAME, "--label_skip=5", "--share_epochs={5: 60}")
    assert other["training"]["epochs"] == 60
    plain = "finetune_minkunet_nuscenes_1"
    assert resolved(plain, "--label_skip=5")["training"]["epochs"] == 100
    with pytest.raises(ConfigError, match=r"\{a whole number: a whole number\}"):
        parse(NAME, ["--share_epochs=many"])
    with pytest.raises(ConfigError, match=r"'training\.epochs' cannot be 0"):
        parse(NAME, ["--share_epochs={1: 0}"])


def test_a_resolved_recipe_says_one_thing_only(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(parse(NAME, ["--label_skip=100"]).resolved)
    again = resolved(str(path))
    assert again["training"]["epochs"] == 500
    assert again["share_epochs"] == {}
    assert parse(str(path)).resolved == path.read_text()
