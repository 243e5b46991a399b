"""Fewer labels are passed over more often: the epochs that belong to a share of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lidarssl.errors import ConfigError


def spell_out_epochs(config: Any, given: Mapping[str, Any]) -> None:
    """Put the epochs of the chosen share where ``training`` says nothing of its length.

    Args:
        config: checked values of a ``SegmentationRecipe``; changed in place. Its table is emptied,
            so that it says one thing only.
        given: what the recipe and the command line set.

    Raises:
        ConfigError: the table has no row for ``label_skip``.
    """
    table, config.share_epochs = config.share_epochs, {}
    training = given.get("training")
    if not table or (isinstance(training, Mapping) and {"epochs", "steps"} & training.keys()):
        return
    if config.label_skip not in table:
        raise ConfigError(
            f"how many epochs belong to 1/{config.label_skip} of the labels is not known",
            field="label_skip",
            remedy=f"use one of {', '.join(map(str, table))}, or add --training.epochs",
        )
    config.training.epochs = table[config.label_skip]
