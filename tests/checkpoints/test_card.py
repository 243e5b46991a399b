from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.checkpoints.card import MAX_CARD_BYTES, Architecture, Card
from lidarssl.errors import ConfigError, DataError

ARCHITECTURE = Architecture("lidarssl.backbones.minkunet.MinkUNet", {"voxel_size": 0.1})
CARD = Card(
    architecture=ARCHITECTURE,
    recipe="slidr_minkunet_nuscenes",
    data=("nuscenes/parametrizing",),
    metrics={"probe/miou": 0.388, "finetune/miou": None},
    licence="CC-BY-NC-SA-4.0",
    step=350_000,
)


def test_json_round_trip() -> None:
    assert Card.from_json(CARD.to_json()) == CARD


def with_changes(**changes: object) -> str:
    record = json.loads(CARD.to_json())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        inner = record
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"architecture": []}, "architecture"),
        ({"architecture": None}, "architecture"),
        ({"architecture__class_path": 3}, "architecture.class_path"),
        ({"architecture__class_path": None}, "architecture.class_path"),
        ({"architecture__init_args": "x"}, "architecture.init_args"),
        ({"architecture__init_arg": {}}, "architecture.init_arg"),
        ({"recipe": 1}, "recipe"),
        ({"data": "nuscenes"}, "data"),
        ({"data": ["a", 1]}, "data[1]"),
        ({"metrics": [0.3]}, "metrics"),
        ({"metrics": {"miou": "high"}}, "metrics.miou"),
        ({"metrics": {"miou": True}}, "metrics.miou"),
        ({"metrics": {"miou": 10**400}}, "metrics.miou"),
        ({"licence": {}}, "licence"),
        ({"step": 1.5}, "step"),
        ({"step": True}, "step"),
        ({"version": 1}, "version"),
        ({"recipes": "x"}, "card.recipes"),
    ],
)
def test_wrong_types_name_their_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(DataError) as caught:
        Card.from_json(with_changes(**changes))
    assert caught.value.field == field


def test_unknown_field_names_the_closest() -> None:
    with pytest.raises(DataError, match="meant 'licence'"):
        Card.from_json(with_changes(license="MIT"))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", '{"metrics": NaN}', "[" * 100_000, b"\xff\xfe", '{"recipe": "x"}'],
)
def test_hostile_text(text: str | bytes) -> None:
    with pytest.raises(DataError):
        Card.from_json(text)


@settings(max_examples=60, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["architecture", "class_path", "metrics", "data", "x"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_any_json_is_a_card_or_a_data_error(value: object) -> None:
    try:
        card = Card.from_json(json.dumps(value))
    except DataError:
        return
    assert Card.from_json(card.to_json()) == card


def test_too_large() -> None:
    with pytest.raises(DataError, match="larger than"):
        Card.from_json(" " * (MAX_CARD_BYTES + 1))


@pytest.mark.parametrize("bad", [math.nan, object()])
def test_refuses_to_write_what_json_cannot_hold(bad: object) -> None:
    with pytest.raises(ConfigError, match="JSON"):
        Card(Architecture("a.B", {"x": bad})).to_json()


def test_same_architecture_in_tuples_or_lists() -> None:
    Architecture("a.B", {"size": (1, 2)}).check_same(Architecture("a.B", {"size": [1, 2]}))


def test_another_architecture_names_every_difference() -> None:
    other = Architecture(ARCHITECTURE.class_path, {"voxel_size": 0.05, "kernel": 3})
    with pytest.raises(ConfigError) as caught:
        ARCHITECTURE.check_same(other)
    assert "voxel_size is 0.05 in the checkpoint, 0.1 here" in str(caught.value)
    assert "kernel is 3 in the checkpoint, absent here" in str(caught.value)
    ARCHITECTURE.check_same(other, ignore=("voxel_size", "kernel"))
    with pytest.raises(ConfigError, match="class_path"):
        ARCHITECTURE.check_same(Architecture("a.B", {"voxel_size": 0.1}))
