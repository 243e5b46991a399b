"""Every key of a recipe, a dataset or a world, as text for the terminal."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

from lidarssl.recipes.keys import (
    REQUIRED,
    Section,
    arguments,
    choices,
    in_words,
    inner_class,
    table_class,
)

WIDTH = 96


def describe_section(section: Section) -> str:
    """A class and its arguments: value here, type, default, meaning; ``*`` = set here."""
    lines = [_title(section)] if section.path else []
    for name, argument in arguments(section.cls).items():
        base = inner_class(argument.annotation)
        if base is not None and (section.given.get(name) is not None or section.path == ""):
            continue
        mark = "*" if name in section.given else " "
        value = section.given.get(name, argument.default)
        if table_class(argument.annotation) is not None and isinstance(value, dict):
            value = f"{{{', '.join(value)}}}"
        shown = "" if value is REQUIRED else f" = {_short(value)}"
        kind = in_words(argument.annotation)
        if argument.default is REQUIRED:
            kind += ", required"
        elif name in section.given and section.given[name] != argument.default:
            kind += f"; default {_short(argument.default)}"
        lines.append(f"{mark} --{section.key(name)}{shown}   ({kind})")
        if argument.doc:
            lines.append(textwrap.fill(argument.doc, WIDTH, **_INDENT))
    return "\n".join(lines)


_INDENT: dict[str, Any] = {"initial_indent": " " * 6, "subsequent_indent": " " * 6}


def _title(section: Section) -> str:
    summary = (inspect.getdoc(section.cls) or "").partition("\n\n")[0]
    title = f"{section.path}: {section.cls.__name__}"
    others = [name for name in choices(section.base) if name != section.cls.__name__]
    if others:
        title += f"   (--{section.path}.class_path may also be {', '.join(others)})"
        title = textwrap.fill(title, WIDTH, subsequent_indent=_INDENT["subsequent_indent"])
    return f"{title}\n{textwrap.fill(' '.join(summary.split()), WIDTH, **_INDENT)}"


def _short(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
