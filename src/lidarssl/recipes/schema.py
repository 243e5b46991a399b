"""Recipes: YAML of class names and constructor arguments, checked against signatures.

A recipe is one experiment. Its ``kind`` says what it runs:

- ``pretrain``: a method on unlabelled frames (`lidarssl pretrain`);
- ``segmentation``: a task trained on labelled frames (`lidarssl finetune`, and `lidarssl probe`
  when its task freezes the backbone);
- ``probe``: softmax regression on cached features (`lidarssl probe`).
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module, resources
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import yaml

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.datasets.world.config import WorldConfig
from lidarssl.errors import ConfigError
from lidarssl.methods.base import Method
from lidarssl.tasks.probe import LinearProbe
from lidarssl.tasks.semantic import SemanticSegmentation
from lidarssl.training.fit import Training


@dataclass
class About:
    """What a recipe is for.

    Args:
        title: one line.
        paper: the publication it reproduces.
        target: the published number it aims at, with its protocol.
        verified: what was run of it, and what came out.
    """

    title: str = ""
    paper: str = ""
    target: str = ""
    verified: str = ""


@dataclass
class PretrainRecipe:
    """A method on unlabelled frames.

    Args:
        dataset: where frames come from.
        method: how it pretrains.
        about: what it is for.
        train_split: of the dataset.
        val_split: for pictures and checks.
        training: how it trains.
    """

    dataset: Dataset
    method: Method
    about: About = field(default_factory=About)
    train_split: str = "train"
    val_split: str = "val"
    training: Training = field(default_factory=Training)


@dataclass
class SegmentationRecipe:
    """A segmentation task on a fraction of the labels.

    Args:
        dataset: where frames come from.
        task: backbone, head and loss.
        about: what it is for.
        train_split, val_split: of the dataset.
        label_skip: train on 1 / label_skip of the labels, chosen by the dataset's protocol.
        training: how it trains.
        adapt_frames: frames that set the batch-norm statistics of a random frozen backbone.
        eval_batch_size: frames of an evaluation step.
    """

    dataset: Dataset
    task: SemanticSegmentation
    about: About = field(default_factory=About)
    train_split: str = "train"
    val_split: str = "val"
    label_skip: int = 1
    training: Training = field(default_factory=Training)
    adapt_frames: int = 32
    eval_batch_size: int = 4


@dataclass
class ProbeRecipe:
    """Softmax regression on features of a frozen backbone.

    Args:
        dataset: where frames come from.
        backbone: what is judged.
        about: what it is for.
        train_split, val_split: of the dataset.
        label_skip: fit on 1 / label_skip of the labels, chosen by the dataset's protocol.
        probe: how the regression is fitted.
        seed: of the draws, and of the weights without a checkpoint.
        workers: loader processes.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        adapt_frames: frames that set the batch-norm statistics of a random backbone.
        eval_batch_size: frames of an evaluation step.
    """

    dataset: Dataset
    backbone: Backbone
    about: About = field(default_factory=About)
    train_split: str = "train"
    val_split: str = "val"
    label_skip: int = 1
    probe: LinearProbe = field(default_factory=LinearProbe)
    seed: int = 0
    workers: int = 2
    accelerator: str = "auto"
    adapt_frames: int = 32
    eval_batch_size: int = 4


KINDS: dict[str, type] = {
    "pretrain": PretrainRecipe,
    "segmentation": SegmentationRecipe,
    "probe": ProbeRecipe,
}
Recipe = PretrainRecipe | SegmentationRecipe | ProbeRecipe

_ROOMS = ("datasets", "backbones", "images", "methods", "tasks", "transforms")


@dataclass
class LoadedRecipe:
    """A recipe ready to run.

    Attributes:
        kind: see the module.
        recipe: its objects, built.
        resolved: YAML with every default and override spelled out.
    """

    kind: str
    recipe: Any
    resolved: str


def shipped() -> dict[str, Path]:
    """Recipes of the package by name."""
    folder = Path(str(resources.files("lidarssl.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """Path of a recipe given by name or path.

    Raises:
        ConfigError: names the closest shipped recipe.
    """
    known = shipped()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    close = difflib.get_close_matches(name, known, 1, 0.3)
    raise ConfigError(
        f"there is no recipe '{name}'",
        field="recipe",
        remedy=(f"did you mean '{close[0]}'? " if close else "")
        + "`lidarssl recipes` lists them; a path to a YAML file works too",
    )


def read(path: Path) -> dict[str, Any]:
    """The YAML of a recipe.

    Raises:
        ConfigError: not YAML, or not a recipe.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"cannot be read as YAML: {error}", path=path) from error
    if not isinstance(content, dict) or content.get("kind") not in KINDS:
        raise ConfigError(
            "is not a recipe", path=path, field="kind", remedy=f"set kind to one of {list(KINDS)}"
        )
    return content


