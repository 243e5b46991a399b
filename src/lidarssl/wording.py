"""Numbers in messages."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: ``1 frame``, ``2 frames``, ``2 boxes``.

    Args:
        number: of them.
        one: the noun.
        many: its plural, where that is not ``one`` with an s.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
