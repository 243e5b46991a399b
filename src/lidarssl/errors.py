"""Errors a user can act on: each names the file, the field and the remedy."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


class LidarsslError(Exception):
    """Base of every error that the command line prints without a traceback (exit code 2)."""


class DataError(LidarsslError):
    """A file or frame that cannot be used as it is.

    Args:
        problem: what is wrong, in one sentence.
        path: the file concerned.
        field: the column, key or array concerned.
        remedy: what the user can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | Path | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.path, self.field, self.remedy = problem, path, field, remedy
        parts = [f"{path}: {problem}" if path is not None else problem]
        if field is not None:
            parts.append(f"field: {field}")
        if remedy is not None:
            parts.append(f"remedy: {remedy}")
        super().__init__("\n  ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_data_error, (type(self), self.problem, self.path, self.field, self.remedy)


class ConfigError(DataError):
    """A recipe, option or combination of options that cannot be run."""


def unknown_name(
    kind: str, name: str, known: Iterable[str], field: str | None = None
) -> ConfigError:
    """The error of a wrong name, with the closest right one; ``field``: None = the kind."""
    choices = list(known)
    close = difflib.get_close_matches(name[:100], choices, n=1)
    remedy = f"did you mean '{close[0]}'? " if close else ""
    return ConfigError(
        f"unknown {kind} '{name}'",
        field=field or kind,
        remedy=f"{remedy}known: {', '.join(choices) or 'none'}",
    )


def _rebuild_data_error(
    cls: type[DataError], problem: str, path: str | None, field: str | None, remedy: str | None
) -> DataError:
    return cls(problem, path=path, field=field, remedy=remedy)


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted module name.
        extra: the extra of this package that brings it.

    Raises:
        ConfigError: it is not installed; the message holds the pip command that mends it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"this needs the optional package '{module.split('.')[0]}' ({error})",
            remedy=f"pip install 'lidarssl[{extra}]' (in a clone: pip install '.[{extra}]')",
        ) from error
