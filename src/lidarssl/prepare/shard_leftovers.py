"""Files of shards that nobody needs: of passes that were killed, and of an earlier packing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO

CANNOT_LOCK = (OSError, ImportError)
"""What ``lock`` raises."""


def lock(file: IO[bytes]) -> None:
    """For as long as this process lives, or the file is open.

    Raises:
        OSError: another process has locked it, or the file system cannot lock.
        ImportError: the operating system cannot.
    """
    import fcntl

    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_abandoned(tar: Path) -> None:
    """Delete what passes that were killed have left of a shard."""
    _remove_unlocked(tar.parent.glob(f".{tar.name}.*.partial"))


def remove_surplus(folder: Path, split: str, shards: int) -> None:
    """Delete the files of a split's shards from number ``shards`` on.

    An earlier packing had more. Machines that share a pass agree on the number, so that none of
    these is theirs.
    """
    name = rf"{re.escape(split)}-([0-9]{{6}})\.(?:tar|json)"
    partials = []
    for path in folder.iterdir():
        if (found := re.fullmatch(name, path.name)) and int(found[1]) >= shards:
            path.unlink(missing_ok=True)
        found = re.fullmatch(rf"\.{name}\.[0-9a-f]+\.partial", path.name)
        if found and int(found[1]) >= shards:
            partials.append(path)
    _remove_unlocked(partials)


def _remove_unlocked(partials: Iterable[Path]) -> None:
    """A pass that lives has locked its file: workers outlive a killed one for a moment."""
    for left in partials:
        with contextlib.suppress(*CANNOT_LOCK), left.open("r+b") as file:
            lock(file)
            left.unlink()
