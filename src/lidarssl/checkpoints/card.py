"""The card of a checkpoint: what the weights are, where they come from, what they are worth."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lidarssl import __version__
from lidarssl.errors import ConfigError, DataError

MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class Architecture:
    """The module that the weights belong to.

    Attributes:
        class_path: e.g. ``lidarssl.backbones.minkunet.MinkUNet``.
        init_args: constructor arguments as plain JSON values (voxel size, channels, ...).
    """

    class_path: str
    init_args: Mapping[str, Any] = field(default_factory=dict)

    def check_same(self, other: Architecture, *, ignore: tuple[str, ...] = ()) -> None:
        """Raise unless ``other`` (of a checkpoint) is this architecture.

        Args:
            ignore: constructor arguments that may differ.

        Raises:
            ConfigError: names every difference.
        """
        wanted, found = self._plain(ignore), other._plain(ignore)
        differences = [
            f"{name} is {found.get(name, 'absent')} in the checkpoint, "
            f"{wanted.get(name, 'absent')} here"
            for name in sorted(wanted.keys() | found.keys())
            if wanted.get(name) != found.get(name)
        ]
        if differences:
            raise ConfigError(
                f"the checkpoint is of another architecture: {'; '.join(differences)}",
                remedy="build the module with the arguments of the checkpoint's card",
            )

    def _plain(self, ignore: tuple[str, ...]) -> dict[str, str]:
        """Every argument as canonical JSON, so that tuples equal lists."""
        plain = {
            name: json.dumps(value, sort_keys=True)
            for name, value in self.init_args.items()
            if name not in ignore
        }
        return {"class_path": self.class_path, **plain}


@dataclass(frozen=True)
class Card:
    """What a reader of the weights must know.

    Attributes:
        architecture: module and constructor arguments.
        recipe: name of the recipe that trained it.
        data: datasets and splits it was trained on, e.g. ``nuscenes/train``.
        metrics: named scores; None where undefined.
        licence: of the weights (that of the training data may restrict it).
        step: optimiser steps done.
        version: of lidarssl that wrote it.
    """

    architecture: Architecture
    recipe: str = ""
    data: tuple[str, ...] = ()
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    licence: str = ""
    step: int = 0
    version: str = __version__

    def to_json(self) -> str:
        """Indented JSON.

        Raises:
            ConfigError: a value has no JSON form (NaN, a tensor, a path).
        """
        try:
            return json.dumps(asdict(self), indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the card cannot be written as JSON ({error})",
                remedy="use plain numbers, strings, lists and dictionaries; None for undefined",
            ) from error

    @classmethod
    def from_json(cls, text: str | bytes, path: Path | None = None) -> Card:
        """Parse and check every field.

        Args:
            path: the file it comes from, for messages.

        Raises:
            DataError: not JSON, too large, a field unknown, missing or of a wrong type.
        """
        if len(text) > MAX_CARD_BYTES:
            raise DataError(f"the card is larger than {MAX_CARD_BYTES} bytes", path=path)
        try:
            record = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the card is not valid JSON ({error})", path=path) from error
        try:
            return _card(record)
        except DataError as error:
            raise type(error)(
                error.problem, path=path, field=error.field, remedy=error.remedy
            ) from None


def _card(record: object) -> Card:
    values = _record(record, Card, "card")
    inner = _record(values.get("architecture"), Architecture, "architecture")
    metrics = _expect(values.get("metrics", {}), dict, "metrics")
    for name, score in metrics.items():
        if score is not None:
            _expect_number(score, f"metrics.{name}")
    data = _expect(values.get("data", []), list, "data")
    return Card(
        architecture=Architecture(
            class_path=_expect(inner.get("class_path"), str, "architecture.class_path"),
            init_args=_expect(inner.get("init_args", {}), dict, "architecture.init_args"),
        ),
        recipe=_expect(values.get("recipe", ""), str, "recipe"),
        data=tuple(_expect(item, str, f"data[{index}]") for index, item in enumerate(data)),
        metrics=metrics,
        licence=_expect(values.get("licence", ""), str, "licence"),
        step=_expect(values.get("step", 0), int, "step"),
        version=_expect(values.get("version", ""), str, "version"),
    )


def _record(value: object, kind: type[Card] | type[Architecture], name: str) -> dict[str, Any]:
    record: dict[str, Any] = _expect(value, dict, name)
    known = [one.name for one in fields(kind)]
    for key in record:
        if key not in known:
            closest = difflib.get_close_matches(key[:80], known, n=1)
            raise DataError(
                f"unknown field '{key[:80]}'" + (f", meant '{closest[0]}'?" if closest else ""),
                field=f"{name}.{key[:80]}",
                remedy="the card may come from a newer lidarssl: update it",
            )
    return record


def _expect(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise DataError(f"expected a {kind.__name__}, found {found}", field=name)
    return value


def _expect_number(value: object, name: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and abs(value) <= sys.float_info.max):  # type: ignore[arg-type]
        raise DataError("expected a finite number or null", field=name)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
