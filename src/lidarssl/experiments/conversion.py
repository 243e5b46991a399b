"""What conversions of lidar networks and of image encoders share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from lidarssl import checkpoints
from lidarssl.checkpoints.convert import Format
from lidarssl.checkpoints.spconv_layouts import SpconvLayout
from lidarssl.errors import ConfigError
from lidarssl.recipes.overrides import explain, override
from lidarssl.weights import reason

# What torch and safetensors put before the reason of a failed write.
_WRITER = re.compile(r"^(\[.*?\] \. |Error while serializing: I/O error: )")


@dataclass(frozen=True)
class Wanted:
    """What a conversion shall make.

    Attributes:
        target: format of the output.
        output: file or, for ``lidarssl``, also a folder.
        like: recipe whose backbone the weights are for.
        options: words with arguments of the backbone, such as ``--voxel_size=0.1``.
        layout: of the spconv weights that are written.
        overwrite: replace ``output``.
        licence, data: for the card; None = as in the source.
    """

    target: Format
    output: Path
    like: str | None = None
    options: Sequence[str] = ()
    layout: SpconvLayout = SpconvLayout.KRSC
    overwrite: bool = False
    licence: str | None = None
    data: Sequence[str] | None = None


def refuse_options(wanted: Wanted) -> None:
    """Refuse what would be ignored.

    Raises:
        ConfigError: names the option.
    """
    given = ["--output-layout"] if wanted.layout is not SpconvLayout.KRSC else []
    if wanted.target is not Format.LIDARSSL:
        given = [] if wanted.target is Format.OPENPCDET else given
        given += [word.partition("=")[0] for word in wanted.options]
        given += ["--like"] if wanted.like else []
        given += ["--licence"] if wanted.licence is not None else []
        given += ["--data"] if wanted.data is not None else []
    if given:
        raise ConfigError(
            f"'{wanted.target}' files have no place for {given[0]}",
            field=given[0],
            remedy="leave it out: a card and arguments of the network belong to --to lidarssl, "
            "an output layout to --to openpcdet",
        )


def keep_existing(files: Iterable[Path], wanted: Wanted) -> None:
    """Refuse to replace files unasked.

    Raises:
        ConfigError: one exists.
    """
    for file in files:
        if file.exists() and not wanted.overwrite:
            raise ConfigError(
                "exists", path=file, field="--output", remedy="choose another, or add --overwrite"
            )


def card_of(
    built: checkpoints.Architecture, card: checkpoints.Card | None, wanted: Wanted
) -> checkpoints.Card:
    """The card of a converted file: that of the source, with what was asked for."""
    card = replace(card or checkpoints.Card(built), architecture=built)
    if wanted.licence is not None:
        card = replace(card, licence=wanted.licence)
    return card if wanted.data is None else replace(card, data=tuple(wanted.data))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file, and say so where it cannot be written.

    Raises:
        ConfigError: in the place of what the writers raise, each its own.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        said = _WRITER.sub("", said)
        raise ConfigError(
            f"cannot be written ({said})",
            path=path,
            field="--output",
            remedy="choose a place where you may write and that has room",
        ) from error


def complete_arguments(
    cls: type, content: dict[str, Any], words: Sequence[str], hint: str
) -> dict[str, Any]:
    """Every argument of a backbone as plain values: those given, the words, and the defaults.

    Raises:
        ConfigError: an unknown argument (names the closest) or a wrong value.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    try:
        override(cls, content, words)
        explain(cls, content)
        config = parser.parse_object(content, defaults=True)
    except ConfigError as error:
        remedy = "; ".join(filter(None, ((error.remedy or "").strip(), hint)))
        raise type(error)(error.problem, field=error.field, remedy=remedy) from None
    except ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())[:300], remedy=hint) from None
    plain: dict[str, Any] = yaml.safe_load(
        parser.dump(config, skip_none=False, skip_validation=True)
    )
    return plain


def rows_of_card(card: checkpoints.Card) -> dict[str, str]:
    """What a card says, for people."""
    rows = {
        "method": card.recipe,
        "data": ", ".join(card.data),
        "steps": str(card.step or ""),
        "licence": card.licence,
    }
    return {name: text for name, text in rows.items() if text}
