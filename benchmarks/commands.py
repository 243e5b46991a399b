"""Commands as a user would type them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def lidarssl(*words: str | Path) -> str:
    """Run one with the command line of this interpreter; what it prints is returned, not shown."""
    command = [str(Path(sys.executable).with_name("lidarssl")), *map(str, words)]
    print("+ lidarssl", *command[1:], flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
