"""Command line words put into a recipe, and why a recipe is refused, in the user's terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from lidarssl.errors import ConfigError
from lidarssl.recipes.keys import (
    REQUIRED,
    Argument,
    Section,
    arguments,
    element_class,
    find_class,
    in_words,
    inner_class,
    open_node,
    open_table,
    sections,
    table_class,
    takes_text,
)
from lidarssl.recipes.suggest import UnknownKey, closest_key


def split_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """Keys and values of ``--key=value`` and ``--key value``.

    Raises:
        ConfigError: a word that is neither, or a key without a value.
    """
    pairs: list[tuple[str, str]] = []
    rest = iter(words)
    for word in rest:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise ConfigError(
                f"'{word}' is not an option",
                remedy="write options as --key value or --key=value",
            )
        following = value if equals else next(rest, None)
        if following is None:
            raise ConfigError(
                "is given no value", field=f"--{key}", remedy="write --key value or --key=value"
            )
        pairs.append((key, following))
    return pairs


def override(cls: type, content: dict[str, Any], words: Sequence[str]) -> None:
    """Put command line words into the arguments ``content`` of ``cls``.

    Args:
        cls: what ``content`` builds.
        content: changed in place; nested classes are opened as needed.
        words: ``--training.steps 10``, ``--method.class_path Ppkt``, ...; a changed class keeps
            those of its arguments that the new class has too.

    Raises:
        ConfigError: an unknown key or class (names the closest) or a value of a wrong type.
    """
    pairs = split_words(words)
    whole = Section("", cls, cls, content)
    split = [([p for p in key.split(".") if p != "init_args"], raw) for key, raw in pairs]
    # The class decides which arguments there are, wherever it stands on the command line.
    for parts, raw in sorted(split, key=lambda one: len(one[0]) - (one[0][-1] == "class_path")):
        _set(whole, whole, parts, raw)


def _set(whole: Section, section: Section, parts: list[str], raw: str) -> None:
    name, *rest = parts
    argument = _known(whole, section, name)
    base, where = inner_class(argument.annotation), section.key(name)
    listed = table_class(argument.annotation)
    given: Any = section.given
    if listed is not None:
        table = given.get(name) or {} if rest else _parse_yaml(raw, where)
        given[name] = open_table(listed, table, where)
        if rest:
            _set_in_table(whole, listed, given[name], where, rest, raw)
    elif base is None:
        if rest:
            raise ConfigError(
                f"'{where}' is a plain value, without keys of its own",
                field=".".join([where, *rest]),
                remedy=f"give it {in_words(argument.annotation)}",
            )
        given[name] = parse_value(argument.annotation, raw, where)
    elif not rest and takes_text(argument.annotation):
        given[name] = _parse_yaml(raw, where)
    else:
        named = isinstance(given.get(name), str) and takes_text(argument.annotation)
        node = None if named else given.get(name)
        given[name] = _changed(whole, base, node, where, rest, raw)


def _set_in_table(
    whole: Section, base: type, table: dict[str, Any], where: str, parts: list[str], raw: str
) -> None:
    """Change an entry of a table, or make one by naming its class."""
    name, *rest = parts
    if name not in table and rest not in ([], ["class_path"]):
        raise UnknownKey(
            f"'{where}' has no '{name}'",
            field=f"{where}.{name}",
            remedy=closest_key(name, [f"{where}.{key}" for key in table], ())
            + f"known: {', '.join(table) or 'none'}; add one with --{where}.{name}.class_path",
        )
    table[name] = _changed(whole, base, table.get(name), f"{where}.{name}", rest, raw)


def _changed(whole: Section, base: type, node: Any, where: str, parts: list[str], raw: str) -> Any:
    """The node of a ``base`` after a word has changed its class, or an argument inside."""
    if parts in ([], ["class_path"]):
        return _replaced(base, node, raw, where)
    node = {"class_path": node} if isinstance(node, str) else node or {}
    found, inner = open_node(base, node, where)
    _set(whole, Section(where, base, found, inner), parts, raw)
    return node


def _replaced(base: type, node: Any, raw: str, where: str) -> Any:
    """The node of another class, or the value spelled out in YAML."""
    value = _parse_yaml(raw, where)
    if not isinstance(value, str):
        return value
    cls = find_class(base, value, f"{where}.class_path")
    kept = open_node(base, node, where)[1] if isinstance(node, dict) else {}
    accepted = {key: value for key, value in kept.items() if key in arguments(cls)}
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": accepted}


def _known(whole: Section, section: Section, name: str) -> Argument:
    known = arguments(section.cls)
    if name in known:
        return known[name]
    siblings = [section.key(one) for one in known]
    raise UnknownKey(
        f"{section.cls.__name__} has no argument '{name}'"
        if section.path
        else f"there is no option '{name}'",
        field=section.key(name),
        remedy=closest_key(name, siblings, _all_keys(whole)) or None,
    )


def _all_keys(whole: Section) -> Iterator[str]:
    try:
        for section in sections(whole):
            yield from (section.key(name) for name in arguments(section.cls))
    except ConfigError:
        return


def parse_value(annotation: Any, raw: str, where: str) -> Any:
    """The value that a command line word stands for.

    Raises:
        ConfigError: it is not of the type; says what it should be.
    """
    cls = element_class(annotation)
    if cls is not None:
        _explain_value(annotation, _parse_yaml(raw, where), where)
    return _converted(annotation, where, raw, lambda parser: parser.parse_args([f"--value={raw}"]))


def _parse_yaml(raw: str, where: str) -> Any:
    try:
        return yaml.safe_load(raw)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"'{raw[:60]}' is not YAML: {' '.join(str(error).split())[:100]}",
            field=where,
            remedy="write lists as [a, b] and keys as {name: value}",
        ) from error


def explain(cls: type, content: dict[str, Any]) -> None:
    """Find what is wrong with the arguments ``content`` of ``cls``; return if nothing is found.

    Raises:
        ConfigError: an unknown key or class (names the closest), an argument that is missing, or
            a value of a wrong type.
    """
    _explain(Section("", cls, cls, content))


def _explain(whole: Section) -> None:
    for section in sections(whole):
        for name in section.given:
            _known(whole, section, str(name))
        for name, argument in arguments(section.cls).items():
            where = section.key(name)
            if name not in section.given:
                if argument.default is REQUIRED:
                    raise ConfigError(
                        f"'{where}' is missing",
                        field=where,
                        remedy=f"add --{where} and {in_words(argument.annotation)}",
                    )
            elif (inner_class(argument.annotation) or table_class(argument.annotation)) is None:
                _explain_value(argument.annotation, section.given[name], where)


def _explain_value(annotation: Any, value: Any, where: str) -> None:
    cls = element_class(annotation)
    for index, item in enumerate(value if cls is not None and isinstance(value, list) else ()):
        if cls is not None and isinstance(item, dict):
            _explain(Section(f"{where}[{index}]", cls, cls, item))
    _converted(annotation, where, value, lambda parser: parser.parse_object({"value": value}))


def _converted(annotation: Any, where: str, shown: object, parse: Callable[[Any], Any]) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    try:
        return parse(parser).value
    except ArgumentError:
        wanted = in_words(annotation)
        raise ConfigError(
            f"'{str(shown)[:60]}' is not {wanted}",
            field=where,
            remedy="write lists as [a, b]" if "list" in wanted else None,
        ) from None
