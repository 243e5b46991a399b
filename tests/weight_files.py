"""Weights files that attack their reader."""

from __future__ import annotations

import os
from pathlib import Path


class Bomb:
    """A pickle of this makes the folder ``target`` when an unsafe reader loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)
