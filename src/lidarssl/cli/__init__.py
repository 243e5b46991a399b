"""The command line: one verb = one short function; heavy imports stay inside the verbs."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
import warnings
from collections.abc import Sequence

from lidarssl.cli.arguments import build_parser
from lidarssl.errors import ConfigError, DataError
from lidarssl.recipes.suggest import UnknownKey, did_you_mean

_OUT_OF_MEMORY = """the device ran out of memory
  remedy: a smaller --training.batch_size, --training.precision bf16-mixed, or
  --method.backbone.checkpointing true (slower, same result)"""
_WORKER_DIED = """a loader process was killed, most often for lack of memory or of /dev/shm
  remedy: fewer --training.workers (0 = none), or `docker run --shm-size=8g`"""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; bad input is one message on stderr and exit code 2, never a traceback."""
    words = sys.argv[1:] if words is None else words
    warnings.filterwarnings("ignore", module=r"pytorch_lightning|torch\.utils\.data")
    try:
        return _run(words)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        # The reader of a pipe has left (`lidarssl recipes | head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        name = error.filename2 or error.filename
        place = f"{name}: " if name else ""
        print(f"error: {place}{error.strerror or error}{_remedy(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        resumes = words and words[0] in ("pretrain", "finetune")
        print("stopped; --resume goes on" if resumes else "stopped", file=sys.stderr)
        return 130
    except RuntimeError as error:
        known = _known_failure(error)
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
    return 2


def _run(words: Sequence[str]) -> int:
    parser = build_parser()
    verb, known, options = parser.split(words)
    arguments, rest = parser.parse_known_args(known)
    if rest:
        raise ConfigError(
            f"{rest[0]} is not understood",
            remedy=f"{did_you_mean(rest[0], verb.flags)}`{verb.prog} --help` shows what is",
        )
    arguments.command = shlex.join(["lidarssl", *words])
    try:
        return arguments.run_verb(arguments, options) or 0
    except UnknownKey as error:
        # A misspelt flag of the verb was taken for a key of the recipe.
        close = difflib.get_close_matches(f"--{error.field}", verb.flags, 1, 0.75)
        if not close:
            raise
        remedy = f"did you mean '{close[0]}'? {error.remedy}"
        raise ConfigError(error.problem, field=error.field, remedy=remedy) from None


def _remedy(error: OSError) -> str:
    if isinstance(error, IsADirectoryError):
        return "\n  remedy: give the name of a file; this is a folder"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "\n  remedy: a file is where a folder should be; choose another path"
    if isinstance(error, PermissionError):
        return "\n  remedy: choose a place that you may read and write"
    return ""


def _known_failure(error: RuntimeError) -> str | None:
    if type(error).__name__ == "OutOfMemoryError":
        return _OUT_OF_MEMORY
    return _WORKER_DIED if "DataLoader worker" in str(error) else None
