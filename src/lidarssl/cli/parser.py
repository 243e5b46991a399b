"""argparse with errors as ``ConfigError``, and options that only a verb understands."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lidarssl.errors import ConfigError
from lidarssl.recipes.suggest import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser that knows its flags and its verbs.

    Attributes:
        flags: option strings of its own.
        verbs: parsers of the verbs below it.
        takes_options: passes options that it does not know on to its verb.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.flags: set[str] = set()
        self.verbs: dict[str, Parser] = {}
        self.takes_options = False
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        # An abbreviation would swallow keys of a recipe: --seed is not --seeds.
        super().__init__(allow_abbrev=False, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        self.flags.update(name for name in args if name.startswith("-"))
        return super().add_argument(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)'", message)
        question = did_you_mean(wrong[1], self.verbs) if wrong else ""
        raise ConfigError(message, remedy=f"{question}`{self.prog} --help` shows how")

    def split(self, words: Sequence[str]) -> tuple[Parser, list[str], list[str]]:
        """Take out the options that only a verb knows, which argparse would mistake.

        It takes their values for positional arguments, and an option with a space inside too.

        Returns:
            The parser of the verb; the words that argparse knows; and the other options, as
            ``--key=value`` where a value follows.
        """
        parser, known, options, rest = self, list[str](), list[str](), list(words)
        while rest:
            word = rest.pop(0)
            parser = parser.verbs.get(word, parser)
            flag, equals, _ = word.partition("=")
            if not (parser.takes_options and flag.startswith("--")) or flag in parser.flags:
                known.append(word)
            elif equals or not rest or rest[0].startswith("--"):
                options.append(word)
            else:
                options.append(f"{word}={rest.pop(0)}")
        return parser, known, options


class HelpWith(argparse.Action):
    """``--help`` that goes on with the options a verb passes on.

    Args:
        describe: from the positional argument ``of`` (None when not given yet) to text.
    """

    def __init__(self, describe: Callable[[str | None], str], of: str, **kwargs: Any) -> None:
        super().__init__(**kwargs | {"nargs": 0, "default": argparse.SUPPRESS})
        self.describe, self.of = describe, of

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *rest: Any
    ) -> None:
        parser.print_help()
        print(f"\n{self.describe(getattr(namespace, self.of, None))}")
        parser.exit()


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of a whole number with a lower bound."""

    def count(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of {minimum} or more")
        return int(text)

    return count
