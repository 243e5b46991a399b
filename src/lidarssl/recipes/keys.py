"""What a class can be given: its constructor arguments with their types, defaults and meanings."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import docstring_parser

from lidarssl.errors import ConfigError
from lidarssl.recipes.suggest import did_you_mean

REQUIRED = inspect.Parameter.empty
_ROOMS = (
    "datasets", "backbones", "images", "methods", "tasks", "transforms", "prepare.labellers",
)  # fmt: skip
_CLASS_KEYS = {"class_path", "init_args"}


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a constructor; ``default`` is ``REQUIRED`` where there is none."""

    name: str
    annotation: Any
    default: Any
    doc: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A class inside a recipe, and what it is given there.

    Attributes:
        path: dotted, as on the command line; empty for the recipe itself.
        base: what may stand here.
        cls: what does.
        given: its arguments in the recipe.
    """

    path: str
    base: type
    cls: type
    given: Mapping[str, Any]

    def key(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


@functools.cache
def arguments(cls: type) -> dict[str, Argument]:
    """The constructor's arguments by name, in order."""
    hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    docs = _argument_docs(cls)
    defaults = _dataclass_defaults(cls)
    return {
        name: Argument(
            name,
            hints.get(name, Any),
            defaults.get(name, parameter.default),
            docs.get(name, ""),
        )
        for name, parameter in inspect.signature(cls).parameters.items()
    }


def _dataclass_defaults(cls: type) -> dict[str, Any]:
    """Values of the default factories, which a signature hides."""
    if not dataclasses.is_dataclass(cls):
        return {}
    return {
        field.name: field.default_factory()
        for field in dataclasses.fields(cls)
        if field.default_factory is not dataclasses.MISSING
    }


def _argument_docs(cls: type) -> dict[str, str]:
    """Meanings from the docstrings; a base class speaks where the class itself is silent."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] != cls.__module__.split(".")[0]:
            continue
        for entry in docstring_parser.parse(inspect.getdoc(base) or "").params:
            text = " ".join((entry.description or "").split())
            if not text.startswith("as the base"):
                docs.update(dict.fromkeys(map(str.strip, entry.arg_name.split(",")), text))
    return docs


def import_rooms() -> None:
    """Import the modules whose classes a recipe may name by their short name."""
    for room in _ROOMS:
        package = import_module(f"lidarssl.{room}")
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)


def choices(base: Any) -> dict[str, type]:
    """Classes that can be built where ``base`` is asked for, by their short name."""
    found = {} if inspect.isabstract(base) or _is_contract(base) else {base.__name__: base}
    for cls in base.__subclasses__():
        found |= choices(cls)
    return dict(sorted(found.items()))


def _is_contract(cls: type) -> bool:
    """Base classes that are not ABCs (modules) still leave their methods abstract."""
    return any(
        getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in dir(cls)
    )


def inner_class(annotation: Any) -> type | None:
    """The class whose own arguments a value may spell out; None for plain values."""
    found = [
        one
        for one in _members(annotation)
        if isinstance(one, type)
        and not issubclass(one, enum.Enum)
        and (dataclasses.is_dataclass(one) or one.__module__.startswith("lidarssl."))
    ]
    return found[0] if len(found) == 1 else None


def _members(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def takes_text(annotation: Any) -> bool:
    """Whether text is a value of its own, as a name that a class looks up, not a class name."""
    return str in _members(annotation)


def find_class(base: type, name: object, where: str) -> type:
    """The class that ``class_path: name`` means where ``base`` is asked for.

    Raises:
        ConfigError: there is none, or it is no ``base``; names the closest.
    """
    known = choices(base)
    if name in known:
        return known[str(name)]
    module, dot, short = str(name).rpartition(".")
    if dot:
        try:
            found = getattr(import_module(module), short)
        except (ImportError, AttributeError, ValueError):
            found = None
        if isinstance(found, type) and issubclass(found, base):
            return found
        if found is not None:
            raise ConfigError(
                f"{name} is not a {base.__name__}",
                field=where,
                remedy=f"known: {', '.join(known)}",
            )
    raise ConfigError(
        f"there is no {base.__name__} '{name}'",
        field=where,
        remedy=did_you_mean(short, known)
        + f"known: {', '.join(known)}; name a class of your own as package.module.Class",
    )


def open_node(base: type, node: Any, where: str) -> tuple[type, dict[str, Any]]:
    """The class that a node of a recipe builds, and its arguments there (to read or to change).

    A node is the arguments of ``base``, or ``class_path`` with ``init_args``.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(node, dict):
        raise ConfigError(
            f"{node!r} does not say how to build a {base.__name__}",
            field=where,
            remedy=f"give its arguments, or class_path: one of {', '.join(choices(base))}",
        )
    if not _CLASS_KEYS & node.keys():
        if base not in choices(base).values():
            raise ConfigError(
                f"does not say which {base.__name__} to build",
                field=f"{where}.class_path",
                remedy=f"choose one of {', '.join(choices(base))}",
            )
        return base, node
    for key in node.keys() - _CLASS_KEYS:
        raise ConfigError(
            f"'{key}' stands beside class_path",
            field=f"{where}.{key}",
            remedy="put the arguments of the class under init_args",
        )
    cls = find_class(base, node.get("class_path", base.__name__), where)
    if node.get("init_args") is None:
        node["init_args"] = {}
    return cls, node["init_args"]


