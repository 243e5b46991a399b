"""Recipes: YAML of class names and constructor arguments, checked against signatures.

A recipe is one experiment. Its ``kind`` says what it runs:

- ``pretrain``: a method on unlabelled frames (`lidarssl pretrain`);
- ``segmentation``: a task trained on labelled frames (`lidarssl finetune`, and `lidarssl probe`
  when its task freezes the backbone);
- ``image_segmentation``: the same of labelled images, with an image encoder;
- ``probe``: softmax regression on cached features (`lidarssl probe`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import Any

import yaml

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.datasets.world.config import WorldConfig
from lidarssl.errors import ConfigError, DataError
from lidarssl.recipes import files
from lidarssl.recipes.describe import describe_section
from lidarssl.recipes.keys import Section, choices, import_rooms, sections
from lidarssl.recipes.kinds import KINDS
from lidarssl.recipes.limits import check_limits
from lidarssl.recipes.overrides import explain, override
from lidarssl.recipes.shares import spell_out_epochs
from lidarssl.recipes.suggest import did_you_mean


@dataclass
class ParsedRecipe:
    """A recipe whose keys and types are right; nothing is built and no data is read.

    Attributes:
        kind: see the module.
        seed: of weights and draws.
        resolved: YAML with every default and override spelled out.
    """

    kind: str
    seed: int
    resolved: str
    _parser: Any
    _config: Any

    def build(self) -> LoadedRecipe:
        """Build the objects; random weights come from the recipe's seed."""
        built = _instantiate(self._parser, self._config, self.seed)
        return LoadedRecipe(self.kind, KINDS[self.kind](**vars(built)), self.resolved)


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


def load(name: str, overrides: Sequence[str] = (), kinds: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe, apply overrides, build its objects.

    Args:
        name: of a shipped recipe, or a path.
        overrides: command line words such as ``--training.steps=10``.
        kinds: the kinds that the caller can run; none = all.

    Raises:
        ConfigError: an unknown key (names the closest), a wrong type, a class that fails.
    """
    return parse(name, overrides, kinds).build()


def parse(name: str, overrides: Sequence[str] = (), kinds: Sequence[str] = ()) -> ParsedRecipe:
    """The first half of ``load``: check every key and type.

    Raises:
        ConfigError: an unknown key (names the closest) or a wrong type.
    """
    path = files.find(name)
    content = files.read(path)
    verb, kind = files.verb(content), content.pop("kind")
    if kinds and kind not in kinds:
        raise ConfigError(
            f"is a recipe of kind '{kind}'",
            path=path,
            field="kind",
            remedy=f"run it with `lidarssl {verb}`",
        )
    hint = f"`lidarssl recipes {name} --keys` lists every key"
    parser, config = _parse(KINDS[kind], content, overrides, hint, path)
    if kind == "segmentation":
        with _hinting(hint, None):
            spell_out_epochs(config, content)
    text = parser.dump(config, skip_none=False, skip_validation=True)
    with _hinting(hint, None):
        check_limits(Section("", KINDS[kind], KINDS[kind], yaml.safe_load(text)))
    resolved = f"kind: {kind}\n{text}"
    seed: int = config.seed if kind == "probe" else config.training.seed
    return ParsedRecipe(kind, seed, resolved, parser, config)


def build_backbone(node: dict[str, Any], seed: int) -> Backbone:
    """The backbone of a resolved recipe again, with the random weights of another seed.

    Args:
        node: its ``class_path`` and ``init_args``.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--backbone", type=Backbone)
    built = _instantiate(parser, parser.parse_object({"backbone": node}), seed)
    backbone: Backbone = built.backbone
    return backbone


def build_dataset(name: str, options: Sequence[str]) -> Dataset:
    """A dataset by its name and the command line words of its constructor.

    Raises:
        ConfigError: unknown dataset or option; names the closest.
    """
    cls = dataset_class(name)
    hint = f"`lidarssl data check {name} --help` lists the options"
    parser, config = _parse(cls, {}, options, hint)
    built: Dataset = cls(**vars(_instantiate(parser, config)))
    return built


def build_part(name: str, base: type, options: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """An object from command line words, and all of its arguments as in a resolved recipe.

    Args:
        name: of its options, e.g. ``encoder`` for ``--encoder.class_path=ViT``.
        base: class of what may be built.
        options: the words.

    Raises:
        ConfigError: unknown class, option or bad value; names the closest.
    """
    import_rooms()
    hint = f"--{name}.KEY are the arguments of {', '.join(choices(base))}"
    parser, config = _parse(make_dataclass("Part", [(name, base)]), {}, options, hint)
    node = yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))[name]
    return getattr(_instantiate(parser, config), name), node.get("init_args", {})


