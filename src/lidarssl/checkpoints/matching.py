"""Put weights into a module, and say exactly what did not fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lidarssl.checkpoints.files import Checkpoint
from lidarssl.errors import ConfigError

_NAMED = 8
_LONGEST_NAME = 200


@dataclass(frozen=True)
class LoadReport:
    """What became of every key.

    Attributes:
        loaded: keys now in the module.
        dropped: keys left alone on purpose, of the checkpoint or of the module.
        missing: keys of the module that the checkpoint lacks.
        unexpected: keys of the checkpoint that the module lacks.
        mismatched: keys of both with different shapes.
    """

    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)


def load_into(
    module: nn.Module,
    weights: Checkpoint | Mapping[str, Tensor],
    *,
    strict: bool = True,
    drop: Sequence[str] = (),
) -> LoadReport:
    """Copy weights into a module by name.

    Args:
        module: keeps its device and dtypes; unchanged when this raises.
        weights: a checkpoint (whose card must name the module's class) or a state dict.
        strict: every key must fit; otherwise those that fit are loaded and the rest reported.
        drop: key prefixes left as they are in the module and ignored in the weights, such as
            ``("final.",)`` for a head that starts anew.

    Raises:
        ConfigError: the card names another class; a key does not fit (strict); no key fits.
    """
    if isinstance(weights, Checkpoint):
        _check_class(module, weights)
        weights = weights.state
    report = compare(module, weights, drop)
    problems = misfits(module, weights, drop)
    if problems and strict:
        raise ConfigError(
            "the weights do not fit the module: " + "; ".join(problems),
            remedy="build the module they were trained with, or name the parts to leave out",
        )
    if not report.loaded:
        raise ConfigError(
            f"none of the {len(weights)} weights fits the module: " + "; ".join(problems),
            remedy="these are weights of another architecture or under another prefix",
        )
    module.load_state_dict({name: weights[name] for name in report.loaded}, strict=False)
    return report


def compare(module: nn.Module, state: Mapping[str, Tensor], drop: Sequence[str] = ()) -> LoadReport:
    """What :func:`load_into` would do, without doing it.

    ``num_batches_tracked`` may be missing: it only matters to batch norms without momentum, and
    files of old torch versions lack it.
    """
    own, prefixes = module.state_dict(), tuple(drop)
    kept = {name for name in own if not name.startswith(prefixes)}
    given = {name for name in state if not name.startswith(prefixes)}
    both = sorted(kept & given)
    return LoadReport(
        loaded=tuple(name for name in both if own[name].shape == state[name].shape),
        dropped=tuple(sorted((own.keys() | state.keys()) - kept - given)),
        missing=tuple(
            sorted(name for name in kept - given if not name.endswith("num_batches_tracked"))
        ),
        unexpected=tuple(sorted(given - kept)),
        mismatched=tuple(name for name in both if own[name].shape != state[name].shape),
    )


def misfits(module: nn.Module, state: Mapping[str, Tensor], drop: Sequence[str] = ()) -> list[str]:
    """What keeps a state dict from fitting a module, in words; empty when it fits."""
    own, report = module.state_dict(), compare(module, state, drop)
    groups = {
        "missing": [f"'{name}'" for name in report.missing[:_NAMED]],
        "unexpected": [
            f"'{name[:_LONGEST_NAME]}'" + _closest(name, report.missing or tuple(own))
            for name in report.unexpected[:_NAMED]
        ],
        "of another shape": [
            f"'{name}' {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in report.mismatched[:_NAMED]
        ],
    }
    counts = (len(report.missing), len(report.unexpected), len(report.mismatched))
    return [
        f"{count} {kind}: {', '.join(names)}" + (", ..." if count > len(names) else "")
        for count, (kind, names) in zip(counts, groups.items(), strict=True)
        if count
    ]


def _closest(name: str, valid: Sequence[str]) -> str:
    found = difflib.get_close_matches(name[:_LONGEST_NAME], valid, n=1)
    return f" (closest: '{found[0]}')" if found else ""


def _check_class(module: nn.Module, checkpoint: Checkpoint) -> None:
    here = f"{type(module).__module__}.{type(module).__qualname__}"
    there = checkpoint.card.architecture.class_path
    if here != there:
        raise ConfigError(
            f"the checkpoint holds a {there}, not a {here}",
            path=checkpoint.path,
            field="architecture.class_path",
            remedy=f"build a {there}, or choose a checkpoint of {here}",
        )
