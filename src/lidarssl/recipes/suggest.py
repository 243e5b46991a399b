"""The closest right word to a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from lidarssl.errors import ConfigError


class UnknownKey(ConfigError):
    """An option or a key that nothing here has."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that ends in a space, or nothing when no known word is close."""
    close = difflib.get_close_matches(word[:100], list(known), 1, 0.5)
    return f"did you mean '{close[0]}'? " if close else ""


def closest_key(key: str, siblings: Iterable[str], everywhere: Iterable[str]) -> str:
    """As ``did_you_mean`` for a dotted key: among its siblings, else by its last part anywhere.

    Args:
        key: the wrong one.
        siblings: right keys of the same class, dotted.
        everywhere: right keys of the whole recipe, dotted.
    """
    word = key.rsplit(".", 1)[-1]
    for keys, cutoff in ((list(siblings), 0.6), (list(everywhere), 0.75)):
        by_last_part = {one.rsplit(".", 1)[-1]: one for one in reversed(keys)}
        close = difflib.get_close_matches(word[:100], by_last_part, 1, cutoff)
        if close:
            return f"did you mean '{by_last_part[close[0]]}'? "
    return ""
