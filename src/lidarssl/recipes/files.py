"""Recipe files by name; light, so that listing them costs no heavy import."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lidarssl.errors import ConfigError

KINDS = ("pretrain", "segmentation", "image_segmentation", "probe")
TRAINED = ("segmentation", "image_segmentation")
"""Kinds that train a task, whose encoder may be frozen."""

MAX_BYTES = 1 << 20


def shipped() -> dict[str, Path]:
    """Recipes of the package by name."""
    folder = Path(str(resources.files("lidarssl.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """Path of a recipe given by name or path.

    Raises:
        ConfigError: there is none; names the closest shipped recipe.
    """
    known = shipped()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    close = difflib.get_close_matches(Path(name).stem, known, 1, 0.3)
    raise ConfigError(
        f"there is no recipe '{name}'",
        field="recipe",
        remedy=(f"did you mean '{close[0]}'? " if close else "")
        + "`lidarssl recipes` lists them; a path to a YAML file works too",
    )


def read(path: Path) -> dict[str, Any]:
    """The content of a recipe.

    Raises:
        ConfigError: not YAML, or not a recipe.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES >> 20} MiB", path=path, remedy=_A_RECIPE)
    try:
        content = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = " ".join(str(error).split())[:300]
        raise ConfigError(f"is not YAML: {problem}", path=path, remedy=_A_RECIPE) from error
    if not isinstance(content, dict) or content.get("kind") not in KINDS:
        raise ConfigError(
            "is not a recipe",
            path=path,
            field="kind",
            remedy=f"set kind to one of {', '.join(KINDS)}",
        )
    return content


def verb(content: dict[str, Any]) -> str:
    """The verb of the command line that runs a recipe."""
    if content["kind"] not in TRAINED:
        return str(content["kind"])
    task = content.get("task")
    arguments = task.get("init_args", task) if isinstance(task, dict) else {}
    return "probe" if arguments.get("freeze") else "finetune"


_A_RECIPE = "`lidarssl recipes NAME` shows what a recipe looks like"
