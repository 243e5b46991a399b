"""What the verbs of the command line have in common: groups of verbs, shared arguments."""

from __future__ import annotations

from collections.abc import Callable

from lidarssl.cli.parser import HelpWith, Parser


class Verbs:
    """The verbs below a parser."""

    def __init__(self, parser: Parser, title: str, metavar: str) -> None:
        self.parser = parser
        self.group = parser.add_subparsers(title=title, metavar=metavar, required=True)

    def add(
        self, name: str, summary: str, run: Callable[..., int | None], examples: str, note: str = ""
    ) -> Parser:
        """A verb that runs ``run``; ``examples`` are command lines, one per line."""
        return self._new(name, summary, examples, note, run)

    def open(
        self, name: str, summary: str, run: Callable[..., int | None], examples: str, note: str,
        describe: Callable[[str | None], str] | None = None, of: str = "",
    ) -> Parser:  # fmt: skip
        """A verb that takes options it does not know; ``describe`` tells ``--help`` of them."""
        parser = self._new(name, summary, examples, note, run, add_help=describe is None)
        parser.takes_options = True
        if describe is not None:
            parser.add_argument(
                "-h", "--help", action=HelpWith, describe=describe, of=of,
                help="show this help and these options",
            )  # fmt: skip
        return parser

    def parent(self, name: str, summary: str, title: str, metavar: str) -> Verbs:
        """A verb that is a group of verbs."""
        return Verbs(self._new(name, summary, "", "", None), title, metavar)

    def _new(
        self, name: str, summary: str, examples: str, note: str,
        run: Callable[..., int | None] | None, add_help: bool = True,
    ) -> Parser:  # fmt: skip
        lines = [f"  {line}" for line in examples.splitlines()]
        epilog = "\n".join(
            [*([note, ""] if note else []), *(["examples:", *lines] if lines else [])]
        )
        parser: Parser = self.group.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=epilog, add_help=add_help,
        )  # fmt: skip
        if run is not None:
            parser.set_defaults(run_verb=run)
        self.parser.verbs[name] = parser
        return parser


def open_dataset(
    group: Verbs, name: str, summary: str, run: Callable[..., int | None], examples: str,
    note: str = "", split: str = "train", describe: Callable[[str | None], str] | None = None,
) -> Parser:  # fmt: skip
    """A verb whose first argument is a dataset, and which passes other options on to it.

    ``describe`` tells ``--help`` of these; default: of the dataset's.
    """
    parser = group.open(
        name, summary, run, examples,
        f"{note}Other options go to the dataset; its name and --help list them.",
        describe or describe_dataset, "dataset",
    )  # fmt: skip
    parser.add_argument("dataset", help="e.g. semantic_kitti, nuscenes, kitti_object, folder")
    parser.add_argument("--split", default=split, help=f"of the dataset (default: {split})")
    return parser


def describe_dataset(name: str | None) -> str:
    """The options of a dataset, for ``--help``."""
    if name is None:
        return "The options of a dataset: add its name before --help."
    from lidarssl.recipes.schema import describe_dataset

    return describe_dataset(name)


def add_quiet(parser: Parser) -> None:
    """The flag that turns progress bars off."""
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
