"""Commands as a user would type them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def lidarssl(*words: str | Path) -> None:
    """Run one with the command line of this interpreter; what it prints is not shown."""
    command = [str(Path(sys.executable).with_name("lidarssl")), *map(str, words)]
    print("+ lidarssl", *command[1:], flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
