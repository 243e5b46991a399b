"""What classes can be given, in the words of their signatures and docstrings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.images.base import ImageEncoder
from lidarssl.methods.base import Method
from lidarssl.recipes.keys import (
    REQUIRED,
    Section,
    arguments,
    choices,
    element_class,
    find_class,
    import_rooms,
    in_words,
    inner_class,
    open_node,
    open_table,
    sections,
    table_class,
)

import_rooms()


@dataclass
class Base:
    """A base.

    Args:
        width: how wide.
    """

    width: int = 3


@dataclass
class Part:
    """A part.

    Args:
        low, high: its range.
    """

    low: float = 0.0
    high: float = 1.0


class Derived(Base):
    """Derived.

    Args:
        part: inside.
        width: as the base.
    """

    def __init__(self, name: str, width: int = 5, part: Part = Part(high=2.0)) -> None:  # noqa: B008
        super().__init__(width)
        self.name, self.part = name, part


@dataclass
class Recipe:
    base: Base
    part: Part = field(default_factory=Part)
    maybe: Part | None = None
    count: int = 1


def test_arguments_know_type_default_and_meaning() -> None:
    found = arguments(Derived)
    assert list(found) == ["name", "width", "part"]
    assert found["name"].default is REQUIRED
    assert (found["width"].annotation, found["width"].default) == (int, 5)
    assert found["width"].doc == "how wide.", "the base speaks where the class defers to it"
    assert found["part"].doc == "inside."


def test_default_factories_are_seen_through() -> None:
    assert arguments(Recipe)["part"].default == Part()


def test_one_line_may_document_several_arguments() -> None:
    found = arguments(Part)
    assert found["low"].doc == found["high"].doc == "its range."


def test_choices_are_what_can_be_built() -> None:
    assert {"Also", "Clcp", "Nclr", "Olivine", "Slidr", "Ppkt"} <= set(choices(Method))
    assert not {"Method", "ImageToLidar"} & set(choices(Method))
    ours = {name for name, cls in choices(Dataset).items() if cls.__module__.startswith("lidarssl")}
    assert ours == {
        "A2d2", "Acdc", "Cityscapes", "Daps3d", "Folder", "Kitti360", "KittiObject", "Mixed",
        "NuScenes", "Once", "Pandaset", "Rellis3d", "ScribbleKitti", "SemanticKitti",
        "SemanticPoss", "SemanticStf", "Shards", "Synthetic",
    }  # fmt: skip
    assert list(choices(Part)) == ["Part"]


def test_classes_by_short_and_by_full_name() -> None:
    full = "lidarssl.backbones.minkunet.MinkUNet"
    assert find_class(Backbone, "MinkUNet", "x") is find_class(Backbone, full, "x")


@pytest.mark.parametrize("name", ["Slidrr", "lidarssl.methods.slidr.Sldr", "os.system", "", "a..b"])
def test_unknown_class(name: str) -> None:
    with pytest.raises(
        ConfigError, match="known: Also, Clcp, Nclr, Olivine, Ppkt, Scalr, Slidr"
    ) as caught:
        find_class(Method, name, "method.class_path")
    assert caught.value.field == "method.class_path"


def test_sections_follow_what_the_recipe_names() -> None:
    given: dict[str, Any] = {
        "base": {"class_path": f"{__name__}.Derived", "init_args": {"part": {"low": 0.5}}},
    }
    found = {s.path: s for s in sections(Section("", Recipe, Recipe, given))}
    assert list(found) == ["", "base", "base.part", "part"]
    assert found["base"].cls is find_class(Base, "Derived", "base")
    assert found["base.part"].given == {"low": 0.5}


@dataclass
class Many:
    bases: dict[str, Base]
    counts: dict[str, int] = field(default_factory=dict)


def test_sections_enter_tables_of_classes() -> None:
    given: dict[str, Any] = {
        "bases": {
            "a": {"class_path": f"{__name__}.Derived", "init_args": {"part": {"low": 0.5}}},
            "b": "Base",
            "c": {"width": 4},
        },
        "counts": {"a": 1},
    }
    found = {s.path: s for s in sections(Section("", Many, Many, given))}
    assert list(found) == ["", "bases.a", "bases.a.part", "bases.b", "bases.c"]
    assert (found["bases.b"].base, found["bases.b"].cls) == (Base, Base)
    assert found["bases.c"].given == {"width": 4}


@pytest.mark.parametrize("node", [3, ["a"], "Base", {"class_path": "Base", "init_args": {}}])
def test_what_is_no_table_of_classes(node: object) -> None:
    with pytest.raises(ConfigError, match=r"(?s)is not a table of Bases.*one of Base, Derived"):
        open_table(Base, node, "bases")


def test_node_without_class_path_is_the_class_itself() -> None:
    assert open_node(Base, {"width": 1}, "base") == (Base, {"width": 1})


def test_text_may_be_a_value_beside_a_class() -> None:
    """``architecture: dino_vits8`` is a name that the class looks up, not a class."""
    vit = find_class(ImageEncoder, "ViT", "x")
    given = {"architecture": "dino_vits8"}
    assert [s.path for s in sections(Section("encoder", ImageEncoder, vit, given))] == ["encoder"]


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (3, "does not say how to build a Method"),
        ({"embedding": 3}, "which Method to build"),
        ({"class_path": "Slidr", "embedding": 3}, "'embedding' stands beside class_path"),
    ],
)
def test_nodes_that_say_nothing(node: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_node(Method, node, "method")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (str | Path, "a path"),
        (str | Path | None, "a path or null"),
        (int | str, "a whole number or text"),
        (bool, "true or false"),
        (Literal["sgd", "adamw"], "one of sgd, adamw"),
        (tuple[int, int], "a list of 2 whole numbers"),
        (tuple[int, ...], "a list of whole numbers"),
        (Sequence[str] | None, "a list of texts or null"),
        (float | tuple[float, float, float], "a number or a list of 3 numbers"),
        (Part | None, "a Part or null"),
        (tuple[Part, ...], "a list of Parts"),
    ],
)
def test_types_in_words(annotation: object, words: str) -> None:
    assert in_words(annotation) == words


def test_inner_classes() -> None:
    assert inner_class(Part | None) is Part
    assert inner_class(Method) is Method
    assert inner_class(int | str) is None
    assert inner_class(tuple[Part, ...]) is None
    assert element_class(tuple[Part, ...]) is Part
    assert element_class(tuple[int, ...]) is None
    assert table_class(dict[str, Part]) is table_class(dict[str, Part] | None) is Part
    assert inner_class(dict[str, Part]) is None
    assert table_class(dict[str, float]) is table_class(Part) is None