def open_table(base: type, node: Any, where: str) -> dict[str, Any]:
    """The nodes of a table of ``base``, by name (to read or to change).

    Raises:
        ConfigError: it is no table.
    """
    if not isinstance(node, dict) or _CLASS_KEYS & node.keys():
        raise ConfigError(
            f"{str(node)[:60]!r} is not a table of {base.__name__}s",
            field=where,
            remedy="write {NAME: {class_path: ..., init_args: {...}}, ...}, with class_path one of "
            + ", ".join(choices(base)),
        )
    return node


def sections(section: Section) -> Iterator[Section]:
    """A section and every one inside it, outermost first.

    Raises:
        ConfigError: a node that does not say what to build.
    """
    yield section
    for name, argument in arguments(section.cls).items():
        where = section.key(name)
        base, listed = inner_class(argument.annotation), table_class(argument.annotation)
        node = section.given.get(name, {} if _built_by_default(argument) else None)
        if node is None or (isinstance(node, str) and takes_text(argument.annotation)):
            continue
        if base is not None:
            yield from _inside(base, node, where)
        if listed is not None:
            for key, one in open_table(listed, node, where).items():
                yield from _inside(listed, one, f"{where}.{key}")


def _inside(base: type, node: Any, where: str) -> Iterator[Section]:
    node = {"class_path": node} if isinstance(node, str) else node
    yield from sections(Section(where, base, *open_node(base, node, where)))


def _built_by_default(argument: Argument) -> bool:
    return dataclasses.is_dataclass(argument.default) and not isinstance(argument.default, type)


_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    Path: ("a path", "paths"),
    types.NoneType: ("null", "nulls"),
}


def in_words(annotation: Any, plural: bool = False) -> str:
    """A type as one would say it to somebody who has not read the code."""
    members = _members(annotation)
    if Path in members:
        members = tuple(one for one in members if one is not str)
    if len(members) > 1:
        return " or ".join(dict.fromkeys(in_words(one, plural) for one in members))
    (only,) = members
    if only in _WORDS:
        return _WORDS[only][plural]
    origin, inner = typing.get_origin(only), typing.get_args(only)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple and Ellipsis not in inner and len(set(inner)) == 1:
        return f"a list of {len(inner)} {in_words(inner[0], True)}"
    if origin is dict:
        return f"a table {{{in_words(inner[0])}: {in_words(inner[1])}}}"
    if isinstance(origin, type) and issubclass(origin, Sequence) and inner:
        return f"a list of {in_words(inner[0], True)}"
    name: str = getattr(only, "__name__", str(only))
    return f"{name}s" if plural else f"a {name}"


def element_class(annotation: Any) -> type | None:
    """The class of the elements of a list whose elements spell out their arguments."""
    inner = typing.get_args(annotation)
    listed = typing.get_origin(annotation) in (tuple, list) and inner
    return inner_class(inner[0]) if listed else None


def table_class(annotation: Any) -> type | None:
    """The class of the values of a table {name: value} whose values spell out their arguments."""
    tables = [one for one in _members(annotation) if typing.get_origin(one) is dict]
    return inner_class(typing.get_args(tables[0])[1]) if len(tables) == 1 else None
