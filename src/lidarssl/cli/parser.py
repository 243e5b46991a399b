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

    def join_values(self, words: Sequence[str]) -> tuple[Parser, list[str]]:
        """Tie the values of options that only the verb knows to them, so that none of them is
        taken for a positional argument.

        Returns:
            The parser of the verb, and the words with ``--key=value`` in place of
            ``--key value``.
        """
        parser, joined, rest = self, [], list(words)
        while rest:
            word = rest.pop(0)
            if word in parser.verbs:
                parser = parser.verbs[word]
            elif parser.takes_options and word.startswith("--") and word not in parser.flags:
                followed = rest and not rest[0].startswith("--")
                if "=" not in word and followed:
                    word = f"{word}={rest.pop(0)}"
            joined.append(word)
        return parser, joined


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
