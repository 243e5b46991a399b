"""Command line words end up where a recipe would have them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.errors import ConfigError
from lidarssl.recipes.keys import import_rooms
from lidarssl.recipes.kinds import PretrainRecipe
from lidarssl.recipes.overrides import explain, override, split_words
from lidarssl.training.settings import Training

import_rooms()

KEYS = st.from_regex(r"[a-z][a-z_.]{0,10}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["C"]), max_size=10)


@given(st.lists(st.tuples(KEYS, VALUES)))
def test_both_ways_to_write_an_option_mean_the_same(pairs: list[tuple[str, str]]) -> None:
    tied = [f"--{key}={value}" for key, value in pairs]
    loose = [word for key, value in pairs for word in (f"--{key}", value)]
    assert split_words(tied) == split_words(loose) == pairs


def slidr() -> dict[str, Any]:
    return {
        "dataset": {"class_path": "Synthetic", "init_args": {"root": "x"}},
        "method": {
            "class_path": "Slidr",
            "init_args": {
                "backbone": {"class_path": "MinkUNet"},
                "image_encoder": "SmallUNet",
                "embedding": 8,
                "pool": "cells",
            },
        },
    }


def overridden(*words: str) -> dict[str, Any]:
    content = slidr()
    override(PretrainRecipe, content, words)
    return content


def test_values_get_the_type_of_their_argument() -> None:
    content = overridden(
        "--training.steps=10", "--training.optimizer.lr=1e-3",
        "--training.devices=auto", "--dataset.version=1.0", "--dataset.cameras=[A, B]",
        "--method.augmentation.scale=null", "--method.augmentation.rotate=false",
    )  # fmt: skip
    training, dataset = content["training"], content["dataset"]["init_args"]
    assert training["steps"] == 10
    assert training["optimizer"]["lr"] == 0.001
    assert training["devices"] == "auto"
    assert dataset["version"] == "1.0", "text stays text even where it looks like a number"
    assert dataset["cameras"] == ["A", "B"]
    assert content["method"]["init_args"]["augmentation"] == {"scale": None, "rotate": False}


def test_init_args_may_be_left_out() -> None:
    short = overridden("--method.backbone.voxel_size=0.3")
    assert short == overridden("--method.init_args.backbone.init_args.voxel_size", "0.3")
    backbone = short["method"]["init_args"]["backbone"]
    assert backbone == {"class_path": "MinkUNet", "init_args": {"voxel_size": 0.3}}


def test_a_class_named_as_text_is_opened() -> None:
    content = overridden("--method.image_encoder.weights=w.safetensors")
    encoder = content["method"]["init_args"]["image_encoder"]
    assert encoder == {"class_path": "SmallUNet", "init_args": {"weights": "w.safetensors"}}


def test_text_may_be_a_value_beside_a_class() -> None:
    words = ["--method.image_encoder=ViT", "--method.image_encoder.architecture=dino_vits8"]
    encoder = overridden(*words)["method"]["init_args"]["image_encoder"]
    assert encoder["init_args"] == {"architecture": "dino_vits8"}


def mixed() -> dict[str, Any]:
    """A recipe of two datasets, one written in full and one by its name alone."""
    datasets = {"a": {"class_path": "Synthetic", "init_args": {"root": "x"}}, "b": "Folder"}
    return slidr() | {"dataset": {"class_path": "Mixed", "init_args": {"datasets": datasets}}}


def remixed(*words: str) -> dict[str, Any]:
    content = mixed()
    override(PretrainRecipe, content, words)
    found: dict[str, Any] = content["dataset"]["init_args"]
    return found


def test_words_reach_into_tables_of_classes() -> None:
    found = remixed(
        "--dataset.datasets.a.image_scale=0.5", "--dataset.datasets.b.root", "y",
        "--dataset.init_args.datasets.c.init_args.root=z",
        "--dataset.datasets.c.class_path=SemanticKitti", "--dataset.weights={a: 1, b: 2, c: 0.5}",
    )  # fmt: skip
    assert found["weights"] == {"a": 1, "b": 2, "c": 0.5}
    assert found["datasets"] == {
        "a": {"class_path": "Synthetic", "init_args": {"root": "x", "image_scale": 0.5}},
        "b": {"class_path": "Folder", "init_args": {"root": "y"}},
        "c": {
            "class_path": "lidarssl.datasets.semantic_kitti.SemanticKitti",
            "init_args": {"root": "z"},
        },
    }


def test_an_entry_of_a_table_may_change_its_class_or_be_given_whole() -> None:
    found = remixed("--dataset.datasets.a=NuScenes", "--dataset.datasets.b={class_path: Once}")
    assert found["datasets"]["a"] == {
        "class_path": "lidarssl.datasets.nuscenes.NuScenes",
        "init_args": {"root": "x"},
    }
    assert found["datasets"]["b"] == {"class_path": "Once"}
    assert remixed("--dataset.datasets={c: Once}")["datasets"] == {"c": "Once"}


@pytest.mark.parametrize(
    ("word", "field", "said"),
    [
        (
            "--dataset.datasets.aa.root=y",
            "dataset.datasets.aa",
            "did you mean 'dataset.datasets.a'",
        ),
        (
            "--dataset.datasets.q.root=y",
            "dataset.datasets.q",
            "known: a, b; add one with --",
        ),
        ("--dataset.datasets.a.rot=y", "dataset.datasets.a.rot", "did you mean .*datasets.a.root"),
        ("--dataset.datasets.a=Onc", "dataset.datasets.a.class_path", "did you mean 'Once'"),
        ("--dataset.datasets=3", "dataset.datasets", "not a table of Datasets"),
        ("--dataset.weights.a=3", "dataset.weights.a", "plain value"),
    ],
)
def test_words_that_lead_nowhere_in_a_table(word: str, field: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        remixed(word)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"a": {"class_path": "Synthtic"}}, "dataset.datasets.a", "did you mean 'Synthetic'"),
        ({"a": {"class_path": "MinkUNet"}}, "dataset.datasets.a", "no Dataset 'MinkUNet'"),
        ({"a": "Synthetic"}, "dataset.datasets.a.root", "'dataset.datasets.a.root' is missing"),
        ({"a": {"root": "x"}}, "dataset.datasets.a.class_path", "which Dataset to build"),
        ({"a": 3}, "dataset.datasets.a", "how to build a Dataset"),
        ([3], "dataset.datasets", "not a table of Datasets"),
    ],
)
def test_explanations_name_the_entry_of_a_table(change: Any, field: str, said: str) -> None:
    content = mixed()
    content["dataset"]["init_args"]["datasets"] = change
    with pytest.raises(ConfigError, match=said) as caught:
        explain(PretrainRecipe, content)
    assert caught.value.field == field


@pytest.mark.parametrize("words", [["--method.class_path=Ppkt"], ["--method=Ppkt"]])
def test_another_class_keeps_the_arguments_it_has_too(words: list[str]) -> None:
    # The class may follow its arguments on the command line.
    content = overridden("--method.num_matches=7", *words)
    arguments = content["method"]["init_args"]
    assert content["method"]["class_path"] == "lidarssl.methods.ppkt.Ppkt"
    assert arguments["num_matches"] == 7
    assert arguments["embedding"] == 8
    assert "pool" not in arguments


def test_a_whole_node_may_be_given() -> None:
    content = overridden("--training={steps: 3, optimizer: {lr: 1.0}}")
    assert content["training"] == {"steps": 3, "optimizer": {"lr": 1.0}}


def test_the_last_word_counts() -> None:
    assert overridden("--training.steps=1", "--training.steps=2")["training"]["steps"] == 2


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"train_spilt": "x"}, "train_spilt", "did you mean 'train_split'"),
        ({"training": {"stepz": 3}}, "training.stepz", "did you mean 'training.steps'"),
        ({"training": {"optimizer": {"lr": "fast"}}}, "training.optimizer.lr", "not a number"),
        ({"training": 3}, "training", "how to build a Training"),
        ({"method": {"class_path": "Slidrr"}}, "method", "did you mean 'Slidr'"),
        ({"method": {"class_path": "Slidr"}}, "method.backbone", "is missing"),
    ],
)
def test_explanations_name_the_key(change: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        explain(PretrainRecipe, slidr() | change)
    assert caught.value.field == field


def test_nothing_is_said_of_what_is_right() -> None:
    explain(PretrainRecipe, slidr())
    explain(Training, {"steps": 3})
