"""`lidarssl push` and `lidarssl pull`: weights that others can use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lidarssl import checkpoints
from lidarssl.checkpoints import hub
from lidarssl.errors import ConfigError
from lidarssl.experiments.record import weights_of


def push(source: Path, repository: str, licence: str | None = None, private: bool = False) -> str:
    """Upload the weights of a run.

    Args:
        source: run folder, or a weights file that lidarssl wrote.
        repository: ``owner/name``.
        licence: takes the place of the card's; None = the card's.
        private: of a new repository.

    Returns:
        What was done, for people.

    Raises:
        DataError: no weights, or without a card.
        ConfigError: no name of a repository, no licence is known, or the hub refuses.
    """
    hub.check_repository(repository)
    checkpoint = checkpoints.load(weights_of(source, "SOURCE"))
    card = checkpoint.card if licence is None else replace(checkpoint.card, licence=licence)
    if not card.licence.strip():
        raise ConfigError(
            "the card states no licence, without which nobody may use the weights",
            path=checkpoint.path,
            field="--licence",
            remedy="add --licence, e.g. cc-by-nc-sa-4.0; that of the training data may bind you",
        )
    return f"{hub.push(checkpoint, card, repository, private)}\n{_summary(card)}"


def pull(
    repository: str, output: Path, revision: str | None = None, overwrite: bool = False
) -> str:
    """Download weights, checked before they are handed over.

    Args:
        repository: ``owner/name``.
        output: a folder.
        revision: branch, tag or commit; None = the newest.
        overwrite: replace weights that are there.

    Returns:
        What was done, for people.

    Raises:
        ConfigError: there are weights already, or the hub cannot be reached.
        DataError: what was downloaded is not sound.
    """
    weights = output / checkpoints.WEIGHTS_FILE
    if output.is_file() or (weights.exists() and not overwrite):
        raise ConfigError(
            "is a file" if output.is_file() else "exists",
            path=output if output.is_file() else weights,
            field="--output",
            remedy="choose another folder, or add --overwrite",
        )
    pulled = hub.pull(repository, output, revision)
    return f"{pulled.path}\n{_summary(pulled.card)}"


def _summary(card: checkpoints.Card) -> str:
    rows = {
        "network": card.architecture.class_path.rpartition(".")[2],
        "method": card.recipe,
        "data": ", ".join(card.data),
        "licence": card.licence,
    }
    return "\n".join(f"  {name:<12}{text or 'not stated'}" for name, text in rows.items())
