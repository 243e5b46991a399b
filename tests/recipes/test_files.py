"""Recipes by name and from hostile files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lidarssl.errors import ConfigError
from lidarssl.recipes import files


def test_shipped_recipes_are_found_by_name() -> None:
    for name, path in files.shipped().items():
        assert files.find(name) == path


def test_a_path_works_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("kind: probe")
    assert files.find(str(path)) == path


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ppkt_minkunet_synthetic'"):
        files.find("ppkt_minkunet_synthetic.yml")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"kind", b"kind: dance", b"kind: [", b"\xff\xfe\x00", b"{" * 5000,
        b"kind: !!python/object/apply:os.system ['true']", b"#" * (files.MAX_BYTES + 1),
    ],
    ids=["empty", "list", "text", "kind", "broken", "binary", "deep", "code", "huge"],
)  # fmt: skip
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        files.read(path)
    assert caught.value.path == path
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "verb"),
    [
        ({"kind": "pretrain"}, "pretrain"),
        ({"kind": "probe"}, "probe"),
        ({"kind": "segmentation"}, "finetune"),
        ({"kind": "segmentation", "task": {"init_args": {"freeze": False}}}, "finetune"),
        ({"kind": "segmentation", "task": {"init_args": {"freeze": True}}}, "probe"),
        ({"kind": "segmentation", "task": {"freeze": True}}, "probe"),
    ],
)
def test_verb_that_runs_a_recipe(content: dict[str, object], verb: str) -> None:
    assert files.verb(content) == verb
