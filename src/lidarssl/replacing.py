"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A hidden file beside ``path`` to write, which then takes its place in one step.

    A reader, or a process started after this one was killed, sees the old file or the new one,
    never half of one. When the block raises, the old file stays and nothing else is left.

    Args:
        path: in a folder that exists.
        durable: wait until the content is on the disk, so that it also outlives a loss of power.

    Yields:
        The file to write; no two are the same, so that processes may write one ``path`` at once.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if durable:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
