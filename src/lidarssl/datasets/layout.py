"""Where a dataset lies on disk, and the lists of names that come with it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from lidarssl.datasets.files import decode_text
from lidarssl.errors import DataError

NAME_LIMIT = 2_000_000


def find_root(root: Path, marks: Sequence[str], expected: str) -> Path:
    """``root``, when it holds one of the folders ``marks``.

    Args:
        root: as the user gave it.
        marks: folders that the root of this dataset holds.
        expected: what to give, for the message.

    Raises:
        DataError: it holds none; says where they seem to be.
    """
    if _holds(root, marks):
        return root
    above = [parent for parent in root.parents[:4] if _holds(parent, marks)]
    below = [
        root.joinpath(*found.relative_to(root).parts[:depth])
        for depth in (1, 2)
        for mark in marks
        for found in sorted(root.glob("*/" * depth + mark))
    ]
    candidates = above + below
    raise DataError(
        f"there is no '{marks[0]}' below this folder",
        path=root,
        field="root",
        remedy=f"use root {candidates[0]}" if candidates else expected,
    )


def _holds(folder: Path, marks: Sequence[str]) -> bool:
    return any((folder / mark).is_dir() for mark in marks)


def packaged_table(name: str) -> Any:
    """Value of a json file that ships with this package."""
    return json.loads(files("lidarssl.datasets").joinpath(name).read_text("utf-8"))


def parse_numbered_names(data: bytes, path: Path) -> list[str]:
    """Names of six digits, one per line, as in ``ImageSets/*.txt``; empty lines are read over.

    Raises:
        DataError: a line is something else, or a name stands twice.
    """
    names = decode_text(data, path).split()
    if len(names) > NAME_LIMIT:
        raise DataError(f"has {len(names)} names; at most {NAME_LIMIT} are read", path=path)
    bad = next((name for name in names if not re.fullmatch(r"[0-9]{6}", name, re.ASCII)), None)
    if bad is not None:
        raise DataError(
            f"'{bad[:40]}' is not a name of six digits",
            path=path,
            field="split",
            remedy="write one six-digit name per line",
        )
    if len(set(names)) != len(names) or not names:
        problem = "a name stands twice" if names else "is empty"
        raise DataError(problem, path=path, field="split", remedy="get this list again")
    return names