def describe_part(name: str, base: type) -> str:
    """The options of everything that ``build_part`` can build, for `--help`."""
    import_rooms()
    return "\n\n".join(
        describe_section(Section(name, base, cls, {})) for cls in choices(base).values()
    )


def build_world(options: Sequence[str], base: WorldConfig | None = None) -> WorldConfig:
    """A synthetic world from the command line words of ``WorldConfig``.

    Args:
        options: e.g. ``--lidar.beams=64``.
        base: what holds where no option says otherwise; default: the world of the demo.

    Raises:
        ConfigError: unknown option or bad value.
    """
    hint = "`lidarssl data synthesize --help` lists the options"
    content = {} if base is None else json.loads(json.dumps(asdict(base)))
    parser, config = _parse(WorldConfig, content, options, hint)
    return WorldConfig(**vars(_instantiate(parser, config)))


def dataset_class(name: str) -> type[Dataset]:
    """The dataset that the command line calls ``name``.

    Raises:
        ConfigError: there is none; names the closest.
    """
    import_rooms()
    known: dict[str, Any] = {cls.name: cls for cls in choices(Dataset).values()}  # type: ignore[attr-defined]
    if name not in known:
        raise ConfigError(
            f"there is no dataset '{name}'",
            field="dataset",
            remedy=f"{did_you_mean(name, known)}known: {', '.join(sorted(known))}",
        )
    found: type[Dataset] = known[name]
    return found


def describe_dataset(name: str) -> str:
    """The options of a dataset, for `--help`."""
    cls = dataset_class(name)
    return f"options of {name}:\n{describe_section(Section('', cls, cls, {}))}"


def describe_world() -> str:
    """The options of a synthetic world, for `--help`."""
    parts = [
        describe_section(section) for section in sections(Section("", WorldConfig, WorldConfig, {}))
    ]
    return "options of the world:\n" + "\n\n".join(parts)


def _parse(
    cls: type,
    content: dict[str, Any],
    overrides: Sequence[str],
    hint: str,
    path: Path | None = None,
) -> tuple[Any, Any]:
    """A parser of the arguments of ``cls``, and their checked values."""
    from jsonargparse import ArgumentError, ArgumentParser

    import_rooms()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    with _hinting(hint, None):
        override(cls, content, overrides)
    with _hinting(hint, path):
        try:
            # The parser changes tables of classes in place, and what is wrong is told of the rest.
            return parser, parser.parse_object(deepcopy(content), defaults=True)
        except ArgumentError as error:
            explain(cls, content)
            raise ConfigError(" ".join(str(error).split())[:300]) from None


@contextmanager
def _hinting(hint: str, path: Path | None) -> Iterator[None]:
    """Add where to look, and the file, to what is wrong with an option."""
    try:
        yield
    except ConfigError as error:
        remedy = error.remedy or ""
        joint = "; " if remedy.rstrip() == remedy != "" else ""
        raise type(error)(
            error.problem,
            path=error.path or path,
            field=error.field,
            remedy=f"{remedy}{joint}{hint}",
        ) from None


def _instantiate(parser: Any, config: Any, seed: int = 0) -> Any:
    """Build what ``config`` describes; random weights come from ``seed``.

    Raises:
        DataError: a constructor refuses its arguments.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return parser.instantiate_classes(config)
        except DataError:
            raise
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            raise _refusal(error) from error


def _refusal(error: BaseException) -> DataError:
    """The refusal of a constructor, which the parser may have wrapped in errors of its own."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, DataError):
            return inner
        inner = inner.__cause__ or inner.__context__
    problem = " ".join(str(error).split())[:300]
    return ConfigError(
        f"these values cannot be built: {problem}",
        remedy="look for a size or a count of 0 or less, or lists whose lengths do not fit",
    )
