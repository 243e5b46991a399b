"""Numbers in messages."""

from __future__ import annotations

from lidarssl.wording import counted


def test_one_is_no_plural() -> None:
    assert [counted(n, "frame") for n in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]
    assert [counted(n, "box", "boxes") for n in (1, 3)] == ["1 box", "3 boxes"]