def load(name: str, overrides: Sequence[str] = (), kinds: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe, apply overrides, build its objects.

    Args:
        name: of a shipped recipe, or a path.
        overrides: command line words such as ``--training.steps=10``.
        kinds: the kinds that the caller can run; none = all.

    Raises:
        ConfigError: an unknown key (names the closest), a wrong type, a class that fails.
    """
    import torch

    path = find(name)
    content = read(path)
    kind = content.pop("kind")
    if kinds and kind not in kinds:
        verbs = {"pretrain": "pretrain", "segmentation": "finetune", "probe": "probe"}
        raise ConfigError(
            f"is a recipe of kind '{kind}'",
            path=path,
            field="kind",
            remedy=f"run it with `lidarssl {verbs[kind]}`",
        )
    parser = build_parser(kind)
    config = _parse(parser, content, overrides, path)
    resolved = f"kind: {kind}\n" + parser.dump(config, skip_validation=True)
    seed = config.seed if kind == "probe" else config.training.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = parser.instantiate_classes(config)
    return LoadedRecipe(kind, KINDS[kind](**vars(built)), resolved)


def build_dataset(name: str, options: Sequence[str]) -> Dataset:
    """A dataset by its name and the command line words of its constructor.

    Raises:
        ConfigError: unknown dataset or option; names the closest.
    """
    from jsonargparse import ArgumentParser

    _import_rooms()
    known = {cls.name: cls for cls in _concrete(Dataset)}
    if name not in known:
        close = difflib.get_close_matches(name, known, 1, 0.3)
        raise ConfigError(
            f"there is no dataset '{name}'",
            field="dataset",
            remedy=f"did you mean '{close[0]}'?" if close else f"choose one of {sorted(known)}",
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(known[name])
    config = _parse(parser, {}, options, Path(name))
    built: Dataset = known[name](**vars(parser.instantiate_classes(config)))
    return built


def build_world(options: Sequence[str]) -> WorldConfig:
    """A synthetic world from the command line words of ``WorldConfig``.

    Raises:
        ConfigError: unknown option or bad value.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(WorldConfig)
    config = _parse(parser, {}, options, Path("world"))
    return WorldConfig(**vars(parser.instantiate_classes(config)))


def _concrete(base: Any) -> list[Any]:
    found: list[Any] = []
    for cls in base.__subclasses__():
        found += ([] if inspect.isabstract(cls) else [cls]) + _concrete(cls)
    return found


def build_parser(kind: str) -> Any:
    """The argument parser of a kind of recipe: its help lists every key."""
    from jsonargparse import ArgumentParser

    _import_rooms()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(KINDS[kind])
    return parser


def _parse(parser: Any, content: dict[str, Any], overrides: Sequence[str], path: Path) -> Any:
    from jsonargparse import ArgumentError

    try:
        if not content:
            return parser.parse_args(list(overrides))
        config = parser.parse_object(content, defaults=True)
        return parser.parse_args(list(overrides), namespace=config) if overrides else config
    except ArgumentError as error:
        raise ConfigError(
            _tidy(str(error)), path=path, remedy=_suggest(str(error), parser)
        ) from None


def _tidy(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines)[:600]


def _suggest(message: str, parser: Any) -> str:
    unknown = re.findall(
        r"'([\w.]+)' (?:is not|not) |[Uu]nrecognized arguments?: --([\w.]+)", message
    )
    keys = [action.dest for action in parser._actions if action.dest != "help"]
    for pair in unknown:
        word = next(filter(None, pair)).split(".")[-1]
        close = difflib.get_close_matches(word, [key.split(".")[-1] for key in keys], 1, 0.5)
        if close:
            return f"did you mean '{close[0]}'?"
    return "`lidarssl recipes NAME` shows a recipe that works"


def _import_rooms() -> None:
    """Import the modules whose classes a recipe may name by their short name."""
    for room in _ROOMS:
        package = import_module(f"lidarssl.{room}")
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)
